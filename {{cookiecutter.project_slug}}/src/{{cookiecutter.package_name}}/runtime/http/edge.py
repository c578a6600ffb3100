"""What every request meets around the Application: its id, its errors, its end while draining."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from http.client import responses
from typing import Any

from aiohttp import hdrs, web
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest
from multidict import istr

from .. import logs
from ..compute.client import ComputeError
from ..metrics import values
from . import recording

Handler = Callable[[BaseRequest], Awaitable[web.StreamResponse]]

REQUEST_ID = istr("X-Request-ID")
TRACEPARENT = istr("traceparent")
PROBLEM = "application/problem+json"


def _problem(status: int, detail: str) -> str:
    """The body of an error as RFC 9457 has it."""
    return json.dumps(
        {
            "type": "about:blank",
            "title": responses.get(status, "Error"),
            "status": status,
            "detail": detail,
            "request_id": logs.current_id(),
        }
    )


class Protocol(RequestHandler):
    """aiohttp's connection, with our answer to what fails outside of every handler."""

    __slots__ = ()

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if not logs.current_id():  # the request could not even be parsed
            logs.current.set(logs.Record(logs.new_id()))
        # logs it, and raises where a part of the response is out already
        super().handle_error(request, status, exc, message)
        response = web.Response(
            status=status,
            text=_problem(status, message or responses.get(status, "Error")),
            content_type=PROBLEM,
            headers={REQUEST_ID: logs.current_id()},
        )
        response.force_close()
        return response


class Request(web.Request):
    """Gives every response its headers, and is cheaper by two coroutines than a signal is."""

    closing = False

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        for app in () if self._match_info is None else self._match_info._apps:
            if app.on_response_prepare:
                await app.on_response_prepare.send(self, response)
        response.headers[REQUEST_ID] = logs.current.get().id
        if self.closing and response.status != 101:
            # force_close() alone comes too late here for the header to be written
            response.headers[hdrs.CONNECTION] = "close"
            response.force_close()


class Edge:
    """Stands around an Application; cheaper than a middleware, and sees all paths."""

    def __init__(self, app: web.Application) -> None:
        self._app = app

    def close_connections(self) -> None:
        """From now on, every response asks its client to come back on another connection."""
        Request.closing = True

    def wrap(self, server: web.Server) -> None:
        """Take what `server` hands to the Application."""
        server.request_factory = self._request_factory()
        server.request_handler = self._around(server.request_handler)

    def _request_factory(self) -> Callable[..., Request]:
        app: Any = self._app
        loop, size, fields = app._loop, app._client_max_size, app._client_max_fields

        # the Application's own takes one more call and a dict
        def make(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> Request:
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

        return make

    def _around(self, handler: Handler) -> Handler:
        cells, index = values.place("http_requests_in_progress")

        async def handle(request: BaseRequest) -> web.StreamResponse:
            headers = request.headers
            given = headers.get(REQUEST_ID)
            if given is None or not logs.WELL_FORMED_ID(given):
                given = logs.new_id()
            record = logs.Record(given, headers.get(TRACEPARENT))
            logs.current.set(record)
            cells[index] += 1
            try:
                response = await handler(request)
            except web.HTTPException as error:
                recording.count(record, request, error.status)
                if error.status >= 400 and error.content_type == "text/plain":
                    stock = error.text == f"{error.status}: {error.reason}"
                    detail = error.reason if stock else error.text
                    error.text = _problem(error.status, detail or "")
                    error.content_type = PROBLEM
                raise
            except ComputeError as error:
                recording.count(record, request, error.status)
                return _compute_problem(error)
            except asyncio.CancelledError:
                # where the worker ends it is not the client who gave up
                recording.count(record, request, 503 if Request.closing else recording.CLIENT_GONE)
                recording.finish(record, request, 0)
                raise
            except Exception as error:
                if isinstance(error, ConnectionError) and request.transport is None:
                    recording.count(record, request, recording.CLIENT_GONE)
                    # for the log: nobody hears it
                    return web.Response(status=recording.CLIENT_GONE)
                recording.count(record, request, 504 if isinstance(error, TimeoutError) else 500)
                if request.writer.output_size:  # the answer breaks off, and aiohttp is silent on it
                    recording.finish(record, request, 0)
                raise
            else:
                gone = request.transport is None
                recording.count(record, request, recording.CLIENT_GONE if gone else response.status)
                return response
            finally:
                cells[index] -= 1

        return handle


def _compute_problem(error: ComputeError) -> web.Response:
    headers = {} if error.retry_after is None else {hdrs.RETRY_AFTER: str(error.retry_after)}
    return web.Response(
        status=error.status,
        text=_problem(error.status, str(error)),
        content_type=PROBLEM,
        headers=headers,
    )
