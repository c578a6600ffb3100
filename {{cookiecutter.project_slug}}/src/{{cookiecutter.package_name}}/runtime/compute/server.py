"""The compute pool's side: a WSGI application for sync workers that runs one task a request.

Anything can call it: curl --unix-socket compute.sock http://compute/primes -d '{"limit": 1000}'
"""

import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from ..logs import Record, current
from ..metrics import catalogue, slots
from . import registry

NICENESS = 10

log = logging.getLogger(__name__)


class _Expired(BaseException):
    """Raised in a task at its deadline; no `except Exception` of the task stops it."""


def _expire(*_: object) -> None:
    raise _Expired


def _left(caller: socket.socket) -> bool:
    try:
        return not caller.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def _run(
    task: registry.Task,
    arguments: dict[str, object],
    seconds: float,
    leave: Callable[[], None],
) -> tuple[int, str]:
    began = time.perf_counter()
    signal.signal(signal.SIGALRM, _expire)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            status, answer = task.answer(arguments)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        outcome = "ok" if status == 200 else "error"
    except _Expired:
        log.exception("%s was stopped at its deadline", task.name)
        status, outcome = 504, "timeout"
        answer = json.dumps({"message": "stopped at its deadline"})
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

    def respond(environ: WSGIEnvironment) -> tuple[int, str]:
        now = time.time()
        name = environ["PATH_INFO"].removeprefix("/")
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if name not in registry.tasks:
            return 404, json.dumps({"message": f"there is no task {name!r}"})
        task = registry.tasks[name]
        try:
            arguments = task.arguments(**json.loads(body))
        except (TypeError, ValueError) as error:
            return 400, json.dumps({"message": str(error)})
        sent = float(environ.get("HTTP_COMPUTE_SENT", now))
        deadline = sent + float(environ.get("HTTP_COMPUTE_TIMEOUT", timeout))
        catalogue.COMPUTE_QUEUE_SECONDS.observe(max(now - sent, 0))
        if now >= deadline or _left(environ["gunicorn.socket"]):
            catalogue.COMPUTE_TASKS.labels(name, "skipped").inc()
            return 504, json.dumps({"message": "not started: its deadline had passed"})
        return _run(task, arguments, min(deadline - now, timeout), leave)

    def wsgi(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        catalogue.WORKER_REQUESTS.labels(slots.label()).inc()
        token = current.set(Record(environ.get("HTTP_X_REQUEST_ID", "")))
        status, answer = respond(environ)
        current.reset(token)
        body = answer.encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start_response(f"{status} {HTTPStatus(status).phrase}", headers)
        return [body]

    return wsgi


def post_fork(arbiter: object, worker: object) -> None:
    """For gunicorn: where tasks share CPUs with web workers, the web workers come first."""
    os.nice(NICENESS)
