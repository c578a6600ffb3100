"""What a connection may take of us: how long for a head and an answer, and how many there may be.

A connection notes what it sees, which costs next to nothing; a look at all of them once a second
finds those that are over a bound. Bodies have their own clock (`body.py`).
"""

import asyncio
import math
import sys
from contextlib import suppress
from dataclasses import dataclass
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import Any

from aiohttp import web, web_response
from aiohttp.http import HttpVersion10, HttpVersion11, RawRequestMessage
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo
from aiohttp.web_request import BaseRequest

from ..metrics.catalogue import CONNECTIONS_CLOSED
from ..settings import Settings
from .body import LEAST_RATE, Body

REASONS = (
    "body_timeout",
    "connections",
    "header_size",
    "header_timeout",
    "leftovers",
    "write_timeout",
)
for reason in REASONS:  # shown from the beginning, as none closed
    CONNECTIONS_CLOSED.labels(reason)
SERVER = "aiohttp"
vars(web_response)["SERVER_SOFTWARE"] = SERVER  # it named the versions of all

VERSIONS = (HttpVersion11, HttpVersion10)
LOOK = 1.0  # seconds between two looks at all connections
HEAD = 2**16  # bytes of a request line with all headers
READ_AHEAD = 2**16  # bytes of a body that are kept for a handler that does not read; at most twice
LEFTOVERS = 2**23  # bytes of a body that nobody read, taken so that its client sees the answer
LEFTOVERS_SECONDS = 5.0


@dataclass(frozen=True)
class Bounds:
    """Times are in seconds."""

    header: float = 20.0
    body: float = 30.0
    write: float = 30.0
    keepalive: float = 75.0
    connections: int = 4096
    concurrency: float = math.inf  # requests at work

    @classmethod
    def of(cls, settings: Settings, concurrency: float) -> "Bounds":
        """
        Args:
            concurrency: requests that a worker may have at work.
        """
        return cls(
            header=settings.header_timeout,
            body=settings.body_timeout,
            write=settings.write_timeout,
            keepalive=settings.keepalive,
            connections=settings.max_connections,
            concurrency=concurrency,
        )

    @property
    def options(self) -> dict[str, Any]:
        """What aiohttp's connections are made with."""
        return {
            "keepalive_timeout": self.keepalive,
            "lingering_time": 2 * LEFTOVERS_SECONDS,  # the guard is sooner, and counts it
            "read_bufsize": READ_AHEAD,
        }


# probes and scrapes are short, and few clients have a reason to make them
ADMIN = Bounds(header=5.0, body=5.0, write=5.0, connections=64)


class Guard:
    """Watches over the connections of one port of a worker."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._open: set[Connection] = set()
        self._spare: list[Connection] = []  # to close for others, the best one last
        self._none_since = -LOOK  # when there was none

    def opened(self, connection: "Connection") -> None:
        """Where there are too many, one that idles goes for it; where none does, the new one."""
        self._open.add(connection)
        if len(self._open) > self.bounds.connections:
            self._make_room(connection)

    def closed(self, connection: "Connection") -> None:
        self._open.discard(connection)

    def _make_room(self, connection: "Connection") -> None:
        now = connection.quiet_since
        if not self._spare and now - self._none_since >= LOOK:
            self._spare = [c for c in self._open if c.idle and c is not connection]
            # those that have never made a request before those that were quiet for longest
            self._spare.sort(key=lambda c: (c.requests == 0, -c.quiet_since))
            if not self._spare:
                self._none_since = now
        while self._spare:
            spare = self._spare.pop()
            if spare in self._open and spare.idle:
                spare.abort("connections")
                return
        connection.abort("connections")

    async def watch(self) -> None:
        """Close what is over a bound, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK)
            now = loop.time()
            for connection in list(self._open):
                connection.look(now, self.bounds)


async def refuse_version(request: BaseRequest) -> web.StreamResponse:
    """The handler of a request that is none of VERSIONS, which aiohttp would answer in its own."""
    major, minor = request._version
    request._version = HttpVersion10
    error = web.HTTPVersionNotSupported(text=f"HTTP/{major}.{minor} is not spoken here")
    error.force_close()
    raise error


def _unsent(transport: Any) -> int:
    """Bytes of answers that the peer has not taken yet; 0 where all of them left this process."""
    waiting: int = transport.get_write_buffer_size()
    if waiting:
        with suppress(OSError):  # only Linux tells what is in its own buffer
            answer = ioctl(transport.get_extra_info("socket").fileno(), TIOCOUTQ, b"\0" * 4)
            waiting += int.from_bytes(answer, sys.byteorder)
    return waiting


