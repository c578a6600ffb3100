"""The first hour: the examples go, one's own comes; what the project keeps of tests stays right."""

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Cookiecutter, run

SETTINGS = '''"""Yours: the service's own settings."""

from aiohttp import web

from . import runtime
from .runtime import setting, whole


class Settings(runtime.Settings):
    """The runtime's settings, and your own."""

    shelf_port: int = setting(7000, whole(1, 65535))
    shelf_token: str = setting("", str, secret=True)


SETTINGS = web.AppKey("settings", Settings)
'''

VIEWS = '''"""Yours: the endpoints."""

import humanize
from aiohttp import web

from .settings import SETTINGS
from .shelf import SHELF

routes = web.RouteTableDef()


@routes.get("/shelf")
async def shelf(request: web.Request) -> web.Response:
    """What is on it, for those who know the token."""
    if request.headers.get("Authorization") != request.app[SETTINGS].shelf_token:
        raise web.HTTPUnauthorized(text="Authorization: give the token of the shelf")
    return web.json_response({"size": humanize.naturalsize(await request.app[SHELF].size())})
'''

SHELF = '''"""A resource: a connection that is open as long as a worker serves."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiohttp import web

from .settings import SETTINGS


@dataclass
class Shelf:
    reader: asyncio.StreamReader

    async def size(self) -> int:
        return 3_000_000


SHELF = web.AppKey("shelf", Shelf)


async def shelf(app: web.Application) -> AsyncIterator[None]:
    """Open while the application runs."""
    reader, writer = await asyncio.open_connection("127.0.0.1", app[SETTINGS].shelf_port)
    app[SHELF] = Shelf(reader)
    yield
    writer.close()
    await writer.wait_closed()
'''

APP = '''"""Yours: create_app()."""

from aiohttp import web

from .settings import SETTINGS, Settings
from .shelf import shelf
from .views import routes


async def create_app() -> web.Application:
    """Build the Application. Every worker calls it once, inside its own running event loop."""
    settings = Settings.from_env()
    app = web.Application(client_max_size=settings.max_body)
    app[SETTINGS] = settings
    app.cleanup_ctx.append(shelf)
    app.add_routes(routes)
    return app
'''

TEST = '''"""The endpoint."""

from conftest import StartClient


async def test_shelf(start_client: StartClient) -> None:
    client = await start_client(SHELF_TOKEN="open sesame")
    assert (await client.get("/shelf")).status == 401
    response = await client.get("/shelf", headers={"Authorization": "open sesame"})
    assert await response.json() == {"size": "3.0 MB"}
'''


@pytest.fixture
def shelf() -> Iterator[str]:
    """The port of the resource."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        yield str(listener.getsockname()[1])


@pytest.fixture
def away() -> Iterator[str]:
    """A port at which nobody listens, nor will."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield str(bound.getsockname()[1])


@pytest.fixture(scope="module", params=["none", "redis"])
def project(
    request: pytest.FixtureRequest,
    cookiecutter: Cookiecutter,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Generated, and made one's own within an hour."""
    out = tmp_path_factory.mktemp("mine")
    done = cookiecutter(out, {"job_queue": request.param})
    assert done.returncode == 0, done.stdout
    project = out / "my-service"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    run("make", "install", cwd=project, PATH=path)

    package = project / "src" / "my_service"
    for name, text in {"views": VIEWS, "settings": SETTINGS, "shelf": SHELF, "app": APP}.items():
        (package / f"{name}.py").write_text(text)
    (package / "tasks.py").write_text("")
    (project / "tests" / "test_views.py").unlink()
    (project / "tests" / "test_tasks.py").unlink()
    if request.param == "redis":
        (package / "job_views.py").unlink()
        (project / "tests" / "test_job_views.py").unlink()
    run(".venv/bin/uv", "add", "--frozen", "humanize >=4", cwd=project)
    run("make", "lock", cwd=project, PATH=path)
    return project


@pytest.mark.timeout(600)
def test_what_is_left_of_the_tests_passes(project: Path, shelf: str) -> None:
    run("make", "lint", cwd=project)
    said = run("make", "test", cwd=project, SHELF_PORT=shelf)
    assert "test_service.py" in said
    mine = project / "tests" / "test_shelf.py"
    mine.write_text(TEST)
    try:
        run("make", "lint", cwd=project)
        run("make", "test", "TESTS=tests/test_shelf.py", cwd=project, SHELF_PORT=shelf)
    finally:
        mine.unlink()


def test_the_secret_is_not_shown(project: Path) -> None:
    command = (".venv/bin/python", "-m", "my_service", "check")
    said = run(*command, cwd=project, SHELF_PORT="7001", SHELF_TOKEN="open sesame")
    assert "SHELF_PORT=7001" in said
    assert "SHELF_TOKEN=***" in said
    assert "sesame" not in said


@pytest.mark.timeout(600)
def test_a_resource_that_is_away_is_said_once(project: Path, away: str) -> None:
    with pytest.raises(AssertionError) as failed:
        run("make", "test", cwd=project, SHELF_PORT=away)
    said = str(failed.value).partition("\nassert ")[0]
    assert said.count("the application does not start: ConnectionRefusedError: ") == 1
    assert said.count("Connect call failed") == 1
    assert "shelf.py, line " in said
    assert "Traceback" not in said
