"""Readiness checks and admin routes of the user's, on a service of two workers."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Service, copy_code, wait_for
from overlay import PACKAGE

Start = Callable[..., Service]

APP = """
import asyncio, os
from pathlib import Path
from aiohttp import web
from .runtime import add_admin_routes, add_ready_check

SIGNS = Path(os.environ["SIGNS"])
NAME = web.AppKey("name", str)
admin = web.RouteTableDef()
booted = os.getpid()

async def database(app):
    asked.append("database")
    if (SIGNS / "down").exists():
        raise ConnectionRefusedError("nobody listens")
    if (SIGNS / f"down-{os.getpid()}").exists():
        raise ConnectionRefusedError("not for this one")

async def model(app):
    while (SIGNS / "hang").exists():
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            pass  # as code does that catches everything

asked = []

@admin.get("/own/{who}")
async def own(request):
    return web.json_response({"name": request.app[NAME], "asked": len(asked), **request.match_info})

@admin.post("/own/broken")
async def broken(request):
    raise ZeroDivisionError("on purpose")

async def index(request):
    return web.json_response({"worker": os.getpid()})

async def create_app():
    app = web.Application()
    app[NAME] = "mine"
    app.router.add_get("/", index)
    add_ready_check(app, database)
    add_ready_check(app, model, "the-model")
    add_admin_routes(app, admin)
    if (SIGNS / "taken").exists():
        add_admin_routes(app, [web.get("/metrics", index)])
    return app
"""


@pytest.fixture
def signs(tmp_path: Path) -> Path:
    folder = tmp_path / "signs"
    folder.mkdir()
    return folder


@pytest.fixture
def begin(start: Start, tmp_path: Path, signs: Path) -> Start:
    code = copy_code(tmp_path / "own")
    (code / PACKAGE / "app.py").write_text(APP)

    def begin(**env: str) -> Service:
        fast = {"READY_INTERVAL": "0.1", "READY_TIMEOUT": "1", "GRACEFUL_TIMEOUT": "2"}
        return start("web", code=code, SIGNS=str(signs), **{**fast, **env})

    return begin


def probe(service: Service) -> tuple[int, str]:
    response = service.get("/readyz", admin=True)
    return response.status, response.body.decode()


def test_a_check_that_fails_makes_it_unready_and_no_more(
    begin: Start, signs: Path, loop: str
) -> None:
    service = begin(EVENT_LOOP=loop)
    workers = service.workers()
    assert probe(service) == (200, "ok\n")
    assert service.total("ready_check", check="database") == 1

    (signs / "down").touch()
    everywhere = "database fails in 2 of 2 workers: ConnectionRefusedError: nobody listens\n"
    wait_for(lambda: probe(service) == (503, everywhere))
    assert service.total("ready_check", check="database") == 0
    assert service.total("ready_check", check="the-model") == 1
    assert service.get("/livez", admin=True).status == 200
    assert service.get("/").status == 200
    (signs / "down").unlink()
    wait_for(lambda: probe(service) == (200, "ok\n"))
    assert service.workers() == workers
    assert service.says("not ready: database: ConnectionRefusedError: nobody listens")
    assert service.says("ready again: database")


def test_one_worker_is_enough(begin: Start, signs: Path) -> None:
    service = begin()
    (signs / f"down-{service.workers()[0]}").touch()
    wait_for(lambda: probe(service)[0] == 503)
    wait_for(
        lambda: "1 of 2 workers: ConnectionRefusedError: not for this one" in probe(service)[1]
    )
    wait_for(lambda: "1 of 2 workers: it passes in the worker" in probe(service)[1])
    assert service.total("ready_check", check="database") == 0


def test_a_check_that_hangs_has_failed_and_holds_nothing_up(begin: Start, signs: Path) -> None:
    service = begin()
    (signs / "hang").touch()
    hangs = "the-model fails in 2 of 2 workers: no answer within 1 s\n"
    wait_for(lambda: probe(service) == (503, hangs))
    (signs / "hang").unlink()
    wait_for(lambda: probe(service) == (200, "ok\n"))


def test_at_the_start_it_is_unready_until_they_pass(begin: Start, signs: Path) -> None:
    (signs / "down").touch()
    service = begin()
    for _ in range(10):  # whichever answers
        assert probe(service)[0] == 503
    assert service.get("/livez", admin=True).status == 200
    assert service.get("/startupz", admin=True).status == 200
    (signs / "down").unlink()
    wait_for(lambda: probe(service) == (200, "ok\n"))


def test_probes_ask_no_check(begin: Start) -> None:
    service = begin(WEB_CONCURRENCY="1", READY_INTERVAL="3600")
    for _ in range(10):
        assert probe(service) == (200, "ok\n")
    assert service.get("/own/x", admin=True).json()["asked"] == 1


def test_admin_routes_of_ones_own(begin: Start, signs: Path) -> None:
    service = begin(WEB_CONCURRENCY="1")
    found = service.get("/own/you", admin=True).json()
    assert found["name"] == "mine"
    assert service.get("/own/you").status == 404
    assert service.request("POST", "/own/broken", admin=True).status == 500
    assert service.get("/nowhere", admin=True).status == 404
    (signs / "taken").touch()
    service = begin(wait=False)
    wait_for(lambda: service.says("/metrics is taken on the admin port; give another path"))
