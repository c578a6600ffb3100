"""Sanic on its own server: prometheus_client in its middleware, its access log and ids."""

import time
from typing import Any

from sanic import Request, Sanic
from sanic.response import json
from telemetry import LEVEL, greet, index, record

app: Any = Sanic("peer")


@app.get("/")
async def index_view(request: Request) -> Any:
    return json(index())


@app.get("/greet/<name:str>")
async def greet_view(request: Request, name: str) -> Any:
    return json(greet(name))


if LEVEL != "bare":

    @app.on_request
    async def begin(request: Request) -> None:
        request.ctx.begin = time.perf_counter()

    @app.on_response
    async def end(request: Request, response: Any) -> None:
        seconds = time.perf_counter() - request.ctx.begin
        record(request.method, request.uri_template, response.status, seconds)


if LEVEL == "full":

    @app.on_response
    async def identify(request: Request, response: Any) -> None:
        response.headers["X-Request-ID"] = str(request.id)
