"""Yours: the endpoints. The examples: a path parameter, a validated body, CPU-heavy work."""

import os

from aiohttp import web

from .runtime import compute, service
from .settings import SETTINGS
from .tasks import primes

routes = web.RouteTableDef()


def _greeting(request: web.Request, name: object) -> web.Response:
    if not isinstance(name, str) or not 0 < len(name.strip()) <= 100:
        raise web.HTTPUnprocessableEntity(text="name: give a text of 1 to 100 characters")
    if not name.isprintable():  # json.loads() takes NUL, and halves of characters
        raise web.HTTPUnprocessableEntity(text="name: give printable characters only")
    greeting = request.app[SETTINGS].greeting.replace("{name}", name)
    return web.json_response({"greeting": greeting})


@routes.get("/")
async def index(request: web.Request) -> web.Response:
    name, version = service()
    return web.json_response({"service": name, "version": version, "worker": os.getpid()})


@routes.get("/greet/{name}")
async def greet(request: web.Request) -> web.Response:
    return _greeting(request, request.match_info["name"])


@routes.post("/greet")
async def greet_body(request: web.Request) -> web.Response:
    try:
        body = await request.json()
    except ValueError:
        raise web.HTTPBadRequest(text='the body is no JSON; send {"name": "…"}') from None
    return _greeting(request, body.get("name") if isinstance(body, dict) else None)


@routes.get(r"/primes/{limit:\d{1,7}}")
async def count_primes(request: web.Request) -> web.Response:
    limit = int(request.match_info["limit"])
    return web.json_response({"limit": limit, "count": await compute.run(primes, limit)})
