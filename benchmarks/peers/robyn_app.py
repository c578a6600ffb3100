"""Robyn on its own server; it recommends nothing: prometheus_client and logging in its hooks."""

import os
import time
from typing import Any

from robyn import Request, Response, Robyn
from telemetry import LEVEL, greet, index, json_logger, log, new_id, record, route_of

app = Robyn(__file__)
begun: dict[int, float] = {}


@app.get("/")
async def index_view(request: Request) -> Any:
    return index()


@app.get("/greet/:name")
async def greet_view(request: Request) -> Any:
    return greet(request.path_params["name"])


if LEVEL == "full":
    LOGGER = json_logger()

if LEVEL != "bare":

    @app.before_request()
    async def begin(request: Request) -> Request:
        request.headers.set("x-begin", repr(time.perf_counter()))
        if LEVEL == "full" and not request.headers.get("x-request-id"):
            request.headers.set("x-request-id", new_id())
        return request

    @app.after_request()
    async def end(request: Request, response: Response) -> Response:
        seconds = time.perf_counter() - float(request.headers.get("x-begin"))
        path = request.url.path
        record(request.method, route_of(path), response.status_code, seconds)
        if LEVEL == "full":
            request_id = request.headers.get("x-request-id")
            response.headers.set("X-Request-ID", request_id)
            log(
                LOGGER,
                method=request.method,
                path=path,
                status=response.status_code,
                seconds=seconds,
                request_id=request_id,
            )
        return response


if __name__ == "__main__":
    app.start(host="127.0.0.1", port=int(os.environ["PORT"]))
