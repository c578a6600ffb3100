"""Time that stands still, clocks that jump, and applications that never get ready."""

import asyncio
import http.client
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from conftest import Service, copy_code, wait_for
from overlay import PACKAGE

Start = Callable[..., Service]

PATIENCE = 40  # seconds until something hangs
FROZEN = 5.0  # seconds, and more than any time-out of these tests


def freeze(service: Service, seconds: float = FROZEN) -> None:
    """As a paused container: every process stops, and time goes on."""
    os.killpg(service.process.pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.killpg(service.process.pid, signal.SIGCONT)


def in_background(service: Service, paths: list[str]) -> tuple[list[Thread], list[int]]:
    statuses: list[int] = []

    def ask(path: str) -> None:
        try:
            statuses.append(service.get(path, timeout=PATIENCE).status)
        except (OSError, http.client.HTTPException) as error:
            print(path, repr(error))
            statuses.append(0)

    threads = [Thread(target=ask, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    return threads, statuses


def test_a_freeze_ends_no_worker_no_request_and_no_task(start: Start, loop: str) -> None:
    service = start("serve", EVENT_LOOP=loop, WORKER_TIMEOUT="3", COMPUTE_TIMEOUT="8")
    tasks = ["/probe/doze/20", "/probe/doze/10"]  # at work, and in the queue
    threads, statuses = in_background(service, [*["/probe/turns/30"] * 3, *tasks])
    wait_for(lambda: service.total("http_requests_in_progress") == 5)
    time.sleep(0.5)
    freeze(service, 10)
    for thread in threads:
        thread.join()
    assert statuses == [200] * 5
    for _ in range(20):  # in which the arbiter comes round
        assert service.total("worker_exits_total") == 0
        assert service.total("compute_worker_exits_total") == 0
        time.sleep(0.1)


def test_a_freeze_takes_no_time_from_a_drain(start: Start, loop: str) -> None:
    service = start(EVENT_LOOP=loop, GRACEFUL_TIMEOUT="4", WEB_CONCURRENCY="1")
    threads, statuses = in_background(service, ["/probe/turns/20"])
    wait_for(lambda: service.total("http_requests_in_progress") == 1)
    service.process.send_signal(signal.SIGTERM)
    wait_for(lambda: service.get("/readyz", admin=True).status == 503)
    freeze(service, 6)
    for thread in threads:
        thread.join()
    assert statuses == [200]
    assert service.process.wait(PATIENCE) == 0
    assert service.notes.read_text().startswith("cleanup")


def test_who_is_blocked_after_a_freeze_is_replaced(start: Start) -> None:
    service = start(WORKER_TIMEOUT="3")
    threads, statuses = in_background(service, ["/probe/block/60"])
    time.sleep(0.5)
    freeze(service)
    wait_for(lambda: service.total("worker_exits_total", reason="timeout") == 1, PATIENCE)
    for thread in threads:
        thread.join()
    assert statuses == [0]


HANG = "import time; time.sleep(600)\n"
CREATE = "import asyncio\nmake = create_app\nasync def create_app():\n"
PLACES = {  # what is added to a module, and what the log then says
    "import": ("views.py", HANG, "in <module>"),
    "create_app": ("app.py", f"{CREATE}    {HANG}", "in create_app"),
    "await": ("app.py", f"{CREATE}    await asyncio.sleep(600)\n", "in create_app"),
    "stubborn": (
        "app.py",
        f"{CREATE}    while True:\n        try:\n            await asyncio.sleep(600)\n"
        "        except BaseException:\n            pass\n",
        "is blocked",
    ),
    "startup": (
        "app.py",
        f"{CREATE}    app = await make()\n    app.on_startup.append(wait)\n    return app\n"
        "async def wait(app):\n    await asyncio.sleep(600)\n",
        "in wait",
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_an_application_that_hangs_at_start_is_told_and_counted(
    start: Start, loop: str, place: str, tmp_path: Path
) -> None:
    """A second version does; the first goes on."""
    code = copy_code(tmp_path / "code")
    service = start(code=code, EVENT_LOOP=loop, WORKER_TIMEOUT="3", WEB_CONCURRENCY="1")
    (worker,) = service.workers()
    file, text, stack = PLACES[place]
    module = code / PACKAGE / file
    module.write_text(module.read_text() + text)
    os.utime(module, (time.time() + 5, time.time() + 5))
    service.process.send_signal(signal.SIGHUP)
    wait_for(lambda: service.total("worker_exits_total", reason="timeout") >= 1, PATIENCE)
    assert service.says(stack), service.log.read_text()
    wait_for(lambda: service.says("did not boot (timeout"))
    assert service.get("/").json()["worker"] == worker


def test_a_service_that_hangs_at_start_ends_with_the_reason(start: Start, tmp_path: Path) -> None:
    code = copy_code(tmp_path / "code")
    tasks = code / PACKAGE / "tasks.py"
    tasks.write_text(HANG + tasks.read_text())
    service = start("compute", code=code, wait=False, COMPUTE_TIMEOUT="1")
    wait_for(lambda: service.says("is blocked for"), PATIENCE)
    wait_for(lambda: service.says("in <module>"), PATIENCE)
    assert service.process.wait(90) != 0
    assert service.says("no compute worker boots")


JUMPS = """
import itertools, time
_now, _hours = time.time, itertools.cycle([0, 5, -7, 3, -11])
time.time = lambda: _now() + 3600 * next(_hours)
time.time_ns = lambda: int(time.time() * 1e9)
"""


@pytest.mark.parametrize("where", ["unix", "http"])
def test_a_wall_clock_that_jumps_by_hours_changes_nothing(
    start: Start, loop: str, where: str, tmp_path: Path
) -> None:
    code = copy_code(tmp_path / "code")
    (code / "sitecustomize.py").write_text(JUMPS)
    env = {"EVENT_LOOP": loop, "COMPUTE_TIMEOUT": "20", "WORKER_TIMEOUT": "5"}
    if where == "unix":
        service = pool = start("serve", code=code, **env)
    else:
        pool = start("compute", code=code, wait=False, **env)
        wait_for(lambda: _ready(pool), PATIENCE)
        service = start("web", code=code, COMPUTE_URL=pool.url, **env)
    for _ in range(10):
        assert service.get("/primes/1000").json()["count"] == 168
        assert service.get("/").status == 200
    assert pool.total("compute_queue_seconds_sum") < 10 * PATIENCE
    assert service.total("worker_exits_total") == 0
    assert pool.total("compute_worker_exits_total") == 0
    assert service.stop() == 0


def _ready(service: Service) -> bool:
    try:
        return service.get("/readyz", admin=True).status == 200
    except OSError:
        return False


def test_what_waits_for_a_pool_elsewhere_is_measured_there(start: Start) -> None:
    pool = start("compute", wait=False, COMPUTE_CONCURRENCY="1")
    wait_for(lambda: _ready(pool), PATIENCE)

    async def ask() -> list[int]:
        async def post(path: str, body: Any) -> int:
            answer = await asyncio.to_thread(pool.request, "POST", path, json.dumps(body).encode())
            return answer.status

        first = asyncio.create_task(post("/doze", {"turns": 10}))
        await asyncio.sleep(0.3)
        return [await post("/primes", {"limit": 10}), await first]

    assert asyncio.run(ask()) == [200, 200]
    assert 0.2 < pool.total("compute_queue_seconds_sum") < PATIENCE
