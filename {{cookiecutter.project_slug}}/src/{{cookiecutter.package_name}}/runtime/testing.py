"""For tests: the service in the test's own process. pyproject.toml names this to pytest.

What stands around the Application is what stands there in production: requests have ids, errors
are problem+json. Tasks run inline, with the conversions of the pool, and so do jobs.
"""

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import BaseTestServer, TestClient
from pytest_aiohttp.plugin import AiohttpClient

from . import options, preload
from .http import bounds, edge, openapi
from .parts import PACKAGE, Parts

Client = TestClient[Any, Any]


class Server(BaseTestServer):
    """Serves an Application as a web worker does; give it to `aiohttp_client`."""

    def __init__(self, app: web.Application) -> None:
        super().__init__()
        for place, context in enumerate(options.inline_contexts()):
            app.cleanup_ctx.insert(place, context)
        self._app = app

    async def _make_runner(self, **_: Any) -> web.BaseRunner:
        return edge.Runner(self._app, bounds.Bounds())


def _parts() -> Parts:
    parts: Parts = import_module(f"{PACKAGE}.__main__").PARTS
    return parts


async def _server() -> Server:
    app = await _parts().load_create_app()()
    app[preload.PRELOADED] = preload.preloaded()
    if _parts().load_settings().from_env().api_docs:
        openapi.add_to(app)
    return Server(app)


async def _try() -> None:
    async with await _server():
        pass


@pytest.fixture(scope="session")
def environment() -> Mapping[str, str]:
    """The service's settings in tests, beside those of the shell: conftest.py has its own."""
    return {}


@pytest.fixture(scope="session")
def starts(environment: Mapping[str, str]) -> Iterator[None]:
    """Ends the run where the Application cannot start: that is one error, not one for each test."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        where = ""
        try:
            preload.load(_parts())
            asyncio.run(_try())
        except Exception as error:
            what = f"{type(error).__qualname__}: {error}"
            for frame in traceback.extract_tb(error.__traceback__):
                if Path(frame.filename).parent == Path(__file__).parents[1]:
                    where = f" ({frame.filename}, line {frame.lineno})"
            pytest.exit(f"the application does not start: {what}{where}", returncode=1)
        yield


@pytest.fixture
def start_client(
    starts: None, aiohttp_client: AiohttpClient, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Awaitable[Client]]:
    """`await start_client(GREETING="Hi, {name}!")` is a client of the service with that setting."""

    async def start(**environment: str) -> Client:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return await aiohttp_client(await _server())

    return start


@pytest_asyncio.fixture
async def client(start_client: Callable[..., Awaitable[Client]]) -> Client:
    """A client of the service: `await client.get("/")`."""
    return await start_client()


@pytest.fixture(scope="session")
def tasks() -> ModuleType:
    """The service's tasks, which are plain functions too."""
    _parts().load_tasks()
    return import_module(f"{PACKAGE}.{_parts().tasks}")
