"""The web workers' side of the compute pool.

A task is one HTTP request on a connection of its own. The pool's workers accept a connection when
they are idle, and not before: the kernel's accept queue is the queue of tasks.
"""

import asyncio
import errno
import logging
import select
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, ParamSpec, TypeVar

import aiohttp
from aiohttp import web
from aiohttp.client_exceptions import UnixClientConnectorError

from ..clock import timeout
from ..logs import current_id
from ..metrics import catalogue
from ..settings import Settings
from . import registry

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)

PATIENCE = 0.03  # seconds for a TCP connection to be accepted by the kernel at the other end
PIECE = 2**18  # bytes
TRUSTED = 2**26  # bytes that are made ready for an answer because its head promises them
ANSWER = 2**30  # bytes, up to which an answer is read without a pause: it is wanted whole


class ComputeError(Exception):
    """A task gave no result; `status` is what to answer the client with, its text for the log."""

    status = 500
    retry_after: int | None = None


class TaskError(ComputeError):
    """The task raised an exception: `type` is the name of its class."""

    def __init__(self, task: str, type_name: str, message: str) -> None:
        super().__init__(f"{task} raised {type_name}: {message}")
        self.type = type_name
        self.message = message


class WorkerDiedError(ComputeError):
    """The worker process ended in the middle of the task."""


class QueueFullError(ComputeError):
    """All workers are busy and COMPUTE_BACKLOG tasks wait. This one was not started."""

    status = 503
    retry_after: int | None = 1


class PoolDownError(ComputeError):
    """There is nobody at COMPUTE_URL. The task was not started."""

    status = 503
    retry_after: int | None = 5


class DeadlineError(ComputeError):
    """COMPUTE_TIMEOUT passed, in the queue or in the task."""

    status = 504


class _UnixConnector(aiohttp.UnixConnector):
    """Connects by itself: a unix socket does so at once or never.

    asyncio takes the EAGAIN of a full queue for a connection under way, and goes on with a socket
    that is connected to nothing. uvloop does not.
    """

    async def _create_connection(self, req: Any, *_: Any) -> Any:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            sock.connect(self.path)
        except OSError as error:
            sock.close()
            raise UnixClientConnectorError(self.path, req.connection_key, error) from error
        # mypy sees a property of the base class where there is a callable
        factory: Any = self._factory
        return (await self._loop.create_unix_connection(factory, sock=sock))[1]


_patience: ContextVar[asyncio.Timeout] = ContextVar("patience")


class _TcpSocket(socket.socket):
    """Gives up when the other end stays silent.

    That is how a full queue answers; the kernel would ask it again after a second. A plain timeout
    would also expire where this loop was late to notice that it is connected.
    """

    def connect(self, address: Any) -> None:
        patience = _patience.get()
        answer = select.poll()
        answer.register(self, select.POLLOUT)

        def give_up() -> None:
            try:
                self.getpeername()
            except OSError:
                # not closed, as it is when all is done, and not refused either
                if self.fileno() >= 0 and not answer.poll(0):
                    patience.reschedule(0)

        asyncio.get_running_loop().call_later(PATIENCE, give_up)
        super().connect(address)


Answer = tuple[int, tuple[bytes | bytearray, str]]  # registry.Answer, as it was received

# what takes the name of a task and its arguments, with their media type, to a pool
_pool: Callable[[str, bytes, str], Awaitable[Answer]] | None = None
_down = False  # whether nobody was there the last time


def context(settings: Settings) -> Callable[[web.Application], AsyncIterator[None]]:
    """For `cleanup_ctx`: while it is open, this process can run tasks."""

    async def hold(app: web.Application) -> AsyncIterator[None]:
        global _pool
        url = settings.compute_url
        connector: aiohttp.BaseConnector
        if url is None:
            yield
            return
        if url.startswith("unix:"):
            connector = _UnixConnector(url.removeprefix("unix:"), limit=0, force_close=True)
            url = "http://compute"
        else:
            connector = aiohttp.TCPConnector(
                limit=0, force_close=True, socket_factory=lambda info: _TcpSocket(*info[:3])
            )
        async with aiohttp.ClientSession(
            url,
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(),  # ours is another one
            read_bufsize=ANSWER,
        ) as session:
            outer, _pool = _pool, partial(_post, session, settings.compute_timeout)
            yield
            _pool = outer

    return hold


