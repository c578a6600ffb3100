"""Endpoints that misbehave on purpose, added to a copy of the application under test."""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from . import child_probes
from .runtime import broadcast

NOTES = Path(os.environ.get("PROBE_NOTES", os.devnull))

routes = web.RouteTableDef()


@routes.get("/probe/sleep/{seconds}")
async def sleep(request: web.Request) -> web.Response:
    """Wait without blocking the loop."""
    await asyncio.sleep(float(request.match_info["seconds"]))
    return web.json_response({"worker": os.getpid()})


@routes.get("/probe/turns/{number}")
async def turns(request: web.Request) -> web.Response:
    """Wait for so many turns of the loop, a tenth of a second each."""
    for _ in range(int(request.match_info["number"])):
        await asyncio.sleep(0.1)
    return web.json_response({"worker": os.getpid()})


@routes.get("/probe/block/{seconds}")
async def block(request: web.Request) -> web.Response:
    """Block the loop, as a forgotten synchronous call does."""
    note("block")
    time.sleep(float(request.match_info["seconds"]))  # noqa: ASYNC251
    return web.json_response({"worker": os.getpid()})


@routes.get("/probe/exit/{code}")
async def leave(request: web.Request) -> web.Response:
    """End the process as a crash in C code does."""
    os._exit(int(request.match_info["code"]))


@routes.get("/probe/orphan")
async def orphan(request: web.Request) -> web.Response:
    """Leave a process behind whose parent ends before it does."""
    # asyncio would wait for the end of a pipe too
    shell = await asyncio.create_subprocess_shell("sleep 600 >/dev/null 2>&1 &")
    await shell.wait()
    return web.json_response({})


@routes.get("/probe/error")
async def error(request: web.Request) -> web.Response:
    raise ZeroDivisionError("on purpose")


@routes.get("/probe/stream/{chunks}")
async def stream(request: web.Request) -> web.StreamResponse:
    """Send a piece every 10 ms, and fail after so many."""
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(int(request.match_info["chunks"])):
        await response.write(b"x" * 1000)
        await asyncio.sleep(0.01)
    raise ZeroDivisionError("in the middle of an answer")


@routes.get("/probe/socket")
async def socket(request: web.Request) -> web.WebSocketResponse:
    response = web.WebSocketResponse()
    await response.prepare(request)
    async for message in response:
        await response.send_str(message.data)
    return response


@routes.get("/probe/chat/{room}")
async def chat(request: web.Request) -> web.WebSocketResponse:
    """Everybody in a room hears what anybody says, whichever worker they are connected to."""
    room = request.match_info["room"]
    response = web.WebSocketResponse()
    await response.prepare(request)
    missed: list[int] = []
    messages = broadcast.subscribe(room, on_missed=missed.append)

    async def tell() -> None:
        async for message in messages:
            if missed:
                await response.send_json({"missed": missed.pop()})
            await response.send_json(message)

    telling = asyncio.create_task(tell())
    try:
        await response.send_json({"worker": os.getpid()})
        async for message in response:
            await broadcast.publish(room, message.json())
    finally:
        telling.cancel()
    return response


@routes.post("/probe/publish/{room}")
async def publish(request: web.Request) -> web.Response:
    await broadcast.publish(request.match_info["room"], await request.json())
    return web.json_response({"worker": os.getpid()})


@routes.get("/probe/slow/{room}")
async def slow(request: web.Request) -> web.Response:
    """Subscribes, does not read until there is a file, and tells what it got then."""
    missed: list[int] = []
    messages = broadcast.subscribe(request.match_info["room"], on_missed=missed.append)
    NOTES.touch()  # noqa: ASYNC240
    while not NOTES.with_suffix(".go").exists():  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    got = []
    async for message in messages:
        got.append(message)
        if message == "end":
            break
    return web.json_response({"got": len(got), "missed": sum(missed)})


@routes.get("/probe/log")
async def log(request: web.Request) -> web.Response:
    logging.getLogger("probe").warning("from a handler")
    return web.Response()


def note(what: str) -> None:
    with NOTES.open("a") as notes:
        notes.write(f"{what} {os.getpid()}\n")


async def _cleanup(app: web.Application) -> None:
    note("cleanup")


def with_probes(
    create_app: Callable[[], Awaitable[web.Application]],
) -> Callable[[], Awaitable[web.Application]]:
    async def create() -> web.Application:
        if failure := os.environ.get("PROBE_BOOT_FAILURE"):
            raise RuntimeError(failure)
        if os.environ.get("PROBE_BOOT_CHILD"):
            child_probes.fork()
        await asyncio.sleep(float(os.environ.get("PROBE_BOOT_SECONDS", "0")))
        app = await create_app()
        app.add_routes([*routes, *child_probes.routes])
        app.on_cleanup.append(_cleanup)
        return app

    return create
