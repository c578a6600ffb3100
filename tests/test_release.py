"""One version: what names it agrees, and `make release` tags nothing else."""

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT, run

ME = {f"GIT_{who}_{what}": "me@x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
RELEASE = ("make", "release", f"PYTHON={sys.executable}")


@pytest.fixture
def clone(template: Path, tmp_path: Path) -> Path:
    """The template as a repository in which 2.0.0 is to be released."""
    folder = tmp_path / "clone"
    run("cp", "-r", template, folder, cwd=tmp_path)
    for name, old, new in (
        ("pyproject.toml", r'^version = ".*"', 'version = "2.0.0"'),
        ("cookiecutter.json", r'"_version": ".*"', '"_version": "2.0.0"'),
        ("CHANGELOG.md", r"^## .*", "## 2.0.0 (2026-12-01)"),
    ):
        file = folder / name
        file.write_text(re.sub(old, new, file.read_text(), count=1, flags=re.MULTILINE))
    run("git", "init", "--quiet", cwd=folder)
    commit(folder)
    return folder


def commit(clone: Path) -> None:
    run("git", "add", "--all", cwd=clone)
    run("git", "commit", "--quiet", "--message", "x", cwd=clone, **ME)


def test_a_release_is_tagged(clone: Path) -> None:
    said = run(*RELEASE, cwd=clone, **ME)
    assert "git push origin main v2.0.0" in said
    assert run("git", "describe", cwd=clone) == "v2.0.0\n"
    with pytest.raises(AssertionError, match=r"v2\.0\.0 is tagged already"):
        run(*RELEASE, cwd=clone, **ME)


@pytest.mark.parametrize(
    ("name", "old", "new", "why"),
    [
        ("cookiecutter.json", "2.0.0", "1.0.0", r"cookiecutter.json .* says '1.0.0'"),
        ("CHANGELOG.md", "2.0.0 (2026-12-01)", "Unreleased", r"CHANGELOG.md .* says 'Unreleased'"),
        ("pyproject.toml", "2.0.0", "2", "'2' is no version such as 1.2.3"),
    ],
)
def test_a_release_that_does_not_agree_is_not(
    name: str, old: str, new: str, why: str, clone: Path
) -> None:
    file = clone / name
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(AssertionError, match=why) as refused:
        run(*RELEASE, cwd=clone, **ME)
    assert "changes that are not committed" in str(refused.value)
    commit(clone)
    with pytest.raises(AssertionError, match=why):
        run(*RELEASE, cwd=clone, **ME)
    assert not run("git", "tag", cwd=clone)


def test_the_versions_of_today_agree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert json.loads((ROOT / "cookiecutter.json").read_text())["_version"] == version
    sections = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert sections[0] in (version, "Unreleased")
    released = [section for section in sections if section != "Unreleased"]
    assert released[:1] in ([version], [])
