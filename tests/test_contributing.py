"""What CONTRIBUTING.md and .ci/run promise to somebody with a fresh clone."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, require, run


def ci_run(clone: Path, path: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [clone / ".ci" / "run"],
        env=os.environ | {"PATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A machine with next to nothing: its commands are those put here."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("bash", "dirname", "env"):
        (commands / name).symlink_to(require(name))
    return commands


def provide(path: Path, *names: str) -> None:
    for name in names:
        (path / name).write_text("#!/bin/sh\n")
        (path / name).chmod(0o755)


def test_a_fresh_clone_says_what_ci_needs(template: Path, path: Path) -> None:
    done = ci_run(template, path)
    assert done.returncode == 1
    assert done.stderr == (
        "Neither docker nor podman answers: install one of them, or start its service.\n"
    )
    commands = re.findall(r"\[([a-z-]+)\]=", (template / ".ci" / "run").read_text())
    provide(path, "podman", *(command for command in commands if command != "redis-server"))
    done = ci_run(template, path)
    assert done.returncode == 1
    assert done.stderr == (
        "Install redis-server, or run this as root on Debian, where it installs them.\n"
    )
    (path / "make").write_text('#!/bin/sh\necho "make $*"\n')
    provide(path, "redis-server")
    (path / "make").chmod(0o755)
    done = ci_run(template, path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "make test\nmake lint\n" in done.stdout


def test_every_target_that_is_named_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text() + (ROOT / "README.md").read_text()
    here = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    (project,) = ROOT.glob("*cookiecutter*/Makefile")
    there = set(re.findall(r"^([a-z-]+):", project.read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^    |`)make ([a-z-]+)", text, re.MULTILINE))
    assert named <= here | there
    assert (
        set(re.findall(r"^    make ([a-z-]+)", (ROOT / "CONTRIBUTING.md").read_text(), re.M))
        <= here
    )


def test_every_file_that_is_named_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for name in re.findall(r"^\| `(\S+?)` \|", text, re.MULTILINE):
        assert (ROOT / name).exists(), name


def test_every_target_has_a_line_in_the_help() -> None:
    assert "make release " in run("make", cwd=ROOT)