async def inline(app: web.Application) -> AsyncIterator[None]:
    """For `cleanup_ctx`, in tests: while it is open, tasks run in this process, one at a time."""
    global _pool

    async def answer(name: str, body: bytes, media_type: str) -> Answer:
        task = registry.tasks[name]
        return task.answer(registry.read(body, media_type, task.parameters), media_type)

    outer, _pool = _pool, answer
    yield
    _pool = outer


async def _pieces(body: bytes) -> AsyncIterator[memoryview]:
    """So that other requests have their turns."""
    view = memoryview(body)
    for start in range(0, len(body), PIECE):
        yield view[start : start + PIECE]


async def _whole(response: aiohttp.ClientResponse) -> bytes | bytearray:
    """The body; a large one is put where it is to stay as it comes, which takes half the CPU."""
    length = response.content_length or 0
    if length <= PIECE:
        return await response.read()
    body, end = bytearray(min(length, TRUSTED)), 0
    async for piece in response.content.iter_any():
        body[end : end + len(piece)] = piece
        end += len(piece)
    del body[end:]
    return body


async def _post(
    session: aiohttp.ClientSession, seconds: float, name: str, body: bytes, media_type: str
) -> Answer:
    headers = {
        "Content-Type": media_type,
        "Compute-Sent": str(time.monotonic()),  # for a pool on this machine, which has this clock
        "Compute-Timeout": str(seconds),
        "X-Request-ID": current_id(),
    }
    data: bytes | AsyncIterator[memoryview] = body
    if len(body) > PIECE:
        headers["Content-Length"] = str(len(body))
        data = _pieces(body)
    try:
        async with timeout(seconds), asyncio.timeout(None) as patience:
            _patience.set(patience)
            async with session.post(f"/{name}", data=data, headers=headers) as response:
                return response.status, (await _whole(response), response.content_type)
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError) as error:
        catalogue.COMPUTE_TASKS.labels(name, "crashed").inc()
        raise WorkerDiedError(f"{name}: its worker died") from error
    except OSError as error:  # a TimeoutError is one
        if patience.expired() or error.errno == errno.EAGAIN:
            catalogue.COMPUTE_REJECTED.inc()
            raise QueueFullError(f"{name}: the queue is full") from error
        if isinstance(error, TimeoutError):
            raise DeadlineError(f"{name}: no result within {seconds} s") from error
        # nobody there; or reset by the kernel, before any worker had read the request
        raise PoolDownError(f"{name}: {error}") from error


async def run(task: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """The result of `task`, called with these arguments in a process of the compute pool.

    When the caller is cancelled, a task that still waits in the queue is not started.

    Raises:
        ComputeError: when there is no result; each subclass says why.
        RefusedError: when the task raised it.
        TypeError: when the arguments do not fit the task.
    """
    global _down
    called = registry.find(task)
    name, arguments = called.name, called.arguments(*args, **kwargs)
    try:
        body, media_type = registry.write(arguments, registry.MSGPACK)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: {error}") from None
    if _pool is None:
        raise PoolDownError(f"{name}: this process has no pool; set COMPUTE_URL")
    try:
        status, (answer, media_type) = await _pool(name, body, media_type)
    except PoolDownError as error:
        if not _down:
            _down = True
            log.error("no compute pool, tasks get 503 until it is back: %s", error)
        raise
    if _down:
        _down = False
        log.error("the compute pool is back")
    try:
        if status == 200:
            return registry.read(answer, media_type, called.result).result  # type: ignore[no-any-return]
        if status == 422:
            refusal = registry.read(answer, media_type, registry.Refusal)
            raise registry.RefusedError(refusal.status, refusal.text)
        failure = registry.read(answer, media_type, registry.Failure)
    except ValueError as error:
        raise ComputeError(
            f"{name}: the pool answered {status}, as {media_type} that is unknown here: {error}"
        ) from error
    if status == 500:
        raise TaskError(name, failure.type, failure.message)
    if status == 504:
        raise DeadlineError(f"{name}: {failure.message}")
    raise ComputeError(f"{name}: the pool answered {status}: {failure.message}")
