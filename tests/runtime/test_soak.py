"""Random faults under counted load: who was not in flight in a killed worker is answered."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from conftest import SOAK, Service, wait_for
from load import Load
from overlay import HAS_JOBS
from test_telemetry import fill, small_disk  # noqa: F401

Start = Callable[..., Service]

SECONDS = 600 if SOAK else 0  # and until each fault has had its turn
CLIENTS = 4

pytestmark = pytest.mark.timeout(SECONDS + 300)


class Reader:
    """Reads standard output of the service, as long as it is wanted."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "stdout"
        os.mkfifo(self.path)
        self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)

    @contextmanager
    def following(self) -> Iterator[None]:
        enough = Event()

        def follow() -> None:
            while not enough.wait(0.02):
                try:
                    while os.read(self._fd, 1 << 20):
                        pass
                except BlockingIOError:
                    pass

        thread = Thread(target=follow)
        thread.start()
        try:
            yield
        finally:
            enough.set()
            thread.join()

    def close(self) -> None:
        os.close(self._fd)

    def open(self) -> None:
        self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)


class Faults:
    """What goes wrong, one thing after the other, and how it is well again."""

    def __init__(self, service: Service, disk: Path, reader: Reader, firewall: Any) -> None:
        self.service, self.disk, self.reader, self.firewall = service, disk, reader, firewall
        self.kills = 0
        self.asked = 0  # requests of our own

    def well(self) -> None:
        wait_for(lambda: self.service.live() == 2, 60)
        wait_for(lambda: self.service.total("metrics_degraded") == 0, 60)

    def ask(self, method: str, path: str) -> int:
        self.asked += 1
        return self.service.request(method, path).status

    def kill(self) -> None:
        victim = random.choice(self.service.workers())
        os.kill(victim, signal.SIGKILL)
        self.kills += 1
        wait_for(lambda: victim not in self.service.workers(), 60)

    def stop_and_continue(self) -> None:
        processes = self.service.processes()
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in processes:
                os.kill(pid, number)
            time.sleep(random.uniform(0.1, 3))

    def fork(self) -> None:
        assert self.ask("GET", "/probe/orphan") == 200

    def full_disk(self) -> None:
        fill(self.disk)
        for _ in range(10):
            assert self.ask("PATCH", f"/{random.random()}") == 404
        (self.disk / "filler").unlink()

    def closed_pipe(self) -> None:
        self.reader.close()
        time.sleep(random.uniform(0.1, 2))
        self.reader.open()

    def silent_redis(self) -> None:
        wait_for(lambda: self.ask("POST", "/primes/10") == 202, 60)
        self.firewall.forget()
        for _ in range(6):  # in each worker the first finds out
            assert self.ask("POST", "/primes/10") in (202, 503)
        wait_for(lambda: self.ask("POST", "/primes/10") == 202, 60)


def test_no_fault_costs_anybody_else_an_answer_or_a_count(
    start: Start,
    small_disk: Path,  # noqa: F811
    tmp_path: Path,
    loop: str,
    request: pytest.FixtureRequest,
) -> None:
    reader = Reader(tmp_path)
    env, firewall = {}, None
    if HAS_JOBS:
        firewall = request.getfixturevalue("firewall")
        url = f"redis://127.0.0.1:{firewall.port}/0"
        env = {"REDIS_URL": url, "REDIS_TIMEOUT": "1"}
    service = start(
        through=["sh", "-c", f'exec "$@" >{reader.path}', "-"],
        EVENT_LOOP=loop,
        PROMETHEUS_MULTIPROC_DIR=str(small_disk),
        **env,
    )
    faults = Faults(service, small_disk, reader, firewall)
    kinds = [faults.kill, faults.stop_and_continue, faults.fork, faults.full_disk]
    kinds += [faults.silent_redis] if HAS_JOBS else []

    def failures(loads: list[Load]) -> int:
        return sum(len(load.result.failures) for load in loads)

    async def soak() -> list[Load]:
        loads = [Load(service.port), Load(service.port, keep_alive=False)]
        for load in loads:
            load.start(CLIENTS)
        end = time.monotonic() + SECONDS
        while True:
            with reader.following():
                for fault in random.sample(kinds, len(kinds)):
                    before = failures(loads)
                    await asyncio.to_thread(fault)
                    await asyncio.to_thread(faults.well)
                    if fault != faults.kill:
                        assert failures(loads) == before, (fault, loads[0].result, loads[1].result)
            before = failures(loads)
            await asyncio.to_thread(faults.closed_pipe)
            assert failures(loads) == before
            if time.monotonic() >= end:
                break
        with reader.following():
            for load in loads:
                await load.stop()
            await asyncio.to_thread(faults.well)
        return loads

    loads = asyncio.run(soak())
    answered = sum(load.result.answers.total() for load in loads) + faults.asked
    failed = failures(loads)
    assert failed <= faults.kills * 2 * CLIENTS
    assert all(load.result.answers.keys() == {200} for load in loads)
    wait_for(lambda: answered <= service.total("http_requests_total") <= answered + failed, 60)
    assert service.total("worker_exits_total", detail="SIGKILL") == faults.kills
    assert service.total("worker_exits_total") == faults.kills
    with reader.following():
        assert service.stop() == 0
    reader.close()
