"""The service under test: real processes, real sockets, real signals."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from overlay import CODE, HAS_JOBS, PACKAGE

collect_ignore_glob = [] if HAS_JOBS else ["test_job*"]
pytest_plugins = ["job_kit"] if HAS_JOBS else []
SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
HANGS = 60.0  # seconds: no test asks how fast anything is, only whether it comes at all
SOAK = bool(os.environ.get("SOAK"))  # make soak: the same tests, longer


def wait_for(what: Callable[[], Any], seconds: float = HANGS) -> Any:
    """The first true value of `what`, asked every few milliseconds."""
    limit = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < limit, f"waited {seconds:g} s in vain"
        time.sleep(0.02)
    return value


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """The files of a key and of its certificate for `localhost`."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return key, certificate


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def children(pid: int) -> list[int]:
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [int(child) for child in listed]


def descendants(pid: int) -> list[int]:
    return [p for child in children(pid) for p in (child, *descendants(child))]


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


class Response:
    """An HTTP response, read whole."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    def json(self) -> Any:
        return json.loads(self.body)


class Service:
    """`python -m PACKAGE` with the given environment, on ports of its own."""

    def __init__(
        self,
        folder: Path,
        code: Path,
        command: str,
        env: dict[str, str],
        through: Sequence[str] = (),
    ) -> None:
        self.port, self.admin_port = free_port(), free_port()
        self.log = folder / f"service-{self.port}.log"
        self.notes = folder / f"notes-{self.port}"
        self.env = {
            "HOST": "127.0.0.1",
            "ADMIN_HOST": "127.0.0.1",
            "PORT": str(self.port),
            "ADMIN_PORT": str(self.admin_port),
            "WEB_CONCURRENCY": "2",
            "COMPUTE_CONCURRENCY": "1",
            "LAME_DUCK": "0",
            "GRACEFUL_TIMEOUT": "5",
            "PROBE_NOTES": str(self.notes),
            "PYTHONPATH": str(code),
            **env,
        }
        self.env = {name: value for name, value in self.env.items() if value}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*through, sys.executable, "-m", PACKAGE, command],
                env={"PATH": os.environ["PATH"], **self.env},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_live(self) -> None:
        wanted = int(self.env.get("WEB_CONCURRENCY", 1))
        wait_for(lambda: self.live() >= wanted or not running(self.process.pid))
        assert running(self.process.pid), self.log.read_text()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        *,
        admin: bool = False,
        timeout: float = HANGS,
    ) -> Response:
        """One request on a connection of its own."""
        port = self.admin_port if admin else self.port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        try:
            connection.request(method, path, body, {"Connection": "close", **(headers or {})})
            return Response(connection.getresponse())
        finally:
            connection.close()

    def get(self, path: str, headers: dict[str, str] | None = None, **options: Any) -> Response:
        return self.request("GET", path, headers=headers, **options)

    def scrape(self) -> list[tuple[str, dict[str, str], float]]:
        """Every sample that /metrics shows: its name, its labels, its value."""
        response = self.get("/metrics", admin=True)
        text = response.body.decode()
        assert response.status == 200, text
        samples = [SAMPLE.fullmatch(line) for line in text.splitlines() if line[0] != "#"]
        return [(s[1], dict(LABEL.findall(s[2] or "")), float(s[3])) for s in samples if s]

    def total(self, name: str, /, **labels: str) -> float:
        """The sum of the samples of this name that have these labels."""
        return sum(
            value
            for found, its, value in self.scrape()
            if found == name and labels.items() <= its.items()
        )

    def live(self) -> float:
        try:
            return self.total("workers", state="live")
        except OSError:
            return 0

    def workers(self) -> list[int]:
        """The processes of the web workers (and, with `serve`, of the compute arbiter)."""
        return children(self.process.pid)

    def processes(self) -> list[int]:
        return [self.process.pid, *descendants(self.process.pid)]

    def folder(self) -> Path:
        """Where the processes count."""
        fds = Path(f"/proc/{self.process.pid}/fd").iterdir()
        return next(p for fd in fds if (p := fd.resolve()).name == "slots.lock").parent

    def says(self, text: str) -> bool:
        return text in self.log.read_text()

    def ended(self, timeout: float = HANGS) -> int:
        """The exit code, when it has ended by itself."""
        return self.process.wait(timeout)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = HANGS) -> int:
        """Send a signal and wait for the exit code."""
        self.process.send_signal(number)
        return self.ended(timeout)

    def kill(self) -> None:
        """End everything that is left of it, the folder included that it could not remove."""
        if self.process.poll() is not None:
            return  # its number may be another's by now
        with suppress(OSError, StopIteration):
            if not self.env.get("PROMETHEUS_MULTIPROC_DIR"):
                shutil.rmtree(self.folder())
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="session")
def code() -> Path:
    """The package under test, to be put on PYTHONPATH."""
    return CODE


def copy_code(folder: Path) -> Path:
    """A copy of it that a test may change."""
    shutil.copytree(CODE, folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    return folder


@pytest.fixture
def start(tmp_path: Path, code: Path) -> Iterator[Callable[..., Service]]:
    """start("serve", WEB_CONCURRENCY="3") runs a service until the end of the test."""
    started: list[Service] = []

    def run(
        command: str = "web",
        /,
        code: Path = code,
        wait: bool = True,
        through: Sequence[str] = (),
        **env: str,
    ) -> Service:
        service = Service(tmp_path, code, command, env, through)
        started.append(service)
        if wait:
            service.wait_until_live()
        return service

    yield run
    for service in started:
        service.kill()


@pytest.fixture(params=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest) -> str:
    """Each test that names it runs on both event loops."""
    return str(request.param)
