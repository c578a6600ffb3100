"""Three applications of the public kind: a chat, a file server, an event stream."""

import asyncio
import os
from pathlib import Path

from aiohttp import web

ROOM = web.AppKey("room", set[web.WebSocketResponse])


async def chat(request: web.Request) -> web.WebSocketResponse:
    """What one says, all hear that are on the same worker."""
    websocket = web.WebSocketResponse()
    await websocket.prepare(request)
    room = request.app[ROOM]
    room.add(websocket)
    try:
        async for message in websocket:
            for other in list(room):
                if not other.closed:
                    await other.send_str(message.data)
    finally:
        room.discard(websocket)
    return websocket


async def silent(request: web.Request) -> web.WebSocketResponse:
    """A websocket whose handler waits for something else, and never reads."""
    websocket = web.WebSocketResponse()
    await websocket.prepare(request)
    await asyncio.Event().wait()
    return websocket


async def events(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    number = 0
    while True:
        number += 1
        await response.write(f"data: {number}\n\n".encode())
        await asyncio.sleep(0.01)


async def dismiss(app: web.Application) -> None:
    """As an Application ends its websockets by itself."""
    if code := os.environ.get("PUBLIC_DISMISS"):
        for websocket in list(app[ROOM]):
            await websocket.close(code=int(code))


async def create_app() -> web.Application:
    app = web.Application()
    app[ROOM] = set()
    app.router.add_get("/chat", chat)
    app.router.add_get("/silent", silent)
    app.router.add_get("/events", events)
    app.router.add_static("/files", Path(os.environ["PUBLIC_FILES"]))
    app.on_shutdown.append(dismiss)
    return app
