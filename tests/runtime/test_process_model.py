"""Nobody notices a worker come or go: real workers, real signals, under load."""

import asyncio
import http.client
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from conftest import HANGS, SOAK, Service, children, copy_code, running, wait_for
from load import Load, Result
from overlay import PACKAGE

Start = Callable[..., Service]

RECYCLINGS = 300 if SOAK else 6
KILLS = 60 if SOAK else 7


async def loads(service: Service, meanwhile: Awaitable[object]) -> list[Result]:
    """What keep-alive connections and those for one request see meanwhile."""
    running_loads = [Load(service.port), Load(service.port, keep_alive=False)]
    for load in running_loads:
        load.start(8)
    await meanwhile
    return [await load.stop() for load in running_loads]


async def condition(what: Callable[[], object]) -> None:
    await asyncio.to_thread(wait_for, what, 600 if SOAK else HANGS)


def assert_all_answered(results: list[Result]) -> int:
    for result in results:
        assert not result.failures, (len(result.failures), result.failures[:5], result.answers)
        assert result.answers.keys() == {200}
    return sum(result.answers.total() for result in results)


def test_recycling_under_load_loses_nothing(start: Start, loop: str) -> None:
    service = start(EVENT_LOOP=loop, MAX_REQUESTS="300", ACCESS_LOG="false")

    def recycled() -> bool:
        return service.total("worker_exits_total", reason="recycled") >= RECYCLINGS

    results = asyncio.run(loads(service, condition(recycled)))
    answered = assert_all_answered(results)
    assert len(results[0].workers + results[1].workers) > 2
    wait_for(lambda: service.total("http_requests_total") == answered)
    ends = service.scrape()
    assert not [e for e in ends if e[0] == "worker_exits_total" and e[1]["reason"] != "recycled"]


def test_reload_under_load_loses_nothing(start: Start, loop: str) -> None:
    service = start(EVENT_LOOP=loop, ACCESS_LOG="false")

    def replace() -> None:
        old = set(service.workers())
        service.process.send_signal(signal.SIGHUP)
        wait_for(lambda: not old & set(service.workers()) and service.live() == 2)

    async def reload() -> None:
        for _ in range(5):
            await asyncio.to_thread(replace)

    answered = assert_all_answered(asyncio.run(loads(service, reload())))
    wait_for(lambda: service.total("http_requests_total") == answered)
    assert service.total("worker_exits_total", reason="recycled") == 10


def test_reload_brings_new_code_and_keeps_the_old_where_the_new_is_broken(
    start: Start, tmp_path: Path
) -> None:
    code = copy_code(tmp_path / "code")
    service = start(code=code)
    views = code / PACKAGE / "views.py"
    old = views.read_text()

    def reload(text: str) -> None:
        views.write_text(text)
        # a .pyc is renewed when the second or the size of its source differs
        os.utime(views, (time.time() + 5, time.time() + 5))
        service.process.send_signal(signal.SIGHUP)

    workers = set(service.workers())
    reload(old.replace('"service": name', '"service": "new code"'))
    wait_for(lambda: not workers & set(service.workers()) and service.live() == 2)
    assert service.get("/").json()["service"] == "new code"
    workers = set(service.workers())
    reload("this is no Python")
    wait_for(lambda: service.says("cannot reload, the old version goes on"))
    assert service.says("SyntaxError")
    reload("import no_such_module")
    wait_for(lambda: service.says("did not boot"))
    assert workers <= set(service.workers())
    assert service.get("/").json()["service"] == "new code"
    reload(old)
    wait_for(lambda: not workers & set(service.workers()))
    assert service.get("/").json()["service"] != "new code"


def test_killing_workers_loses_only_what_they_had_in_flight(start: Start, loop: str) -> None:
    service = start(EVENT_LOOP=loop, WEB_CONCURRENCY="3", ACCESS_LOG="false")
    sums: list[float] = []

    def killed() -> float:
        return service.total("worker_exits_total", reason="killed", detail="SIGKILL")

    async def kill() -> None:
        for kills in range(KILLS):
            os.kill(random.choice(service.workers()), signal.SIGKILL)
            await condition(lambda kills=kills: killed() > kills)  # type: ignore[misc]
            await asyncio.sleep(0.5)
            sums.append(await asyncio.to_thread(service.total, "http_requests_total"))

    results = asyncio.run(loads(service, kill()))
    failed = sum(len(result.failures) for result in results)
    assert failed <= KILLS * 16  # all clients at once
    assert not [f for result in results for f in result.failures if f.startswith("connect")]
    answered = sum(result.answers.total() for result in results)
    assert sums == sorted(sums)
    wait_for(lambda: service.total("workers", state="live") == 3)
    assert answered <= service.total("http_requests_total") <= answered + failed
    assert killed() == KILLS


