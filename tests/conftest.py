"""What the tests of the template share: generating projects, and the programs of this machine."""

import functools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, Protocol

import pytest

ROOT = Path(__file__).parents[1]

Answers = dict[str, str]
Run = subprocess.CompletedProcess[str]


class Cookiecutter(Protocol):
    def __call__(
        self,
        output: Path,
        answers: Answers | None = None,
        *,
        source: str = ...,
        stdin: str = ...,
        **environment: str,
    ) -> Run: ...


def unavailable(what: str) -> NoReturn:
    """Skips the test, but fails it in CI, where everything must be there."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


def require(command: str) -> str:
    """The path of a command that the test cannot do without."""
    path = shutil.which(command)
    return path or unavailable(f"{command} is not installed")


def wait_for(what: Callable[[], Any], seconds: float = 30) -> Any:
    """The first true value of `what`, asked every few milliseconds."""
    limit = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < limit, f"waited {seconds:g} s in vain"
        time.sleep(0.02)
    return value


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command} in {cwd} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="session")
def engine() -> str:
    """The container engine of this machine: docker where its engine answers, else podman."""
    for name in ("docker", "podman"):
        if (
            shutil.which(name)
            and subprocess.run([name, "info"], capture_output=True, check=False).returncode == 0
        ):
            return name
    unavailable("neither docker nor podman answers")


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template as a clone would have it: without what tools left in the work tree."""
    copy = tmp_path_factory.mktemp("template")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in listed.split("\0"):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="session")
def cookiecutter(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Cookiecutter:
    """Runs the command as somebody new would: no settings of their own, unknown to git."""
    own = {"HOME": str(tmp_path_factory.mktemp("home")), "GIT_CONFIG_GLOBAL": os.devnull}

    def cookiecutter(
        output: Path,
        answers: Answers | None = None,
        *,
        source: str = str(template),
        stdin: str = "",
        **environment: str,
    ) -> Run:
        given = [f"{key}={value}" for key, value in (answers or {}).items()]
        return subprocess.run(
            [
                Path(sys.executable).with_name("cookiecutter"),
                source,
                *([] if stdin else ["--no-input"]),
                *given,
            ],
            cwd=output,
            env=os.environ | own | {"PWD": str(output)} | environment,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    return cookiecutter


@pytest.fixture(scope="session")
def bake(
    cookiecutter: Cookiecutter, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """The project that these answers generate, once for all tests: leave it as it is."""

    @functools.cache
    def bake(**answers: str) -> Path:
        output = tmp_path_factory.mktemp("bake")
        done = cookiecutter(output, answers)
        assert done.returncode == 0, done.stdout
        (project,) = output.iterdir()
        return project

    return bake


@pytest.fixture(scope="session")
def installed(bake: Callable[..., Path]) -> Callable[..., Path]:
    """The same with its own .venv, made by its own `make install`."""

    @functools.cache
    def installed(**answers: str) -> Path:
        project = bake(**answers)
        run("make", "install", cwd=project)
        return project

    return installed


@pytest.fixture(scope="session")
def equipped(installed: Callable[..., Path]) -> Callable[..., Path]:
    """The same with what the runtime's tests need beyond the project's own."""

    @functools.cache
    def equipped(**answers: str) -> Path:
        project = installed(**answers)
        uv = Path(sys.executable).with_name("uv")
        python = project / ".venv" / "bin" / "python"
        tools = ROOT / "tests" / "runtime" / "requirements.txt"
        run(uv, "pip", "install", "-qp", python, "--require-hashes", "-r", tools, cwd=project)
        return project

    return equipped
