"""What is installed follows what is pinned, and what is pinned follows what is asked for."""

import os
import re
import sys
from pathlib import Path

import pytest
from conftest import Cookiecutter, run

BIN = Path(sys.executable).parent


@pytest.fixture
def project(cookiecutter: Cookiecutter, tmp_path: Path) -> Path:
    assert cookiecutter(tmp_path).returncode == 0
    return tmp_path / "my-service"


def pins(project: Path) -> dict[str, str]:
    return dict(re.findall(r"^(\S+)==(\S+)", (project / "requirements-dev.txt").read_text(), re.M))


def imports(project: Path, what: str) -> str:
    return run(".venv/bin/python", "-c", what, cwd=project).strip()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_the_environment_is_brought_up_to_date(installer: str, project: Path) -> None:
    paths = [str(BIN)] if installer == "uv" else []
    # Neither of the two anywhere else.
    paths += [p for p in os.environ["PATH"].split(":") if not (Path(p) / "uv").exists()]

    def make(*targets: str) -> str:
        return run("make", *targets, cwd=project, PATH=":".join(paths))

    said = make("install")
    assert re.search("Collecting aiohttp|Installed [0-9]+ packages", said), (
        "it shows that it goes on"
    )
    mark = project / ".venv" / "mark"
    mark.touch()
    before = pins(project)

    pyproject = project / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace('"0.1.0"', '"0.2.0"'))
    make("install")
    version = "from importlib.metadata import version; print(version('my-service'))"
    assert imports(project, version) == "0.2.0"

    readme = (project / "README.md").read_text()
    commands = re.findall(r"^    (\S.*)$", readme.partition("A new dependency:")[2], re.M)[:2]
    for command in commands:
        said = run("sh", "-c", command, cwd=project, PATH=":".join(paths))
    assert "Resolved" in said, "it shows no progress"
    assert imports(project, "import httpx; print(httpx.__name__)") == "httpx"
    after = pins(project)
    assert {name: after[name] for name in before} == before
    assert {"httpx", "httpcore"} <= set(after) - set(before)

    run(".venv/bin/uv", "remove", "--frozen", "httpx", cwd=project)
    make("lock")
    assert pins(project) == before
    assert imports(project, "import importlib.util as u; print(u.find_spec('httpx'))") == "None"
    assert mark.exists(), ".venv was made anew"


@pytest.mark.timeout(900)
def test_lock_keeps_and_upgrade_takes_the_newest(project: Path) -> None:
    path = f"{BIN}:{os.environ['PATH']}"
    newest = pins(project)
    lower = ("--upgrade-package", "idna==3.10", "--upgrade-package", "pytest-timeout==2.3.1")
    makefile = project / "Makefile"
    text = makefile.read_text()
    makefile.write_text(text.replace("--no-annotate\n", f"--no-annotate {' '.join(lower)}\n"))
    run("make", "lock", cwd=project, PATH=path)
    makefile.write_text(text)
    older = pins(project)
    assert older == newest | {"idna": "3.10", "pytest-timeout": "2.3.1"}
    run("make", "lock", cwd=project, PATH=path)
    assert pins(project) == older
    run("make", "upgrade", cwd=project, PATH=path)
    assert pins(project)["idna"] != "3.10"
    assert pins(project)["pytest-timeout"] != "2.3.1"
    assert imports(project, "import idna; print(idna.__version__)") == pins(project)["idna"]


@pytest.mark.timeout(900)
def test_lock_changes_nothing_that_the_template_pins(template: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    run("cp", "-r", template, clone, cwd=tmp_path)
    run("git", "init", "--quiet", cwd=clone)
    run("git", "add", "--all", cwd=clone)
    (clone / ".venv").symlink_to(BIN.parent)
    path = f"{BIN}:{os.environ['PATH']}"
    run("make", "--old-file=.venv/installed", "lock", cwd=clone, PATH=path)
    assert run("git", "diff", "--stat", cwd=clone) == ""