@pytest.mark.parametrize(
    ("grace", "asked", "finishes"), [(60, 20 if SOAK else 3, True), (5, 600, False)]
)
def test_shutdown_waits_for_requests_in_flight_and_always_cleans_up(
    start: Start, loop: str, grace: int, asked: int, finishes: bool
) -> None:
    service = start(EVENT_LOOP=loop, GRACEFUL_TIMEOUT=str(grace), WEB_CONCURRENCY="1")

    async def ask() -> Result:
        load = Load(service.port, f"/probe/sleep/{asked}")
        load.start(1)
        await condition(lambda: service.total("http_requests_in_progress") == 1)
        service.process.send_signal(signal.SIGTERM)
        return await load.stop()

    result = asyncio.run(ask())
    assert service.ended() == 0
    assert bool(result.answers) == finishes
    assert len(result.failures) == (not finishes)
    assert service.notes.read_text().startswith("cleanup")


def test_lame_duck_accepts_and_says_so(start: Start, loop: str) -> None:
    service = start(EVENT_LOOP=loop, LAME_DUCK="600")
    assert service.get("/readyz", admin=True).status == 200
    service.process.send_signal(signal.SIGTERM)
    wait_for(lambda: service.get("/readyz", admin=True).status == 503)
    answers = []

    def says_so() -> bool:  # the worker that answers may be the last to get its signal
        answers.append(service.get("/", {"Connection": "keep-alive"}))
        return answers[-1].headers["Connection"] == "close"

    wait_for(says_so)
    assert {answer.status for answer in answers} == {200}
    assert service.get("/livez", admin=True).status == 200
    assert service.total("http_requests_total", route="/") == len(answers)
    assert service.stop(signal.SIGQUIT) == 0


def test_who_asks_the_admin_port_as_its_worker_leaves_is_answered(start: Start, loop: str) -> None:
    service = start(EVENT_LOOP=loop, WEB_CONCURRENCY="1")
    took, answer = math.inf, b""
    while took > 0.8:  # then this machine was slow, and the worker rightly gone
        with socket.create_connection(("127.0.0.1", service.admin_port), HANGS) as client:
            time.sleep(0.2)  # it is accepted
            began = time.monotonic()
            os.kill(service.workers()[0], signal.SIGTERM)
            time.sleep(0.2)  # the worker leaves
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
            took = time.monotonic() - began
            with suppress(ConnectionError):
                answer = client.recv(1024)
        wait_for(lambda: len(service.workers()) == 1)
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_a_blocked_worker_says_where_and_is_replaced(start: Start, loop: str) -> None:
    service = start(EVENT_LOOP=loop, WORKER_TIMEOUT="4", ACCESS_LOG="false")

    async def block() -> Result:
        blocked = asyncio.create_task(asyncio.to_thread(service.get, "/probe/block/600"))
        await condition(service.notes.exists)
        others = Load(service.port)
        others.start(4)
        with pytest.raises((OSError, http.client.HTTPException)):
            await blocked
        return await others.stop()

    assert_all_answered([asyncio.run(block())])
    wait_for(lambda: service.total("worker_exits_total", reason="timeout") == 1)
    assert service.says("in block")  # the name of the function, in its stack
    wait_for(lambda: service.total("workers", state="live") == 2)


@pytest.mark.parametrize(
    ("path", "reason", "detail"), [("/probe/exit/7", "crashed", "7"), ("", "killed", "SIGSEGV")]
)
def test_a_dead_worker_is_replaced_and_its_end_told(
    start: Start, path: str, reason: str, detail: str
) -> None:
    service = start()
    if path:
        with pytest.raises((OSError, http.client.HTTPException)):
            service.get(path)
    else:
        os.kill(service.workers()[0], signal.SIGSEGV)
    wait_for(lambda: service.total("worker_exits_total", reason=reason, detail=detail) == 1)
    wait_for(lambda: service.total("workers", state="live") == 2)


