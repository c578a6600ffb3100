"""What every request meets around the Application: its id, its errors, and that it is recorded.

aiohttp's own classes, each with what we add to it:

    Runner    starts the Application and makes the Server
    Server    makes a Connection for each socket, and ends what would never end by itself
    Connection  handles its requests one after the other, and sees how each of them ended
    Request   has the head of each response pass by, before it is written
    Writer    knows when the first byte is written, which is when a response is counted
"""

import asyncio
import logging
from collections.abc import Callable
from functools import cache
from http.client import responses
from traceback import format_exception
from typing import Any, Literal

from aiohttp import WSCloseCode, hdrs, web, web_protocol
from aiohttp.helpers import EMPTY_BODY_STATUS_CODES, rfc822_formatted_time
from aiohttp.http_writer import HttpVersion11, StreamWriter, _serialize_headers
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_app import Application
from aiohttp.web_request import BaseRequest
from multidict import CIMultiDict, istr

from .. import logs
from ..compute.client import ComputeError, TaskError
from ..compute.registry import RefusedError
from ..metrics import values
from . import body as bodies
from . import bounds, recording
from .problem import PROBLEM, problem
from .proxies import Proxies

log = logging.getLogger(__name__)

REQUEST_ID = istr("X-Request-ID")
CONTENT_TYPE_OPTIONS = istr("X-Content-Type-Options")
TRACEPARENT = istr("traceparent")
COMMON_METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE"}
SMALL = 2**14  # bytes of a body that is copied behind its head

ABNORMAL = WSCloseCode.ABNORMAL_CLOSURE
EVENT_STREAM = "text/event-stream"
PAUSE = 0.1  # seconds at most between two websockets or event streams that are ended
FAREWELL = 1.0  # seconds that a handler has when its websocket has been closed

Answer = tuple[web.StreamResponse, bool]
Culprit = Literal["", "client", "drain", "error"]  # who cut a response short


def _as_problem(error: web.HTTPException) -> None:
    """Give an error a body of ours, where its own is a plain text."""
    if error.status < 400 or error.content_type != "text/plain" or error.prepared:
        return
    if hdrs.CONTENT_LENGTH in error.headers or not isinstance(error.body, bytes | None):
        return
    try:
        text = error.text
    except (UnicodeDecodeError, LookupError):
        return  # sent as it is
    stock = not text or text == f"{error.status}: {error.reason}"
    error.text = problem(error.status, error.reason if stock else text or "")
    error.content_type = PROBLEM


def _add_headers(headers: CIMultiDict[str], record: logs.Record) -> None:
    """Those that every response has of us."""
    headers[REQUEST_ID] = record.id
    headers.setdefault(CONTENT_TYPE_OPTIONS, "nosniff")


class Writer(StreamWriter):
    """Counts a response in the moment before its first byte is written, and measures its body.

    So a client that has a status is counted, even when the worker is killed in the very next
    moment; and a head that was prepared, and never written, is not.
    """

    record = logs.Record("")  # of those that are not counted, as the admin port's
    response: web.StreamResponse | None = None  # whose head comes next, or came
    ended = False  # by us, because the worker ends
    written = 0  # bytes of the body

    def _begin(self) -> bool:
        """Count the response if its first byte can be written now."""
        response, transport = self.response, self._protocol.transport
        if response is None or transport is None or transport.is_closing():
            return False
        recording.count(self.record, response.status)
        return True

    def _write(self, chunk: Any) -> None:
        head = not self.record.status and self._begin()
        StreamWriter._write(self, chunk)
        if not head and self.record.status and not self.chunked:
            self.written += len(chunk)

    def _writelines(self, chunks: Any) -> None:
        head = not self.record.status and self._begin()
        StreamWriter._writelines(self, chunks)
        if self.record.status:
            body = chunks[1:] if head else chunks
            # in front of a chunk there is its size
            self.written += int(body[0], 16) if self.chunked else sum(map(len, body))

    def _left(self) -> int:
        """Bytes of the declared length that this writer was not given."""
        response = self.response
        if not self.length or response is None or response._must_be_empty_body:
            return 0
        return self.length - self.written * isinstance(response, web.Response)

    @property
    def short(self) -> bool:
        """Whether less was written than the head had promised."""
        return self._left() > 0 and not self._by_sendfile()

    def _by_sendfile(self) -> bool:
        return isinstance(self.response, web.FileResponse) and not self.written

    def body_size(self, *, whole: bool) -> int:
        """Bytes of the body that were written; whole: whether that is all of it."""
        return self._left() if whole and self._by_sendfile() else self.written


