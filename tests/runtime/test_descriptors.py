"""Descriptors that run out, files and sockets that somebody removes: it heals, or it is said."""

import http.client
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import Service, free_port, wait_for
from overlay import PACKAGE
from test_telemetry import fill, small_disk  # noqa: F401

Start = Callable[..., Service]

METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "TRACE")
PATHS = ("/", "/greet", "/greet/you", "/probe/log", "/nowhere")


def ask_for_everything(service: Service) -> int:
    """Many series; how many requests that were."""
    for method in METHODS:
        for path in PATHS:
            assert service.request(method, path).status in (200, 400, 404, 405)
    return len(METHODS) * len(PATHS)


def complete(service: Service, requests: int) -> bool:
    """Whether all is counted, and said to be."""
    with suppress(OSError, AssertionError):
        return (
            service.total("http_requests_total") == requests
            and service.total("http_request_duration_seconds_count") == requests
            and service.total("metrics_degraded") == 0
        )
    return False


def test_counting_heals_after_descriptors_ran_out(start: Start, loop: str) -> None:
    service = start(WEB_CONCURRENCY="1", EVENT_LOOP=loop)
    (worker,) = service.workers()
    client = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    client.request("GET", "/")
    client.getresponse().read()
    _, hard = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (3, hard))
    sent = 1
    for path in PATHS:
        for method in METHODS:
            client.request(method, path)
            assert client.getresponse().read() is not None
            sent += 1
    wait_for(lambda: service.says("metrics are incomplete"))
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (hard, hard))
    client.close()
    wait_for(lambda: complete(service, sent), 30)
    assert service.says("metrics are complete again")
    sent += ask_for_everything(service)
    wait_for(lambda: complete(service, sent), 30)
    os.kill(worker, signal.SIGKILL)  # what was kept aside is in the files now
    wait_for(lambda: service.live() == 1 and service.workers() != [worker], 30)
    assert complete(service, sent)


def test_counting_heals_after_the_disk_was_full(start: Start, small_disk: Path) -> None:  # noqa: F811
    service = start(PROMETHEUS_MULTIPROC_DIR=str(small_disk))
    fill(small_disk)
    sent = ask_for_everything(service)
    wait_for(lambda: service.total("metrics_degraded") == 1)
    (small_disk / "filler").unlink()
    wait_for(lambda: complete(service, sent), 30)
    assert service.says("metrics are complete again")
    sent += ask_for_everything(service)
    wait_for(lambda: complete(service, sent), 30)


def well(service: Service, sent: int) -> bool:
    with suppress(OSError, KeyError):
        return service.get("/primes/100").status == 200 and counted(service, sent)
    return False


def counted(service: Service, sent: int) -> bool:
    """Whether the requests are counted, whatever others there were."""
    in_all = service.total("http_requests_total")
    others = service.total("http_requests_total", route="/primes/{limit}")
    return in_all - others == sent and service.total("metrics_degraded") == 0


@pytest.mark.parametrize(
    "what", ["*", "counts_*.keys", "counts_*.cells", "gauges_*", "slots.lock", "compute.sock"]
)
def test_what_somebody_removes_is_made_anew(start: Start, what: str) -> None:
    service = start("serve")
    folder = service.folder()
    sent = ask_for_everything(service)
    wait_for(lambda: well(service, sent), 30)
    if what == "*":
        shutil.rmtree(folder)
    for path in folder.glob(what):
        path.unlink()
    sent += ask_for_everything(service)
    wait_for(lambda: well(service, sent), 60)
    if what in ("*", "compute.sock"):
        assert service.log.read_text().count("compute.sock was removed: made anew") == 1
    if what not in ("compute.sock", "slots.lock"):
        assert service.says("somebody has removed files of metrics")
    victim = service.workers()[-1]
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: victim not in service.workers() and service.live() == 2, 30)
    sent += ask_for_everything(service)
    wait_for(lambda: well(service, sent), 60)
    assert service.stop() == 0
    assert not folder.exists()


def test_a_pool_that_cannot_be_reached_is_said_once(start: Start, tmp_path: Path) -> None:
    service = start(COMPUTE_URL=f"unix:{tmp_path}/compute.sock")
    for _ in range(3):
        assert service.get("/primes/100").status == 503
    assert 1 <= service.log.read_text().count("no compute pool, tasks get 503") <= 2  # workers
    pool = start("compute", wait=False, COMPUTE_URL=f"unix:{tmp_path}/compute.sock")
    wait_for(lambda: service.get("/primes/100").status == 200, 30)
    assert service.says("the compute pool is back")
    assert pool.stop() == 0


def test_the_soft_limit_on_open_files_is_raised_and_said(start: Start) -> None:
    service = start(through=["sh", "-c", 'ulimit -Sn 256; exec "$@"', "-"])
    for pid in service.processes():
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        assert soft == hard > 256
    assert service.says("to which the soft one of 256 is raised")
    found = subprocess.run(
        ["sh", "-c", f"ulimit -n 300; ulimit -Sn 256; exec {sys.executable} -m {PACKAGE} check"],
        env={**os.environ, **service.env},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "open files of each process: 300, because" in found.stdout
    found = subprocess.run(
        [sys.executable, "-m", PACKAGE, "check", "--json"],
        env={**os.environ, **service.env},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(found.stdout)["open_files"] == hard


def test_folders_of_runs_that_were_killed_whole_are_removed(start: Start) -> None:
    dead, living = start(), start("serve")
    folder, other = dead.folder(), living.folder()
    old = time.time() - 3600
    for path in (folder, other):
        os.utime(path / "slots.lock", (old, old))
    for pid in reversed(dead.processes()):
        os.kill(pid, signal.SIGKILL)
    dead.process.wait()
    assert folder.exists()
    start()
    assert not folder.exists()
    assert other.exists()
    assert living.get("/primes/100").status == 200


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="there is no IPv6")
@pytest.mark.parametrize("command", ["serve", "web", "compute"])
def test_two_colons_mean_every_address(start: Start, command: str) -> None:
    url = f"http://127.0.0.1:{free_port()}" if command == "compute" else ""
    service = start(command, wait=False, HOST="::", ADMIN_HOST="::", COMPUTE_URL=url)

    def alive(host: str) -> bool:
        connection = http.client.HTTPConnection(host, service.admin_port, timeout=30)
        try:
            connection.request("GET", "/livez")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    for host in ("127.0.0.1", "::1"):
        wait_for(lambda host=host: alive(host), 30)  # type: ignore[misc]
    for host in ("127.0.0.1", "::1"):
        socket.create_connection((host, service.port), timeout=30).close()
