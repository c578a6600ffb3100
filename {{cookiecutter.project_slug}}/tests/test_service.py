"""The service as its launcher starts it: what holds whatever the Application does."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest

(PACKAGE,) = (p.parent.name for p in Path(__file__).parents[1].glob("src/*/__main__.py"))
COMMAND = [sys.executable, "-m", PACKAGE]
PATIENCE = 60.0  # seconds, so that it only tells a service that hangs from a machine that is slow


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Service:
    """Two web workers and a compute worker, on ports of their own."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self.port, self.admin_port = free_port(), free_port()
        own = {
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "ADMIN_HOST": "127.0.0.1",
            "ADMIN_PORT": str(self.admin_port),
            "WEB_CONCURRENCY": "2",
            "COMPUTE_CONCURRENCY": "1",
            "LAME_DUCK": "0",
            "PROMETHEUS_MULTIPROC_DIR": "",
        }
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                COMMAND,
                env={**os.environ, **environment, **own},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def get(self, path: str, port: int) -> tuple[int, str]:
        """The status and the body that it answers with, on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        finally:
            connection.close()

    def total(self, metric: str) -> float:
        """The sum of a metric over all its labels."""
        status, text = self.get("/metrics", self.admin_port)
        assert status == 200, text
        found = re.findall(rf"^{metric}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, found))

    def serves(self) -> bool:
        try:
            return self.total("worker_boots_total") == 2
        except OSError:
            return False

    def wait_until_it_serves(self) -> None:
        limit = time.monotonic() + PATIENCE
        while not self.serves():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < limit, self.log.read_text()
            time.sleep(0.05)

    def stop(self) -> int:
        """End it as Kubernetes does; the exit code."""
        self.process.terminate()
        return self.process.wait(PATIENCE)


Start = Callable[[], Service]


@pytest.fixture(scope="module")
def start(
    starts: None, environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Start]:
    """start() is one more service, which serves until the end of these tests."""
    started: list[Service] = []

    def one_more() -> Service:
        service = Service(environment, tmp_path_factory.mktemp("service") / "log")
        started.append(service)
        service.wait_until_it_serves()
        return service

    yield one_more
    for service in started:
        try:
            service.stop()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(service.process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def service(start: Start) -> Service:
    """One for all tests that only ask it."""
    return start()


def test_gets_ready(service: Service) -> None:
    for probe in ("/startupz", "/readyz", "/livez"):
        assert service.get(probe, service.admin_port) == (200, "ok\n")


def test_metrics_sum_over_the_workers_whichever_answers(service: Service) -> None:
    before = service.total("http_requests_total")
    for _ in range(20):
        service.get("/", service.port)
    for _ in range(10):
        assert service.total("http_requests_total") == before + 20
        assert service.total("worker_boots_total") == 2


def test_sigterm_ends_it_with_0(start: Start) -> None:
    service = start()
    assert service.stop() == 0, service.log.read_text()


def test_wrong_settings_stop_it_and_are_named(environment: Mapping[str, str]) -> None:
    wrong = {"PORT": "none", "EVENT_LOOP": "loop"}
    ended = subprocess.run(
        COMMAND,
        env={**os.environ, **environment, **wrong},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 2
    for name, value in wrong.items():
        assert f"{name}={value!r}" in ended.stderr


def test_env_example_names_every_setting_of_the_runtime() -> None:
    settings = import_module(f"{PACKAGE}.runtime").Settings()
    example = (Path(__file__).parents[1] / ".env.example").read_text()
    assert set(settings.as_json()) <= set(re.findall("^# ([A-Z_]+)=", example, re.MULTILINE))