# aiohttp makes them by this name, and changing the class of each costs 0.6 us, 1.3 on Python 3.13
vars(web_protocol)["StreamWriter"] = Writer


class Request(bodies.Request):
    """Gives every response its headers, and is cheaper by two coroutines than a signal is."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        for app in () if self._match_info is None else self._match_info._apps:
            if app.on_response_prepare:
                await app.on_response_prepare.send(self, response)
        writer: Any = self._payload_writer
        record: logs.Record = writer.record
        _add_headers(response._headers, record)
        if not record.status:
            record.series = recording.series(self)
            writer.response = response
        connection: Any = self._protocol
        if connection.server.closing and response.status != 101:
            # force_close() alone comes too late here for the header to be written
            response._headers[hdrs.CONNECTION] = "close"
            response.force_close()


@cache
def _hooked(request_class: Any) -> Any:
    """A class of the user's, with our hook."""
    return type(request_class.__name__, (Request, request_class), {})


def _request_factory(app: Any, proxies: Proxies | None) -> Callable[..., web.Request]:
    loop, size, fields = app._loop, app._client_max_size, app._client_max_fields
    given: Any = app._make_request

    def make_as_given(*arguments: Any) -> web.Request:
        request: Any = given(*arguments)
        request.__class__ = _hooked(request.__class__)
        if request._payload is not EMPTY_PAYLOAD:
            message, payload, protocol, *_ = arguments
            request._payload = protocol.make_body(payload, message, size)
        return request  # type: ignore[no-any-return]

    # the Application's own takes one more call and a dict
    def make(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> Request:
        if payload is not EMPTY_PAYLOAD:
            payload = protocol.make_body(payload, message, size)
        return Request(
            message,
            payload,
            protocol,
            writer,
            task,
            loop,
            client_max_size=size,
            client_max_fields=fields,
        )

    own = getattr(given, "__func__", None) is Application._make_request
    factory: Callable[..., web.Request] = make if own else make_as_given
    if proxies is None:
        return factory
    see_through = proxies.see_through
    return lambda *arguments: see_through(factory(*arguments))


class Connection(bounds.Connection):
    """aiohttp's connection. Sees each request to its end, whatever ends it."""

    __slots__ = ("_lost", "_working", "concurrency", "server")

    def __init__(self, server: "Server", **options: Any) -> None:
        super().__init__(server, **options)
        self.server = server
        self.concurrency = self.guard.bounds.concurrency
        self._lost = False  # by the client, in the middle of a response
        self._working: Writer | None = None

    def connection_lost(self, exc: BaseException | None) -> None:
        response = None if self._working is None else self._working.response
        in_order = isinstance(response, web.WebSocketResponse) and response.closed
        self._lost = not self._force_close and not in_order
        super().connection_lost(exc)
        self.server.connection_closed()

    async def _handle_request(
        self, request: BaseRequest, start_time: float | None, request_handler: Any
    ) -> Answer:
        headers = request.headers
        given = headers.get(REQUEST_ID)
        if given is None or not logs.WELL_FORMED_ID(given):
            given = logs.new_id()
        record = logs.Record(given, headers.get(TRACEPARENT))
        logs.current.set(record)
        writer: Any = request._payload_writer
        writer.record = record
        self._working = writer
        if isinstance(request._payload, bodies.Body):
            request_handler = bodies.admitting(request_handler, self.server.resolve)
        place = self.server.in_progress
        at_work = place.cells[place.index] = place.cells[place.index] + 1
        if at_work > self.concurrency:
            request_handler = _too_busy
        if request._version not in bounds.VERSIONS:
            request_handler = bounds.refuse_version
        try:
            try:
                answer = await super()._handle_request(request, start_time, request_handler)
            except asyncio.CancelledError:
                if not writer.ended:
                    raise
                answer = await self._say_goodbye(writer.response)
            size = writer.written
            # most are plain and whole, and nothing more needs to be known of them
            if size != writer.length or type(writer.response) is not web.Response or answer[1]:
                record.aborted = self._culprit(writer, cut=answer[1])
                size = writer.body_size(whole=not record.aborted)
            return answer
        except BaseException as error:
            record.aborted = self._culprit(writer, cut=True, error=error)
            size = writer.body_size(whole=not record.aborted)
            raise
        finally:
            place.cells[place.index] -= 1
            self._working = None
            recording.finish(record, request, size)
            writer.response = None  # no circle of references stays

    async def _say_goodbye(self, response: web.StreamResponse) -> Answer:
        response.force_close()
        await response.write_eof()
        return response, False

    def _culprit(self, writer: Writer, *, cut: bool, error: BaseException | None = None) -> Culprit:
        """Who cut this response short; nobody where all of it was written."""
        response, whole = writer.response, bool(writer.record.status) and not cut
        if writer.ended:
            return "drain"
        if isinstance(response, web.WebSocketResponse) and whole:
            vanished = self._lost and not response._closing  # it did not say that it closes
            return "client" if vanished or response.close_code == ABNORMAL else ""
        if whole and not writer.short:
            return ""
        if self._client_gone():
            return "client"
        ends = isinstance(error, asyncio.CancelledError) or self._force_close
        return "drain" if self.server.closing and ends else "error"

    def _client_gone(self) -> bool:
        return self._lost or (self.transport is not None and self.transport.is_closing())

    @property
    def endless(self) -> bool:
        """Whether what it is working on is a websocket or an event stream, and still open."""
        writer = self._working
        if writer is None or writer.ended or not writer.record.status:
            return False
        response = writer.response
        if isinstance(response, web.WebSocketResponse):
            return not response.closed
        return response is not None and response.content_type == EVENT_STREAM

    async def end(self) -> None:
        """End what is endless, so that the client knows to come back."""
        writer, task = self._working, self._task_handler
        if writer is None or task is None:
            return
        writer.ended = True
        socket = writer.response
        if isinstance(socket, web.WebSocketResponse):
            await socket.close(code=WSCloseCode.GOING_AWAY, message=b"the worker ends")
            await asyncio.wait({task}, timeout=FAREWELL)
        if self._working is writer:
            task.cancel()

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Answer:
        if getattr(resp, "__http_exception__", False):  # what aiohttp asks: quicker than the class
            _as_problem(resp)  # type: ignore[arg-type]
        if not self._is_common(request, resp):
            return await super().finish_response(request, resp, start_time)
        request._finish()
        self._send(request, resp)
        lost = False
        try:
            if self._paused:
                await self._drain_helper()
        except ConnectionError:
            lost = True
        self.log_access(request, resp, start_time)
        return resp, lost

    def _is_common(self, request: Any, response: Any) -> bool:
        """Whether it is one of the small responses that most are."""
        if type(response) is not web.Response or type(response._body) is not bytes:
            return False
        headers, match = response._headers, request._match_info
        return not (
            len(response._body) > SMALL
            or response._status in EMPTY_BODY_STATUS_CODES
            or response._keep_alive is not None
            or response._chunked
            or response._compression
            or response._cookies
            or response.prepared
            or hdrs.CONTENT_LENGTH in headers
            or hdrs.TRANSFER_ENCODING in headers
            or hdrs.CONNECTION in headers
            or request._method not in COMMON_METHODS
            or request._version != HttpVersion11
            or request._message.should_close
            or match is None
            or any(app.on_response_prepare for app in match._apps)
            or self._upgraded
            or self.server.closing
            or self.transport is None
            or self.transport.is_closing()
        )

    def _send(self, request: Any, response: Any) -> None:
        """Write a response in one step.

        aiohttp takes ten coroutines for it, which are a fifth of the CPU of a small request
        (benchmarks/telemetry.py); that it looks the same is held by tests/runtime/test_statuses.py.
        """
        writer, body, headers = request._payload_writer, response._body, response._headers
        record = writer.record
        headers[hdrs.CONTENT_LENGTH] = str(len(body))
        if body:
            headers.setdefault(hdrs.CONTENT_TYPE, "application/octet-stream")
        if hdrs.DATE not in headers:
            headers[hdrs.DATE] = rfc822_formatted_time()
        headers.setdefault(hdrs.SERVER, bounds.SERVER)
        _add_headers(headers, record)
        head = _serialize_headers(f"HTTP/1.1 {response._status} {response._reason}", headers)
        record.series = recording.series(request)
        recording.count(record, response._status)
        self.transport.write(head + body)  # type: ignore[union-attr]
        writer.response, writer.length, writer.written = response, len(body), len(body)
        writer.output_size = response._body_length = len(head) + len(body)
        response._keep_alive = response._eof_sent = True

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if isinstance(exc, ConnectionError) and self._client_gone():
            raise exc  # nobody hears it, and nothing is wrong here
        if isinstance(exc, ComputeError | RefusedError) and not request.writer.output_size:
            return _compute_problem(exc)
        status, message = bodies.mistake(exc) or (status, message)
        # logs it, and raises where a part of the response is out already
        super().handle_error(request, status, exc, message)
        detail = message or responses.get(status, "Error")
        if self.debug and exc is not None:
            detail = "".join(format_exception(exc))
        response = web.Response(status=status, text=problem(status, detail), content_type=PROBLEM)
        response.force_close()
        writer: Any = request.writer  # as a head that failed has left it
        writer.chunked, writer._compress = False, None
        return response


async def _too_busy(request: BaseRequest) -> web.StreamResponse:
    raise web.HTTPServiceUnavailable(
        text="too many requests are at work here", headers={hdrs.RETRY_AFTER: "1"}
    )


def _compute_problem(error: ComputeError | RefusedError) -> web.Response:
    headers = {}
    if isinstance(error, RefusedError):
        detail = error.text
    else:
        detail = responses[error.status]
        if not isinstance(error, TaskError):  # that one stands in the log of its pool
            log.warning("%s", error)
        if error.retry_after is not None:
            headers[hdrs.RETRY_AFTER] = str(error.retry_after)
    return web.Response(
        status=error.status,
        text=problem(error.status, detail),
        content_type=PROBLEM,
        headers=headers,
    )


class Server(bounds.Server):
    """aiohttp's server of an Application: what its connections have in common."""

    closing = False  # every response asks its client to come back on another connection

    def __init__(
        self,
        app: web.Application,
        stock: web.Server,
        guard: bounds.Guard,
        proxies: Proxies | None,
    ) -> None:
        """
        Raises:
            ValueError: when aiohttp knows no such option as one of the Application's handler_args.
        """
        super().__init__(stock, guard, request_factory=_request_factory(app, proxies))
        self.resolve = app.router.resolve
        self.in_progress = values.place("http_requests_in_progress")
        self.connection_closed: Callable[[], None] = lambda: None
        try:
            self()
        except TypeError as error:
            raise ValueError(f"web.Application(handler_args=...): {error}") from None

    def __call__(self) -> Connection:
        return Connection(self, loop=self._loop, **self._kwargs)

    async def end_streams(self, seconds: float) -> None:
        """Close websockets with code 1001 and end event streams, until cancelled.

        They are told one after the other within `seconds`, so that their clients do not all come
        back in the same moment.
        """
        limit = self._loop.time() + seconds
        endings: set[asyncio.Task[None]] = set()
        while True:
            connections: list[Any] = [c for c in self.connections if c.endless]  # type: ignore[attr-defined]
            left = max(limit - self._loop.time(), 0)
            for connection in connections:
                ending = asyncio.create_task(connection.end())
                endings.add(ending)
                ending.add_done_callback(endings.discard)
                await asyncio.sleep(min(left / len(connections), PAUSE))
            await asyncio.sleep(PAUSE)

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Cancel what is still at work, and see it end; both within `timeout` seconds."""
        handlers = [c._task_handler for c in self.connections if c._task_handler is not None]
        await super().shutdown(timeout)
        if handlers:
            await asyncio.wait(handlers, timeout=timeout)


class Runner(bounds.Runner):
    """aiohttp's runner of an Application, with all of the above."""

    def __init__(
        self, app: web.Application, limits: bounds.Bounds, proxies: Proxies | None = None
    ) -> None:
        super().__init__(app, limits, **_logging(app))
        self._proxies = proxies

    @property
    def server(self) -> Server:
        """
        Raises:
            RuntimeError: before `setup()`.
        """
        if not isinstance(self._server, Server):
            raise RuntimeError("call setup() first")
        return self._server

    async def _make_server(self) -> Server:
        stock = await web.AppRunner._make_server(self)
        return Server(self.app, stock, self.guard, self._proxies)


def _logging(app: Any) -> dict[str, Any]:
    """aiohttp writes no access log where the Application does not ask for one."""
    wanted = ("access_log", "access_log_class", "access_log_format")
    return {} if any(name in (app._handler_args or ()) for name in wanted) else {"access_log": None}
