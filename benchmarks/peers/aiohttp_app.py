"""aiohttp under gunicorn: bare is the floor; the rest is the recipe of tutorials."""

import time
from collections.abc import Awaitable, Callable

from aiohttp import web
from telemetry import LEVEL, greet, index, json_logger, log, new_id, record

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def index_view(request: web.Request) -> web.Response:
    return web.json_response(index())


async def greet_view(request: web.Request) -> web.Response:
    return web.json_response(greet(request.match_info["name"]))


@web.middleware
async def metrics(request: web.Request, handler: Handler) -> web.StreamResponse:
    begin = time.perf_counter()
    response = await handler(request)
    resource = request.match_info.route.resource
    route = resource.canonical if resource else "unmatched"
    record(request.method, route, response.status, time.perf_counter() - begin)
    return response


@web.middleware
async def access(request: web.Request, handler: Handler) -> web.StreamResponse:
    begin = time.perf_counter()
    request_id = request.headers.get("X-Request-ID") or new_id()
    response = await handler(request)
    response.headers["X-Request-ID"] = request_id
    log(
        LOGGER,
        method=request.method,
        path=request.path,
        status=response.status,
        seconds=time.perf_counter() - begin,
        request_id=request_id,
    )
    return response


if LEVEL == "full":
    LOGGER = json_logger()


async def app() -> web.Application:
    around = {"bare": [], "metrics": [metrics], "full": [access, metrics]}[LEVEL]
    app = web.Application(middlewares=around)
    app.add_routes([web.get("/", index_view), web.get("/greet/{name}", greet_view)])
    return app
