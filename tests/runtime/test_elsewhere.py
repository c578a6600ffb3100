"""Not on Linux: without what its kernel alone has, the service runs, and says what is missing."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Service
from overlay import PACKAGE, PROJECT

PRETEND = """
import os, signal, socket, sys
# The libraries are those of Linux.
import aiohttp.web, gunicorn.arbiter, gunicorn.workers.sync, uvloop
sys.platform = "darwin"
for module, names in TAKEN.items():
    for name in names:
        vars(sys.modules[module]).pop(name, None)
"""
# What Python has on Linux, and not on macOS.
LINUX_ONLY = {
    "os": [name for name in dir(os) if name.startswith(("sched_", "memfd", "eventfd", "EFD_"))]
    + ["pipe2", "splice", "posix_fallocate", "pidfd_open", "unshare", "setns", "O_TMPFILE"],
    "socket": ["SOCK_NONBLOCK", "SOCK_CLOEXEC", "TCP_INFO", "TCP_USER_TIMEOUT", "SO_PEERCRED"],
    "signal": ["sigtimedwait", "sigwaitinfo", "SIGRTMIN", "SIGRTMAX", "SIGPWR", "SIGSTKFLT"],
}
WITHOUT_PROC = (
    "unshare",
    "--mount",
    "sh",
    "-ec",
    'mount -t tmpfs none /proc; mount -t tmpfs -o ro none /dev/shm; exec "$@"',
    "-",
)


@pytest.fixture
def on_macos(code: Path, tmp_path: Path) -> str:
    """The PYTHONPATH with which Python takes this machine for another."""
    (tmp_path / "sitecustomize.py").write_text(f"TAKEN = {LINUX_ONLY!r}\n{PRETEND}")
    return f"{tmp_path}:{code}"


def no_mounts() -> bool:
    return subprocess.run([*WITHOUT_PROC, "true"], capture_output=True, check=False).returncode != 0


@pytest.mark.skipif(no_mounts(), reason="only root takes /proc away")
def test_runs_without_what_only_linux_has(
    start: Callable[..., Service], on_macos: str, loop: str
) -> None:
    service = start("serve", through=WITHOUT_PROC, PYTHONPATH=on_macos, EVENT_LOOP=loop)
    assert service.says("this is no Linux, so it is for development only")
    assert service.get("/primes/100").json()["count"] == 25
    for _ in range(10):
        assert service.get("/").status == 200
    assert service.total("http_requests_total", status="200") == 11
    assert service.total("process_resident_memory_bytes") == 0
    assert service.stop() == 0


@pytest.mark.skipif(no_mounts(), reason="only root takes /proc away")
def test_counts_the_cpus_of_the_machine(on_macos: str) -> None:
    checked = subprocess.run(
        [*WITHOUT_PROC, sys.executable, "-m", PACKAGE, "check"],
        env=os.environ | {"PYTHONPATH": on_macos},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = f"web workers: {os.cpu_count()}, because this machine, which is no Linux, has "
    assert checked.stdout.startswith(expected)


def test_is_typed_for_macos_and_the_newest_python() -> None:
    mypy = [sys.executable, "-m", "mypy", "--platform", "darwin", "--no-incremental"]
    mypy += ["--python-version", "3.14"]
    done = subprocess.run(mypy, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_windows_is_refused_in_the_first_line(code: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.platform = 'win32'; import {PACKAGE}.__main__"],
        env=os.environ | {"PYTHONPATH": str(code)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("This does not run on Windows itself: run it in WSL")
    assert "Traceback" not in done.stderr
    make = subprocess.run(
        ["make", "install", "OS=Windows_NT"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert make.returncode == 2
    assert "This does not run on Windows itself: run it in WSL" in make.stderr.splitlines()[0]
