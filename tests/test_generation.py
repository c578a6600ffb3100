"""The ways to generate a project, and what one can do with it at once."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from conftest import Answers, Cookiecutter, require, run
from test_answers import DEFAULT, RICHEST

Bake = Callable[..., Path]


def commits(project: Path) -> list[str]:
    return run("git", "log", "--format=%s", cwd=project).splitlines()


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


def get(url: str) -> str:
    with urlopen(url, timeout=10) as response:
        text: str = response.read().decode()
    return text


def test_from_a_path(cookiecutter: Cookiecutter, tmp_path: Path) -> None:
    done = cookiecutter(tmp_path)
    assert done.returncode == 0, done.stdout
    assert "    cd my-service\n    make test\n    make run\n" in done.stdout
    (commit,) = commits(tmp_path / "my-service")
    assert re.fullmatch(r"Generate the project from aiohttp-mp-template [\d.]+", commit)
    assert not run("git", "status", "--porcelain", cwd=tmp_path / "my-service")


def test_from_a_git_url(cookiecutter: Cookiecutter, template: Path, tmp_path: Path) -> None:
    repository = tmp_path / "template.git"
    run("git", "init", "--quiet", "--bare", repository, cwd=tmp_path)
    work = ("git", f"--git-dir={repository}", f"--work-tree={template}", "-c", "user.name=x")
    run(*work, "add", "--all", cwd=template)
    run(*work, "-c", "user.email=x", "commit", "--quiet", "--message", "x", cwd=template)
    out = tmp_path / "out"
    out.mkdir()
    done = cookiecutter(out, source=f"file://{repository}")
    assert done.returncode == 0, done.stdout
    assert (out / "my-service" / "pyproject.toml").exists()


def test_asks_in_words_and_in_order(cookiecutter: Cookiecutter, tmp_path: Path) -> None:
    given = ["Ask Me", "", "", "", "", "", "2", "", "", "2", "3"]
    done = cookiecutter(tmp_path, stdin="\n".join(given) + "\n")
    assert done.returncode == 0, done.stdout
    assert [int(number) for number in re.findall(r"\[(\d+)/11\]", done.stdout)] == [*range(1, 12)]
    keys = json.loads((Path(__file__).parents[1] / "cookiecutter.json").read_text())
    for key in keys:
        assert f"] {key} (" not in done.stdout, f"{key} is asked by its key"
    project = tmp_path / "ask-me"
    assert "streaq" in (project / "requirements.txt").read_text()
    assert (project / "src" / "ask_me").is_dir()
    assert not (project / ".github").exists()


def test_needs_no_network(cookiecutter: Cookiecutter, template: Path, tmp_path: Path) -> None:
    alone = [require("unshare"), "--map-root-user", "--net"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine gives nobody a network of their own")
    command = Path(sys.executable).with_name("cookiecutter")
    run(*alone, command, "--no-input", template, cwd=tmp_path, HOME=str(tmp_path))
    assert (tmp_path / "my-service" / "requirements.txt").exists()


@pytest.fixture
def released(tmp_path: Path) -> Callable[[str], Path]:
    """A release of cookiecutter, in an environment of its own."""

    def released(version: str) -> Path:
        run(sys.executable, "-m", "venv", "venv", cwd=tmp_path)
        run("venv/bin/pip", "install", "--quiet", f"cookiecutter=={version}", cwd=tmp_path)
        return tmp_path / "venv" / "bin" / "cookiecutter"

    return released


def test_with_the_oldest_cookiecutter(
    released: Callable[[str], Path], template: Path, tmp_path: Path
) -> None:
    run(released("2.6.0"), "--no-input", template, cwd=tmp_path, HOME=str(tmp_path))
    assert (tmp_path / "my-service" / "requirements.txt").exists()


@pytest.mark.parametrize("version", ["1.7.3", "2.5.0"])
def test_an_older_cookiecutter_is_refused(
    version: str, released: Callable[[str], Path], template: Path, tmp_path: Path
) -> None:
    refused = subprocess.run(
        [released(version), "--no-input", template],
        cwd=tmp_path,
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode != 0
    assert f"this is cookiecutter {version}, and this template needs 2.6 or newer" in refused.stderr
    assert "project_name='My Service' \\\n" in refused.stderr
    assert not (tmp_path / "my-service").exists()


def test_inside_a_repository_it_makes_none(cookiecutter: Cookiecutter, tmp_path: Path) -> None:
    run("git", "init", "--quiet", cwd=tmp_path)
    assert cookiecutter(tmp_path).returncode == 0
    assert not (tmp_path / "my-service" / ".git").exists()


def test_without_git(cookiecutter: Cookiecutter, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    done = cookiecutter(out, PATH=str(tmp_path))
    assert done.returncode == 0, done.stdout
    assert not (out / "my-service" / ".git").exists()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("answers", [DEFAULT, RICHEST], ids=["default", "richest"])
def test_passes_its_own_tests(answers: Answers, installed: Bake) -> None:
    project = installed(**answers)
    run("make", "lint", cwd=project)
    run("make", "test", cwd=project)


@pytest.mark.parametrize("answers", [DEFAULT, RICHEST], ids=["default", "richest"])
def test_starts_and_answers(answers: Answers, installed: Bake, tmp_path: Path) -> None:
    project = installed(**answers)
    port, admin = free_port(), free_port()
    ports = {"PORT": port, "ADMIN_PORT": admin, "WEB_CONCURRENCY": "2", "LAME_DUCK": "0"}
    log = tmp_path / "log"
    with log.open("w") as output:
        service = subprocess.Popen(
            ["make", "run"],
            cwd=project,
            env=os.environ | ports,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        for _ in range(600):
            with suppress(URLError):
                get(f"http://127.0.0.1:{admin}/readyz")
                break
            time.sleep(0.1)
        for _ in range(100):
            answer = json.loads(get(f"http://127.0.0.1:{port}/"))
            assert (answer["service"], answer["version"]) == (project.name, "0.1.0")
        # A response arrives a moment before it is counted.
        for _ in range(20):
            metrics = get(f"http://127.0.0.1:{admin}/metrics")
            counted = re.findall(r'^http_requests_total\{.*route="/".*\} (\S+)$', metrics, re.M)
            if sum(map(float, counted)) >= 100:
                break
            time.sleep(0.05)
        assert sum(map(float, counted)) == 100
        page = (project / "docs" / "metrics.md").read_text()
        documented = set(re.findall(r"`([a-z_]+)`", page))
        assert set(re.findall(r"^# TYPE (\S+)", metrics, re.M)) <= documented
        assert f"http://localhost:{port}/" in log.read_text()
    except BaseException:
        print(log.read_text())
        raise
    finally:
        os.killpg(service.pid, signal.SIGINT)
        service.wait(30)


def test_install_is_quick_and_repeatable(installed: Bake) -> None:
    project = installed(**DEFAULT)
    assert "Nothing to be done" in run("make", "install", cwd=project)


def test_installs_with_uv_where_it_is_there(bake: Bake) -> None:
    project = bake(ci="none")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    assert "uv pip install" in run("make", "install", cwd=project, PATH=path)
    run(".venv/bin/python", "-c", f"import {next((project / 'src').iterdir()).name}", cwd=project)


def test_a_page_lists_every_setting_with_its_default(installed: Bake) -> None:
    project = installed(**DEFAULT)
    rows = re.findall(
        r"^\| `([A-Z_]+)` \| (?:`(.*?)` )?\|",
        (project / "docs" / "settings.md").read_text(),
        re.MULTILINE,
    )
    (package,) = (project / "src").iterdir()
    read = (
        f"import json, sys; from {package.name}.settings import Settings;"
        "print(json.dumps(Settings.from_env(json.loads(sys.argv[1])).as_json()))"
    )
    python = project / ".venv" / "bin" / "python"
    unset, listed = (
        json.loads(run(python, "-c", read, json.dumps(env), cwd=project))
        for env in ({}, dict(rows))
    )
    assert listed == unset
    assert sorted(dict(rows)) == sorted(unset)
    example = (project / ".env.example").read_text()
    assert sorted(re.findall("^# ([A-Z_]+)=", example, re.MULTILINE)) == sorted(unset)
