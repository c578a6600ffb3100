"""What peers are measured with: the naive way, and as well as it can be done by hand."""

import asyncio
import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from functools import cache
from itertools import count
from typing import Any

LEVEL = os.environ["LEVEL"]  # bare, metrics, full (as docs recommend) or tuned
if LEVEL != "bare":
    from prometheus_client import Counter, Histogram

    REQUESTS = Counter("peer_requests", "Requests.", ["method", "route", "status"])
    SECONDS = Histogram("peer_request_seconds", "Their duration.", ["method", "route"])


def index() -> dict[str, object]:
    return {"service": "peer", "version": "0.1.0", "worker": os.getpid()}


def greet(name: str) -> dict[str, object]:
    return {"hello": name}


def route_of(path: str) -> str:
    return "/greet/{name}" if path.startswith("/greet/") else path


def record(method: str, route: str, status: int, seconds: float) -> None:
    """As in every tutorial."""
    REQUESTS.labels(method, route, str(status)).inc()
    SECONDS.labels(method, route).observe(seconds)


def json_logger() -> logging.Logger:
    from pythonjsonlogger.json import JsonFormatter

    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("access")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return logger


def log(logger: logging.Logger, **fields: object) -> None:
    logger.info("request", extra=fields)


def new_id() -> str:
    return str(uuid.uuid4())


@cache
def children(method: str, route: str, status: int) -> tuple[Any, Any]:
    return REQUESTS.labels(method, route, str(status)), SECONDS.labels(method, route)


class Lines:
    """Written when there are many, or a tenth of a second after the first of them."""

    def __init__(self) -> None:
        self.waiting: list[str] = []

    def add(self, line: str) -> None:
        if not self.waiting:
            asyncio.get_running_loop().call_later(0.1, self.write)
        self.waiting.append(line)
        if len(self.waiting) >= 128:
            self.write()

    def write(self) -> None:
        if self.waiting:
            text = "".join(self.waiting)
            self.waiting.clear()
            os.write(1, text.encode())


LINES = Lines()
PREFIX = uuid.uuid4().hex[:20]
NUMBERS = count()
quoted = cache(json.dumps)


def finish(method: str, path: str, status: int, begin: float, request_id: str) -> None:
    """Tuned by hand: children and strings kept, no logging module, one write for many lines."""
    seconds = time.perf_counter() - begin
    counter, histogram = children(method, route_of(path), status)
    counter.inc()
    histogram.observe(seconds)
    LINES.add(
        f'{{"time":{time.time():.3f},"level":"INFO","method":"{method}","path":{quoted(path)},'
        f'"status":{status},"seconds":{seconds:.6f},"request_id":"{request_id}"}}\n'
    )


ASGI = Callable[[Any, Any, Any], Awaitable[None]]


def tuned(app: ASGI) -> ASGI:
    """A plain ASGI application around another one."""

    async def around(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        begin = time.perf_counter()
        given = next((v for k, v in scope["headers"] if k == b"x-request-id"), None)
        request_id = given.decode() if given else f"{PREFIX}{next(NUMBERS):012x}"
        status = 500

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                head = (b"x-request-id", request_id.encode())
                message["headers"] = [*message.get("headers", ()), head]
            await send(message)

        try:
            await app(scope, receive, sending)
        finally:
            finish(scope["method"], scope["path"], status, begin, request_id)

    return around


def recording(app: ASGI) -> ASGI:
    """Metrics alone, as in every tutorial: for frameworks that recommend nothing."""

    async def around(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 500

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        await app(scope, receive, sending)
        seconds = time.perf_counter() - begin
        record(scope["method"], route_of(scope["path"]), status, seconds)

    return around
