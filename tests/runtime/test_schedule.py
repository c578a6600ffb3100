"""Scheduled work of a service of three workers: done by one of them, whoever ends."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Service, copy_code, wait_for
from overlay import HAS_JOBS, PACKAGE

Start = Callable[..., Service]

APP = """
import asyncio, os
from pathlib import Path
from typing import Any
from aiohttp import web
from .runtime import every

NOTES = Path(os.environ["PROBE_NOTES"])

def note(what):
    with NOTES.open("a") as notes:
        notes.write(f"{what} {os.getpid()}\\n")

async def tick(app):
    note(app["name"])

async def broken(app):
    raise ZeroDivisionError("on purpose")

async def slow(app):
    note("begin")
    await asyncio.sleep(2.5)
    note("end")

async def rare(app):
    note("rare")

async def index(request):
    return web.Response()

async def create_app():
    app = web.Application()
    app["name"] = "tick"
    app.router.add_get("/", index)
    for name in os.environ["WORK"].split():
        function = globals()[name]
        every(app, 86400 if name == "rare" else 1, function)
    return app
"""


@pytest.fixture
def begin(start: Start, tmp_path: Path, request: pytest.FixtureRequest) -> Start:
    code = copy_code(tmp_path / "own")
    (code / PACKAGE / "app.py").write_text(APP)

    redis = request.getfixturevalue("redis").env if HAS_JOBS else {}

    def begin(work: str, **env: Any) -> Service:
        return start("web", code=code, WORK=work, **{"WEB_CONCURRENCY": "3", **redis, **env})

    return begin


def notes(service: Service) -> list[list[str]]:
    """What was noted so far, and by which process."""
    if not service.notes.exists():
        return []
    return [line.split() for line in service.notes.read_text().splitlines()]


def test_one_worker_does_it_and_the_next_when_that_one_dies(begin: Start, loop: str) -> None:
    began = int(time.time())
    service = begin("tick", EVENT_LOOP=loop)
    leaders: set[int] = set()
    for _ in range(3):
        wait_for(lambda: {int(pid) for _, pid in notes(service)} - leaders)
        seen = len(notes(service))
        wait_for(lambda: len(notes(service)) >= seen + 2)  # noqa: B023
        (leader,) = {int(pid) for _, pid in notes(service)} - leaders
        os.kill(leader, signal.SIGKILL)
        leaders.add(leader)
    # by three workers on their own it would be three times as many
    assert len(notes(service)) <= int(time.time()) - began + 1
    assert service.total("scheduled_runs_total", work="tick", outcome="done") >= 3
    assert service.total("scheduled_run_seconds_count", work="tick") >= 3


def test_what_fails_and_what_takes_too_long_is_said(begin: Start) -> None:
    service = begin("broken slow")
    wait_for(lambda: service.total("scheduled_runs_total", work="broken", outcome="failed") >= 2)
    wait_for(lambda: service.total("scheduled_runs_total", work="slow", outcome="left_out") >= 2)
    wait_for(lambda: service.total("scheduled_runs_total", work="slow", outcome="done") >= 1)
    assert service.says("broken failed")
    assert service.says("ZeroDivisionError: on purpose")
    assert service.says("slow is still at work: this turn is left out")
    assert service.live() == 3


def test_a_reload_neither_cuts_it_short_nor_does_it_twice(begin: Start) -> None:
    service = begin("slow")
    wait_for(lambda: notes(service))
    first = notes(service)[0][1]
    service.process.send_signal(signal.SIGHUP)
    wait_for(lambda: any(pid != first for _, pid in notes(service)))
    wait_for(lambda: len(notes(service)) % 2 == 0)
    found = notes(service)
    assert [what for what, _ in found] == ["begin", "end"] * (len(found) // 2)


def test_the_end_of_the_service_cuts_it_short(begin: Start) -> None:
    service = begin("slow", GRACEFUL_TIMEOUT="1")
    wait_for(lambda: notes(service))
    assert service.stop() == 0
    assert service.says("slow was cut short") or len(notes(service)) % 2 == 0


def test_a_turn_that_nobody_has_begun_is_taken_up(begin: Start, tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    service = begin("rare tick", PROMETHEUS_MULTIPROC_DIR=str(folder))
    wait_for(lambda: len(notes(service)) >= 2)
    assert ["rare"] not in [line[:1] for line in notes(service)]
    service.stop()
    (folder / "schedule_rare").write_text(str(int(time.time()) - 2 * 86400))
    service = begin("rare", PROMETHEUS_MULTIPROC_DIR=str(folder))
    wait_for(lambda: notes(service))
    assert len(notes(service)) == 1


def test_wrong_ones_are_refused(begin: Start) -> None:
    service = begin("tick tick", wait=False)
    wait_for(lambda: service.says("'tick': give a name of its own"))
