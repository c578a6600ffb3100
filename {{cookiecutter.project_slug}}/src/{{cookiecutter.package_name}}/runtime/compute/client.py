"""The web workers' side of the compute pool.

A task is one HTTP request on a connection of its own. The pool's workers accept a connection when
they are idle, and not before: the kernel's accept queue is the queue of tasks.
"""

import asyncio
import errno
import logging
import math
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from random import sample
from typing import Any, ParamSpec, TypeVar

from aiohttp import web
from yarl import URL

from ..clock import timeout
from ..logs import current_id
from ..metrics import catalogue
from ..settings import Settings
from . import registry

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)

PATIENCE = 0.03  # seconds for a TCP connection to be accepted by the kernel at the other end
RESOLVED = 10  # seconds, for which the addresses of a host are kept
PIECE = 2**16  # bytes that are sent in one go with the head
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


Address = tuple[socket.AddressFamily, Any]


async def _connected(family: socket.AddressFamily, address: Any) -> socket.socket:
    """A connection, unless the queue at its other end is full.

    Raises:
        BlockingIOError: when it is.
        OSError: when there is nobody.
    """
    sock = socket.socket(family)
    try:
        sock.setblocking(False)
        # by hand: for asyncio, the EAGAIN of a unix socket is a connection under way
        error = sock.connect_ex(address)
        if error == errno.EINPROGRESS:
            error = await _answer(sock)
        if error:
            raise OSError(error, os.strerror(error))
    except BaseException:
        sock.close()
        raise
    return sock


async def _answer(sock: socket.socket) -> int:
    """What came of a TCP connection: an errno, EAGAIN where the other end stays silent.

    That is how a full queue answers; the kernel would ask it again after a second.
    """
    loop, answered = asyncio.get_running_loop(), asyncio.Event()
    loop.add_writer(sock, answered.set)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await answered.wait()
    finally:
        loop.remove_writer(sock)
    if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        return error
    try:
        sock.getpeername()  # however late this loop was to hear of it
    except OSError:
        return errno.EAGAIN
    return 0


class _Pool:
    """What is at COMPUTE_URL."""

    def __init__(self, url: str, seconds: float) -> None:
        self._url = URL("http://compute" if url.startswith("unix:") else url)
        self._ssl = ssl.create_default_context() if self._url.scheme == "https" else None
        self._seconds = seconds
        self._addresses: list[Address] = []
        self._resolved = -math.inf
        if url.startswith("unix:"):
            self._addresses = [(socket.AF_UNIX, url.removeprefix("unix:"))]
            self._resolved = math.inf

    async def answer(self, name: str, body: bytes, media_type: str) -> registry.Answer:
        head = (
            f"POST /{name} HTTP/1.1\r\nHost: {self._url.authority}\r\nConnection: close\r\n"
            f"Content-Type: {media_type}\r\nContent-Length: {len(body)}\r\n"
            # for a pool on this machine, which has this clock
            f"Compute-Sent: {time.monotonic()}\r\nCompute-Timeout: {self._seconds}\r\n"
            f"X-Request-ID: {current_id()}\r\n\r\n"
        )
        try:
            async with timeout(self._seconds):
                return await self._exchange(await self._connect(), head.encode(), body)
        except EOFError as error:
            catalogue.COMPUTE_TASKS.labels(name, "crashed").inc()
            raise WorkerDiedError(f"{name}: its worker died") from error
        except BlockingIOError as error:
            catalogue.COMPUTE_REJECTED.inc()
            raise QueueFullError(f"{name}: the queue is full") from error
        except TimeoutError as error:
            raise DeadlineError(f"{name}: no result within {self._seconds} s") from error
        except OSError as error:
            # nobody there; or reset by the kernel, before any worker had read the request
            raise PoolDownError(f"{name}: {error}") from error
        except (ValueError, LookupError) as error:
            raise ComputeError(f"{name}: no HTTP that is understood here: {error}") from error

    async def _connect(self) -> socket.socket:
        """To one of its addresses where somebody is, whichever."""
        if time.monotonic() > self._resolved + RESOLVED:
            ask = asyncio.get_running_loop().getaddrinfo
            found = await ask(self._url.host, self._url.port, type=socket.SOCK_STREAM)
            self._addresses = [(family, address) for family, *_, address in found]
            self._resolved = time.monotonic()
        failure = OSError(f"{self._url.host} has no address")
        for address in sample(self._addresses, len(self._addresses)):
            try:
                return await _connected(*address)
            except OSError as error:
                failure = error
        raise failure

    async def _exchange(self, sock: socket.socket, head: bytes, body: bytes) -> registry.Answer:
        """Send a request, and receive the answer.

        Raises:
            EOFError: when the other end closes before it is whole.
            OSError, ValueError, LookupError: when there is none, or none that is understood.
        """
        if sock.family == socket.AF_UNIX:
            reader, writer = await asyncio.open_unix_connection(sock=sock, limit=ANSWER)
        else:
            host = self._url.host if self._ssl else None
            reader, writer = await asyncio.open_connection(
                sock=sock, limit=ANSWER, ssl=self._ssl, server_hostname=host
            )
        try:
            writer.write(head + body[:PIECE])
            writer.write(memoryview(body)[PIECE:])
            answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = answer.rstrip().split("\r\n")
            fields = {
                name.lower(): value.strip()
                for name, _, value in (line.partition(":") for line in lines)
            }
            status, media_type = int(first.split()[1]), fields.get("content-type", "")
            if "content-length" not in fields:
                raise ValueError("no Content-Length")
            try:
                received = await reader.readexactly(int(fields["content-length"]))
            except OSError as error:
                raise EOFError(str(error)) from error
            return status, (received, media_type.partition(";")[0])
        finally:
            writer.transport.abort()


# what takes the name of a task and its arguments, with their media type, to a pool
_pool: Callable[[str, bytes, str], Awaitable[registry.Answer]] | None = None
_down = False  # whether nobody was there the last time


def context(settings: Settings) -> Callable[[web.Application], AsyncIterator[None]]:
    """For `cleanup_ctx`: while it is open, this process can run tasks."""

    async def hold(app: web.Application) -> AsyncIterator[None]:
        global _pool
        outer = _pool
        if settings.compute_url is not None:
            _pool = _Pool(settings.compute_url, settings.compute_timeout).answer
        yield
        _pool = outer

    return hold


async def inline(app: web.Application) -> AsyncIterator[None]:
    """For `cleanup_ctx`, in tests: while it is open, tasks run in this process, one at a time."""
    global _pool

    async def answer(name: str, body: bytes, media_type: str) -> registry.Answer:
        task = registry.tasks[name]
        return task.answer(registry.read(body, media_type, task.parameters), media_type)

    outer, _pool = _pool, answer
    yield
    _pool = outer


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