class Connection(RequestHandler):
    """aiohttp's connection, which a guard watches over."""

    __slots__ = (
        "_head_since",
        "_head_size",
        "_leftovers",
        "_leftovers_since",
        "_unsent",
        "_unsent_since",
        "_wire",
        "body",
        "guard",
        "quiet_since",
        "requests",
    )

    def __init__(self, server: Any, **options: Any) -> None:
        super().__init__(server, **options)
        self.guard: Guard = server.guard
        self.body: Body | None = None  # of the request at work, or of the last one that had any
        self.requests = 0  # when a guard looked last
        self.quiet_since = self._loop.time()
        self._head_since = 0.0  # when the first part came of a head that is not whole yet
        self._head_size = 0
        self._leftovers_since = self.quiet_since
        self._leftovers = 0  # bytes
        self._unsent_since = 0.0
        self._unsent = 0  # bytes
        self._wire: Any = None  # aiohttp forgets it before it is closed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = transport
        super().connection_made(transport)
        self.guard.opened(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.guard.closed(self)
        super().connection_lost(exc)

    def force_close(self) -> None:
        super().force_close()
        if self.body is not None and not self.body.source.is_eof():
            self.body.source.feed_eof()  # aiohttp waits for the rest, and would fail loudly

    @property
    def idle(self) -> bool:
        """Whether it has no request to be answered."""
        return not self._request_in_progress and not self._messages

    @property
    def waits(self) -> bool:
        """Whether its client waits for an answer, or is new and about to ask."""
        return not self.idle or not self._request_count

    def make_body(self, payload: StreamReader, message: Any, limit: int) -> Body:
        """What the handler of the request reads, in place of the payload."""
        self.body = body = Body(payload, message, self, limit, self.guard.bounds.body)
        if not payload.is_eof():
            self._part_of_a_body(body, 0)  # it may be known to be broken
        return body

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        body = self.body
        if body is not None and not body.source.is_eof():
            self._part_of_a_body(body, len(data))
        elif not self._request_in_progress and not self._messages:
            self._part_of_a_head(len(data))
        elif self._head_since:
            self._head_since, self._head_size = 0.0, 0

    def _part_of_a_head(self, size: int) -> None:
        if not size:
            return
        self._head_since = self._head_since or self._loop.time()
        self._head_size += size
        if self._head_size > HEAD:
            self._refuse(431, f"the head of the request has more than {HEAD} bytes", "header_size")

    def _part_of_a_body(self, body: Body, size: int) -> None:
        last = self._messages[-1][0] if self._messages else None
        if last is not None and not isinstance(last, RawRequestMessage):
            body.broken(last.message)
        else:
            body.arrived(size)
        if size and not self._request_in_progress:
            self._leftovers += size
            if self._leftovers > LEFTOVERS:
                self.abort("leftovers")

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status < 500 and not request.writer.output_size:
            response = web.Response(status=status, text=message)
            response.force_close()
            return response  # and no line in the log: that was the client
        return super().handle_error(request, status, exc, message)

    def _refuse(self, status: int, why: str, reason: str) -> None:
        """Answer a request whose head is not whole, and close."""
        self._head_since = 0.0
        if self._waiter is None or self._waiter.done():
            return
        self.closing(reason)
        self._messages.append((_ErrInfo(status, BadHttpMessage(why), why), EMPTY_PAYLOAD))
        self._waiter.set_result(None)

    def closing(self, reason: str) -> None:
        """Count that it is closed for being over a bound."""
        CONNECTIONS_CLOSED.labels(reason).inc()

    def abort(self, reason: str) -> None:
        """Close without a word, and without what is left to be written."""
        self.closing(reason)
        self.guard.closed(self)  # it no longer counts, though it takes a turn of the loop
        self.force_close()
        self._wire.abort()

    def look(self, now: float, bounds: Bounds) -> None:
        """Close it if it is over a bound. Called about once a second."""
        if self._request_count != self.requests:
            self.requests, self.quiet_since = self._request_count, now
        unsent = _unsent(self._wire)
        if not unsent or not self._unsent or unsent < self._unsent - LEAST_RATE * bounds.write / 2:
            self._unsent, self._unsent_since = unsent, now
        elif unsent > self._unsent:
            self._unsent = unsent
        elif now - self._unsent_since > bounds.write:
            self.abort("write_timeout")
            return
        if self._head_since:
            if now - self._head_since > bounds.header:
                self._refuse(408, "the head of the request came too slowly", "header_timeout")
        elif self._request_in_progress or self.body is None or self.body.source.is_eof():
            self._leftovers, self._leftovers_since = 0, now
        elif now - self._leftovers_since > LEFTOVERS_SECONDS:
            self.abort("leftovers")


class Server(web.Server):
    """aiohttp's server, with our connections."""

    def __init__(self, stock: web.Server, guard: Guard, **options: Any) -> None:
        """
        Args:
            stock: aiohttp's, whose place it takes.
            options: what is not as in `stock`.
        """
        given = {
            "request_factory": stock.request_factory,
            "handler_cancellation": stock.handler_cancellation,
            "loop": stock._loop,
            **stock._kwargs,
            "auto_decompress": False,  # a Body does it
        }
        super().__init__(stock.request_handler, **(given | options))
        self.guard = guard

    def __call__(self) -> Connection:
        return Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """aiohttp's runner of an Application, with a guard over its connections."""

    def __init__(self, app: web.Application, bounds: Bounds, **options: Any) -> None:
        super().__init__(app, **bounds.options, **options)
        self.guard = Guard(bounds)
        self._watch: asyncio.Task[None] | None = None

    async def setup(self) -> None:
        await super().setup()
        self._watch = asyncio.create_task(self.guard.watch())

    async def cleanup(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        await super().cleanup()

    async def _make_server(self) -> web.Server:
        return Server(await super()._make_server(), self.guard)
