"""A real Redis, job workers, and a copy of the package under test that has tasks for them."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from conftest import HANGS, Service, copy_code, free_port, wait_for
from overlay import PACKAGE

SERVER = shutil.which("redis-server") or shutil.which("valkey-server")
LOST_AFTER = 2
FAST = {
    "JOBS_LOST_AFTER": str(LOST_AFTER),
    "JOBS_RETRY_DELAY": "0.2",
    "JOBS_TRIES": "3",
    "JOBS_TIMEOUT": "5",
    "REDIS_TIMEOUT": "3",
}

Start = Callable[..., Service]


class Redis:
    """A server on a port of its own that keeps what it has over a restart."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.folder = folder
        self.options = options
        self.start()

    @property
    def env(self) -> dict[str, str]:
        return {"REDIS_URL": f"redis://127.0.0.1:{self.port}/0", **FAST}

    def start(self) -> None:
        assert SERVER is not None
        port = ["--port", str(self.port)]
        kept = ["--dir", str(self.folder), "--appendonly", "yes", "--save", ""]
        # with everysec, writes wait for a slow disk, and are lost with the process
        kept += ["--appendfsync", "always"]
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen([SERVER, *port, *kept, *self.options], stdout=log)
        wait_for(self.answers)

    def answers(self) -> bool:
        try:
            return self.call("PING")[0] in "+-"  # - where it wants a password, or TLS
        except OSError:
            return False

    def call(self, *words: str) -> str:
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall((" ".join(words) + "\r\n").encode())
            return connection.recv(1 << 20).decode()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    if SERVER is None:
        missing = "neither redis-server nor valkey-server is installed"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    server = Redis(tmp_path)
    yield server
    server.kill()


@pytest.fixture(scope="session")
def job_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the tasks of job_tasks.py and an endpoint for them."""
    code = copy_code(tmp_path_factory.mktemp("jobs"))
    for name, into in (("job_tasks", "tasks.py"), ("job_probes", "app.py")):
        with (code / PACKAGE / into).open("a") as file:
            file.write(f"\n\nfrom . import {name}\n")
    return code


@pytest.fixture
def web(start: Start, redis: Redis, job_code: Path) -> Service:
    return start("web", code=job_code, WEB_CONCURRENCY="1", **redis.env)


StartWorker = Callable[..., Service]


@pytest.fixture
def worker(start: Start, redis: Redis, job_code: Path, tmp_path: Path) -> StartWorker:
    """worker() runs a job worker until the end of the test."""

    def run(*, wait: bool = True, **env: str) -> Service:
        # not in memory, where a worker that is killed would leave it
        folder = tmp_path / str(free_port())
        settings = {**redis.env, "PROMETHEUS_MULTIPROC_DIR": str(folder), **env}
        service = start("jobs", code=job_code, wait=False, **settings)
        if wait:
            wait_for(lambda: ready(service))
        return service

    return run


def ready(service: Service) -> bool:
    with suppress(OSError):
        return service.get("/readyz", admin=True).status == 200
    return False


def enqueue(web: Service, task: str, **arguments: object) -> str:
    response = web.request("POST", f"/probe/jobs/{task}", json.dumps(arguments).encode())
    assert response.status == 202, response.body
    return str(response.json()["id"])


def job(web: Service, job_id: str) -> Any:
    return web.get(f"/jobs/{job_id}").json()


def wait_for_end(web: Service, job_id: str) -> Any:
    wait_for(lambda: job(web, job_id)["state"] in ("done", "dead"))
    return job(web, job_id)


def command(redis: Redis, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", PACKAGE, *arguments],
        env=redis.env,
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )


def lines(trace: Path) -> list[str]:
    return trace.read_text().splitlines() if trace.exists() else []


class Firewall:
    """Stands before Redis, and can forget the connections that it has, without a word."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._open: list[socket.socket] = []
        self._forgotten: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        Thread(target=self._accept, daemon=True).start()

    def forget(self) -> None:
        self._forgotten.update(self._open)

    def close(self) -> None:
        self._listener.close()
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._open += [client, server]
                for pair in ((client, server), (server, client)):
                    Thread(target=self._forward, args=pair, daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if source not in self._forgotten:
                    target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def firewall(redis: Redis) -> Iterator[Firewall]:
    wall = Firewall(redis.port)
    yield wall
    wall.close()
