"""Processes that workers start: they share nothing with the service, and outlive it in peace."""

import http.client
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from conftest import Service, children, running, wait_for

Start = Callable[..., Service]

WAYS = ["fork", "thread", "pool", "mp-fork", "mp-spawn", "mp-forkserver", "popen", "exec"]
PATIENCE = 30  # seconds until something hangs
IGNORED = {signal.SIGPIPE, signal.SIGXFSZ}  # in every Python process
HANDLED = {  # by Python for Ctrl-C, by faulthandler, and by the C library, for threads
    signal.SIGINT,
    *(signal.SIGSEGV, signal.SIGFPE, signal.SIGABRT, signal.SIGBUS, signal.SIGILL),
}


@pytest.fixture
def orphans() -> Iterator[list[int]]:
    """Processes to be killed after the test."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def ended(pid: int) -> bool:
    return not running(pid)


def signals(pid: int, kind: str) -> set[int]:
    """Signals that a process ignores (SigIgn), catches (SigCgt) or blocks (SigBlk)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = int(next(line for line in lines if line.startswith(kind)).split()[1], 16)
    return {n for n in range(1, 32) if mask & 1 << n - 1}


def sockets(pid: int) -> set[str]:
    links = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            links.add(str(fd.readlink()))
    return {link for link in links if link.startswith("socket:")}


def sockets_of_port(port: int) -> set[str]:
    """Listeners and connections of this port that any process holds."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {row[9] for row in rows if row[1].endswith(f":{port:04X}")}
    return {f"socket:[{inode}]" for inode in inodes - {"0"}}


def sockets_of_path(path: Path) -> set[str]:
    """Listeners of this path, or in this folder, and what they have accepted."""
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return {
        f"socket:[{row[6]}]"
        for row in rows
        if row[7:] and path in (Path(row[7]), Path(row[7]).parent)
    }


def assert_stranger(pid: int, service: Service) -> None:
    wait_for(lambda: signals(pid, "SigCgt") <= HANDLED, PATIENCE)  # from its exec on
    assert signals(pid, "SigIgn") <= IGNORED
    assert not signals(pid, "SigBlk")
    ours = sockets_of_port(service.port) | sockets_of_port(service.admin_port)
    assert ours
    ours |= sockets_of_path(service.folder() / "compute.sock")
    others = sockets_of_path(service.folder() / "broadcast")
    assert others
    ours |= others
    assert not sockets(pid) & ours


def test_a_child_has_neither_our_signals_nor_our_sockets(
    start: Start, orphans: list[int], loop: str
) -> None:
    service = start("serve", EVENT_LOOP=loop, WEB_CONCURRENCY="1", PROBE_BOOT_CHILD="1")
    (worker,) = {service.get("/").json()["worker"] for _ in range(3)}
    born: dict[str, int] = {"boot": children(worker)[0]}
    for way in WAYS:
        born[way] = service.get(f"/probe/child/{way}").json()["child"]
    orphans += born.values()
    for pid in born.values():
        assert_stranger(pid, service)
    for way in ("fork", "pool", "popen"):
        pid = service.get(f"/probe/child-of-task/{way}/0").json()["child"]
        orphans.append(pid)
        assert_stranger(pid, service)
    for way, pid in born.items():
        os.kill(pid, signal.SIGTERM)
        wait_for(partial(ended, pid), PATIENCE)
        assert service.get("/").json()["worker"] == worker, way
    assert service.total("worker_exits_total") == 0


@pytest.mark.parametrize("way", ["fork", "pool"])
def test_what_orphans_hold_keeps_no_socket_and_no_client(
    start: Start, orphans: list[int], loop: str, way: str
) -> None:
    service = start(EVENT_LOOP=loop)
    workers, broadcast = service.workers(), service.folder() / "broadcast"
    client = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE)
    client.request("GET", f"/probe/child/{way}")
    client.getresponse().read()
    orphans += [child for worker in workers for child in children(worker)]
    assert orphans
    service.process.kill()
    service.process.wait()
    for worker in workers:
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    with closing(client):
        assert client.sock.recv(1) == b""  # the end of the connection
    wait_for(lambda: not any(map(running, workers)), PATIENCE)
    assert [pid for pid in orphans if running(pid)]
    wait_for(lambda: not sockets_of_port(service.port), PATIENCE)
    wait_for(lambda: not sockets_of_path(broadcast), PATIENCE)


def test_a_caller_does_not_wait_for_the_children_of_a_dead_task(
    start: Start, orphans: list[int]
) -> None:
    service = start("serve", WEB_CONCURRENCY="1", COMPUTE_TIMEOUT="100")
    (pool,) = (pid for pid in service.workers() if children(pid))
    (worker,) = children(pool)
    statuses: list[int] = []
    path = "/probe/child-of-task/fork/90"
    caller = Thread(target=lambda: statuses.append(service.get(path, timeout=90).status))
    caller.start()
    orphans += wait_for(lambda: children(worker), PATIENCE)
    os.kill(worker, signal.SIGKILL)
    caller.join(PATIENCE)
    assert statuses == [500]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_worker_that_somebody_else_ends_has_a_successor_at_once(
    start: Start, loop: str, number: signal.Signals
) -> None:
    service = start(EVENT_LOOP=loop, WEB_CONCURRENCY="1", GRACEFUL_TIMEOUT="60")
    answers: list[Any] = []

    def ask() -> None:
        with suppress(OSError, http.client.HTTPException):
            answers.append(service.get("/probe/sleep/5").json())

    slow = Thread(target=ask)
    slow.start()
    wait_for(lambda: service.total("http_requests_in_progress") == 1)
    (worker,) = service.workers()
    os.kill(worker, number)
    wait_for(lambda: service.get("/").json()["worker"] != worker)
    if number == signal.SIGTERM:
        assert running(worker)  # while the request of before goes on
    slow.join(PATIENCE)
    assert answers == ([{"worker": worker}] if number == signal.SIGTERM else [])
    wait_for(lambda: service.total("worker_exits_total", reason="left") == 1, PATIENCE)
    assert service.total("worker_exits_total") == 1


def test_a_compute_worker_that_somebody_else_ends_has_a_successor_at_once(start: Start) -> None:
    service = start("serve", WEB_CONCURRENCY="1")
    (pool,) = (pid for pid in service.workers() if children(pid))
    (worker,) = children(pool)
    slow = Thread(target=lambda: service.get("/probe/child-of-task/popen/5"))
    slow.start()
    wait_for(lambda: children(worker), PATIENCE)
    os.kill(worker, signal.SIGTERM)
    assert service.get("/primes/10").json()["count"] == 4
    assert running(worker)
    slow.join(PATIENCE)
    wait_for(lambda: service.total("compute_worker_exits_total", reason="left") == 1, PATIENCE)
