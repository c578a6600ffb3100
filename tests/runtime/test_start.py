"""A start that cannot work says why at once, and in one message."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from conftest import Service, free_port
from overlay import CODE, HAS_JOBS, PACKAGE, PROJECT

Start = Callable[..., Service]

settings: Any = import_module(f"{PACKAGE}.runtime.settings")

PORTS = {
    "serve": ["PORT", "ADMIN_PORT"],
    "web": ["PORT", "ADMIN_PORT"],
    "compute": ["PORT", "ADMIN_PORT"],
    "check --start": ["PORT", "ADMIN_PORT"],
}
if HAS_JOBS:
    PORTS["jobs"] = ["ADMIN_PORT"]


def run(
    *arguments: str, env: dict[str, str], through: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    ports = {"PORT": str(free_port()), "ADMIN_PORT": str(free_port())}
    return subprocess.run(
        [*through, sys.executable, "-m", PACKAGE, *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(CODE), **ports, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
        check=False,
    )


def refusal(*arguments: str, env: dict[str, str], through: tuple[str, ...] = ()) -> list[str]:
    """The lines that say why it does not start, without the first, which says that."""
    done = run(*arguments, env=env, through=through)
    assert done.returncode == 2, done.stdout
    first, *lines = done.stdout.splitlines()
    assert first == "cannot start:", done.stdout
    return lines


@pytest.fixture
def listen() -> Iterator[Callable[..., int]]:
    """listen() is a port that this process listens on."""
    with ExitStack() as stack:

        def listen(address: str = "127.0.0.1") -> int:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sock = stack.enter_context(socket.socket(family))
            sock.bind((address, 0))
            sock.listen()
            return int(sock.getsockname()[1])

        yield listen


@pytest.mark.parametrize(
    ("command", "host"),
    [(command, "0.0.0.0") for command in PORTS] + [("web", "127.0.0.1"), ("web", "::")],
)
def test_a_port_that_is_taken(listen: Callable[..., int], command: str, host: str) -> None:
    names = PORTS[command]
    taken = {name: str(listen()) for name in names}
    env = {"HOST": host, "ADMIN_HOST": host, "COMPUTE_URL": "http://127.0.0.1:1", **taken}
    lines = refusal(*command.split(), env=env)
    assert len(lines) == len(names)
    for line, name in zip(lines, names, strict=True):
        assert line.startswith(f"  {name}={taken[name]}: ")
        assert f"(process {os.getpid()})" in line
        assert "give another port" in line


def test_an_address_that_is_not_here() -> None:
    lines = refusal("web", env={"HOST": "192.0.2.1", "ADMIN_HOST": "2001:db8::1"})
    assert lines[0].startswith("  HOST='192.0.2.1': ")
    assert lines[1].startswith("  ADMIN_HOST='2001:db8::1': ")
    assert "0.0.0.0 or ::" in lines[0]


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv"
)
def test_a_privileged_port() -> None:
    through = ("setpriv", "--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service")
    (line,) = refusal("web", through=through, env={"PORT": "81"})
    assert line.startswith("  PORT=81: ")
    assert "NET_BIND_SERVICE" in line


def test_a_compute_socket_that_cannot_be(tmp_path: Path) -> None:
    taken, file = tmp_path / "taken.sock", tmp_path / "file"
    file.touch()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(taken))
        sock.listen()
        (line,) = refusal("compute", env={"COMPUTE_URL": f"unix:{taken}"})
        assert line.startswith(f"  COMPUTE_URL='unix:{taken}': ")
        assert f"(process {os.getpid()})" in line
        assert taken.is_socket()
    (line,) = refusal("serve", env={"COMPUTE_URL": f"unix:{file}"})
    assert "no socket" in line
    assert file.exists()
    (line,) = refusal("compute", env={"COMPUTE_URL": "unix:/nowhere/compute.sock"})
    assert line.startswith("  COMPUTE_URL='unix:/nowhere/compute.sock': ")


def test_a_compute_socket_that_a_dead_pool_left(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "compute.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    service = start("serve", COMPUTE_URL=f"unix:{path}", WEB_CONCURRENCY="1")
    assert service.get("/primes/10").json()["count"] == 4


def test_a_folder_whose_path_is_too_long_for_a_socket(tmp_path: Path) -> None:
    done = run("serve", env={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / ("ö" * 50))})
    assert done.returncode == 2
    assert "PROMETHEUS_MULTIPROC_DIR=" in done.stdout
    assert "too long" in done.stdout
    assert "Traceback" not in done.stdout


WRONG = [
    ("MAX_BODY", "0.5", "96Mi"),
    ("WORKER_MEMORY", "0.5", "96Mi"),
    ("MEMORY_LIMIT", "0", "96Mi"),
    ("MAX_BODY", "9" * 400, "96Mi"),
    ("COMPUTE_URL", "http://[::1", "http://host:port"),
    ("COMPUTE_URL", "http://h:99999", "http://host:port"),
    ("COMPUTE_URL", "http://h:0", "http://host:port"),
    ("COMPUTE_URL", "http://:80", "http://host:port"),
    ("COMPUTE_URL", "http://h/path", "http://host:port"),
    ("COMPUTE_URL", "http://me@h", "http://host:port"),
    ("COMPUTE_URL", "http://a b", "http://host:port"),
    ("COMPUTE_URL", "unix:/tmp/" + "ö" * 52, "107 bytes"),
    ("HOST", "fe80::1%eth0", "link-local"),
    ("HOST", "fe80::1", "link-local"),
    ("ADMIN_HOST", "::1%lo", "link-local"),
    ("LAME_DUCK", "nan", "a number from 0"),
    ("GRACEFUL_TIMEOUT", "NaN", "a number from 1"),
    ("WORKER_TIMEOUT", "inf", "a number from 2"),
    ("COMPUTE_TIMEOUT", "-inf", "a number from"),
]


@pytest.mark.parametrize(("name", "value", "rule"), WRONG)
def test_settings_that_would_fail_later(name: str, value: str, rule: str) -> None:
    with pytest.raises(settings.SettingsError) as error:
        settings.Settings.from_env({name: value})
    _, line = str(error.value).splitlines()
    assert line.startswith(f"  {name}={value!r}: ")
    assert rule in line


def test_a_drain_that_is_longer_than_we_are_given() -> None:
    env = {"LAME_DUCK": "30", "GRACEFUL_TIMEOUT": "20", "GRACE_PERIOD": "50"}
    with pytest.raises(settings.SettingsError, match=r"LAME_DUCK=30, GRACEFUL_TIMEOUT=20: .*=50;"):
        settings.Settings.from_env(env)
    settings.Settings.from_env({**env, "GRACE_PERIOD": "51"})


def test_the_longest_path_of_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path = path.with_name("x" * (107 - len(os.fsencode(path)) + 1))
    assert run("check", "--start", env={"COMPUTE_URL": f"unix:{path}"}).returncode == 0


def test_variables_that_look_like_a_setting_are_pointed_out(tmp_path: Path) -> None:
    code = tmp_path / "code"
    shutil.copytree(CODE, code)
    own = code / PACKAGE / "settings.py"
    own.write_text(own.read_text().replace("pass", 'greeting: str = runtime.setting("Hi", str)'))
    typos = {
        "WEB_CONCURENCY": "WEB_CONCURRENCY",
        "LOGLEVEL": "LOG_LEVEL",
        "GREETINGS": "GREETING",
        "port": "PORT",
    }
    innocent = {"HOSTNAME": "x", "KUBERNETES_PORT": "x", "REDIS_PORT": "x", "PORTAGE": "x"}
    env = {**dict.fromkeys(typos, "3"), **innocent, "PYTHONPATH": str(code)}
    found = json.loads(run("check", "--json", env=env).stdout)
    assert found["suspects"] == typos
    words = run("check", env=env).stdout
    assert "WEB_CONCURENCY: is it meant to be WEB_CONCURRENCY?" in words


def test_the_log_points_them_out(start: Start) -> None:
    service = start("web", WEB_CONCURENCY="3")
    assert service.says("WEB_CONCURENCY: is it meant to be WEB_CONCURRENCY?")


@pytest.mark.parametrize("command", [f"{sys.executable} -m {PACKAGE}", "script"])
def test_a_working_directory_that_is_gone(tmp_path: Path, command: str) -> None:
    if command == "script":
        command = str(Path(sys.executable).with_name(PROJECT.name))
    gone = tmp_path / "gone"
    gone.mkdir()
    done = subprocess.run(
        ["sh", "-c", f"cd {gone} && rmdir {gone} && exec {command} check"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(CODE)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2, done.stdout
    assert "the working directory was removed" in done.stdout
    assert "Traceback" not in done.stdout