def test_a_service_that_cannot_boot_ends_with_the_reason(start: Start) -> None:
    service = start(wait=False, PROBE_BOOT_FAILURE="the database has gone fishing")
    assert service.ended() != 0
    log = service.log.read_text()
    assert "the database has gone fishing" in log
    assert "no web worker boots" in log
    pauses = [float(pause) for pause in re.findall(r"trying again in ([\d.]+) s", log)]
    assert pauses == sorted(pauses)
    assert len(set(pauses)) > 2


def test_bursts_are_shared_out(start: Start, loop: str) -> None:
    service = start(EVENT_LOOP=loop, WEB_CONCURRENCY="4", ACCESS_LOG="false")

    async def share(connections: int) -> float:
        """The greatest number of connections of a worker, as a multiple of its fair share."""
        opened = await asyncio.gather(
            *(asyncio.open_connection("127.0.0.1", service.port) for _ in range(connections))
        )
        workers: Counter[bytes] = Counter()
        for reader, writer in opened:
            writer.write(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            workers[await reader.readuntil(b"}")] += 1
        for _, writer in opened:
            writer.close()
        await asyncio.sleep(0.1)
        return max(workers.values()) / (connections / 4)

    def fair(connections: int) -> bool:
        return asyncio.run(share(connections)) <= 1.25

    for connections in (8, 64, 256):
        # in some bursts a busy machine keeps a worker from its share
        wait_for(partial(fair, connections))


def test_no_connection_waits_for_a_blocked_worker(start: Start, loop: str) -> None:
    service = start(EVENT_LOOP=loop, WORKER_TIMEOUT="600", ACCESS_LOG="false")

    async def ask() -> None:
        blocker = Load(service.port, "/probe/block/600")
        blocker.start(1)
        await condition(service.notes.exists)
        load = Load(service.port, keep_alive=False)
        for _ in range(100):
            reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
            async with asyncio.timeout(HANGS):
                await load._ask(reader, writer)
            writer.close()
        assert load.result.answers == {200: 100}
        assert not blocker.result.answers

    asyncio.run(ask())


def test_the_configured_backlog_is_in_force(start: Start, loop: str) -> None:
    service = start(EVENT_LOOP=loop, BACKLOG="77")
    ss = shutil.which("ss") or pytest.skip("ss of iproute2 is not here")
    seen = subprocess.check_output([ss, "-ltnH", f"sport = :{service.port}"], text=True)
    assert seen.split()[2] == "77"


@pytest.mark.parametrize("during", ["boot", "service"])
@pytest.mark.parametrize(
    "signals",
    [
        [signal.SIGTERM],
        [signal.SIGTERM, signal.SIGTERM],
        [signal.SIGINT],
        [signal.SIGTERM, signal.SIGQUIT],
    ],
    ids=lambda signals: "+".join(s.name for s in signals),
)
def test_the_end_leaves_nothing_behind(
    start: Start, during: str, signals: list[signal.Signals]
) -> None:
    service = start(
        "serve", wait=during == "service", PROBE_BOOT_SECONDS="2" if during == "boot" else ""
    )
    wait_for(lambda: len(service.processes()) >= 3)
    folder, processes = service.folder(), service.processes()
    for number in signals:
        # as a terminal does, to the whole group
        if number == signal.SIGINT:
            os.killpg(service.process.pid, number)
        else:
            service.process.send_signal(number)
        time.sleep(0.1)
    assert service.ended() == 0
    assert not [pid for pid in processes if running(pid)]
    assert not folder.exists()


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare"
)
def test_as_process_1_it_reaps_orphans_and_hears_sigterm(start: Start) -> None:
    service = start(through=["unshare", "--pid", "--fork"])
    (arbiter,) = children(service.process.pid)
    workers = set(children(arbiter))
    assert len(workers) == 2
    service.get("/probe/orphan")
    wait_for(lambda: len(children(arbiter)) == 3)
    (orphan,) = set(children(arbiter)) - workers
    os.kill(orphan, signal.SIGKILL)
    wait_for(lambda: set(children(arbiter)) == workers)
    os.kill(arbiter, signal.SIGTERM)
    assert service.ended() == 0


@pytest.mark.parametrize("command", ["web", "serve"])
def test_without_the_arbiter_the_others_leave_and_clean_up(start: Start, command: str) -> None:
    service = start(command)
    folder, processes = service.folder(), service.processes()
    service.process.kill()
    service.process.wait()
    wait_for(lambda: not [pid for pid in processes if running(pid)])
    assert not folder.exists()
