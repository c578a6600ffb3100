"""The compute pool's side: a WSGI application for sync workers that runs one task a request.

Anything can call it: curl --unix-socket compute.sock http://compute/primes -d '{"limit": 1000}'
"""

import logging
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import msgspec

from ..clock import STEPS
from ..logs import Record, current
from ..metrics import catalogue, slots
from . import registry

NICENESS = 10
PIECE = 2**18  # bytes
KEPT = 2**26  # bytes of memory that a worker keeps for what comes
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
# in the kernel's struct tcp_info: milliseconds since data came
LAST_DATA_RECEIVED = struct.Struct("52xI")

log = logging.getLogger(__name__)


class _Expired(BaseException):
    """Raised in a task at its deadline; no `except Exception` of the task stops it."""


def _left(caller: socket.socket) -> bool:
    try:
        return not caller.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def _waited(environ: WSGIEnvironment) -> float:
    """Seconds from the sending of the request to now.

    A caller on this machine says when, by the clock that all its processes have. What came from
    another one is as old as the kernel says: no two machines have the same time.
    """
    caller: socket.socket = environ["gunicorn.socket"]
    now = time.monotonic()
    if caller.family == socket.AF_UNIX:
        return max(now - float(environ.get("HTTP_COMPUTE_SENT", now)), 0)
    if sys.platform == "linux":
        info = caller.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, LAST_DATA_RECEIVED.size)
        return float(LAST_DATA_RECEIVED.unpack(info)[0]) / 1000
    else:  # noqa: RET505
        return 0.0


def _body(environ: WSGIEnvironment) -> bytes | bytearray:
    """The body of a request; a large one is received where it stays, which takes half the CPU."""
    length, unread = int(environ.get("CONTENT_LENGTH") or 0), environ["wsgi.input"]
    if length <= PIECE:
        return unread.read()  # type: ignore[no-any-return]
    body = bytearray(unread.reader.unreader.take_buffered())  # what came with the head
    while len(body) < length and (piece := environ["gunicorn.socket"].recv(PIECE)):
        body += piece
    return body


class _Deadline:
    """Raises _Expired in a task that has run for `seconds`; for `remaining` if its caller left.

    Not by the clock alone: while everything was frozen the caller has waited no longer than we
    have worked, and still does.
    """

    def __init__(self, seconds: float, remaining: float, caller: socket.socket) -> None:
        self._seconds, self._remaining, self._caller = seconds, remaining, caller
        self._step = seconds / STEPS

    def __enter__(self) -> None:
        signal.signal(signal.SIGALRM, self._look)
        first = min(max(self._remaining, self._step / STEPS), self._step)
        self._ran = first - self._step
        signal.setitimer(signal.ITIMER_REAL, first, self._step)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _look(self, *_: object) -> None:
        self._ran += self._step
        over = self._ran >= self._remaining and _left(self._caller)
        if over or self._ran >= self._seconds:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise _Expired


def _run(
    task: registry.Task,
    arguments: msgspec.Struct,
    media_type: str,
    deadline: _Deadline,
    leave: Callable[[], None],
) -> registry.Answer:
    began = time.perf_counter()
    try:
        with deadline:
            status, answer = task.answer(arguments, media_type)
        outcome = {200: "ok", 422: "refused"}.get(status, "error")
    except _Expired:
        log.exception("%s was stopped at its deadline", task.name)
        status, outcome = 504, "timeout"
        answer = registry.write(registry.Failure("stopped at its deadline"), media_type)
        # whatever the task left half done, the next one gets a process without it
        leave()
    catalogue.COMPUTE_TASK_SECONDS.labels(task.name).observe(time.perf_counter() - began)
    catalogue.COMPUTE_TASKS.labels(task.name, outcome).inc()
    return status, answer


def application(timeout: float, leave: Callable[[], None]) -> WSGIApplication:
    """The application of the pool.

    Args:
        timeout: seconds that no task runs longer than.
        leave: called where this process should end after its answer.
    """

    def respond(environ: WSGIEnvironment) -> registry.Answer:
        media_type = environ.get("CONTENT_TYPE", "")

        def failed(status: int, message: str) -> registry.Answer:
            return status, registry.write(registry.Failure(message), media_type)

        waited, caller = _waited(environ), environ["gunicorn.socket"]
        body = _body(environ)
        name = environ["PATH_INFO"].removeprefix("/")
        if name not in registry.tasks:
            return failed(404, f"there is no task {name!r}")
        task = registry.tasks[name]
        try:
            arguments = registry.read(body, media_type, task.parameters)
        except ValueError as error:
            return failed(400, f"{name}: {error}")
        del body  # it may be large
        seconds = min(float(environ.get("HTTP_COMPUTE_TIMEOUT", timeout)), timeout)
        catalogue.COMPUTE_QUEUE_SECONDS.observe(waited)
        if _left(caller):
            catalogue.COMPUTE_TASKS.labels(name, "skipped").inc()
            return failed(504, "not started: its caller has left")
        deadline = _Deadline(seconds, seconds - waited, caller)
        return _run(task, arguments, media_type, deadline, leave)

    def wsgi(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        catalogue.WORKER_REQUESTS.labels(slots.label()).inc()
        token = current.set(Record(environ.get("HTTP_X_REQUEST_ID", "")))
        status, (body, media_type) = respond(environ)
        current.reset(token)
        headers = [("Content-Type", media_type), ("Content-Length", str(len(body)))]
        start_response(f"{status} {HTTPStatus(status).phrase}", headers)
        return [body]

    return wsgi


def post_fork(arbiter: object, worker: object) -> None:
    """For gunicorn: where tasks share CPUs with web workers, the web workers come first."""
    os.nice(NICENESS)


def on_starting(arbiter: object) -> None:
    """For gunicorn: workers, which inherit this, keep what a task frees for the next one.

    A page that the kernel had back in between it has to clear: half the CPU of a call with 10 MB.
    """
    import ctypes  # takes 10 ms, which a start without a pool need not wait for

    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # glibc's
        mallopt(M_MMAP_THRESHOLD, KEPT // 2)
        mallopt(M_TRIM_THRESHOLD, KEPT)
