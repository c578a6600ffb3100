"""The service's side of the job queue: leaving work there, and asking what became of it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar
from uuid import uuid4

from aiohttp import hdrs, web
from coredis.exceptions import RedisError, ResponseError

from ..compute import registry
from . import metrics
from .queue import Worker, reason
from .settings import JobSettings

P = ParamSpec("P")
R = TypeVar("R")

RECONNECT = 1.0  # seconds between two attempts

log = logging.getLogger(__name__)


class QueueDownError(web.HTTPServiceUnavailable):
    """Redis did not answer in time. Whether the job is there nobody knows, where it timed out."""

    def __init__(self, why: str) -> None:
        super().__init__(text=f"the job queue {why}", headers={hdrs.RETRY_AFTER: "5"})


class _Connection:
    """Held open by a task of its own, so that the service starts and lives without Redis."""

    def __init__(self, settings: JobSettings) -> None:
        self.settings = settings
        self.worker: Worker | None = None
        self.tried = asyncio.Event()
        self.reopen = asyncio.Event()

    async def hold(self) -> None:
        said = False
        while True:
            try:
                async with Worker(self.settings, self.settings.redis_timeout) as self.worker:
                    log.info("connected to %s", self.settings.redis_url)
                    said = False
                    self.tried.set()
                    await self.reopen.wait()
            except* (RedisError, OSError) as errors:
                if not said:
                    log.error("no job queue at %s: %s", self.settings.redis_url, reason(errors))
                    said = True
            self.worker = None
            self.tried.set()
            self.reopen.clear()
            await asyncio.sleep(RECONNECT)

    async def use(self, what: Callable[[Worker], Awaitable[R]]) -> R:
        if self.worker is None:
            raise QueueDownError("is not connected")
        try:
            async with asyncio.timeout(self.settings.redis_timeout):
                return await what(self.worker)
        except TimeoutError:
            raise QueueDownError(
                f"did not answer within {self.settings.redis_timeout:g} s"
            ) from None
        except (RedisError, OSError) as error:
            log.error("the job queue: %s", error)  # with addresses, which are not for clients
            if isinstance(error, ResponseError):  # such as a Redis that has lost its memory
                self.reopen.set()
            raise QueueDownError("failed") from error


_connection: _Connection | None = None


async def jobs_ctx(app: web.Application) -> AsyncIterator[None]:
    """For `app.cleanup_ctx`: while it is open, this process can enqueue jobs."""
    global _connection
    logging.getLogger("coredis").setLevel(logging.CRITICAL)  # its errors are ours to tell, once
    _connection = _Connection(JobSettings.from_env())
    holding = asyncio.create_task(_connection.hold())
    with suppress(TimeoutError):
        await asyncio.wait_for(_connection.tried.wait(), _connection.settings.redis_timeout)
    yield
    holding.cancel()
    await asyncio.wait([holding])
    _connection = None


def _open() -> _Connection:
    if _connection is None:
        raise QueueDownError("is not open; add jobs_ctx to app.cleanup_ctx")
    return _connection


async def enqueue(task: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> str:
    """Have `task` called with these arguments by a job worker, and give the id of the job.

    Raises:
        QueueDownError: when Redis does not take it within REDIS_TIMEOUT; the client gets 503.
        TypeError: when the arguments do not fit the task.
    """
    called = registry.find(task)
    arguments = called.arguments(*args, **kwargs)
    job_id = uuid4().hex
    try:
        await _open().use(lambda queue: queue.job(job_id, called.name, arguments))
    except QueueDownError:
        metrics.REJECTED.labels(called.name).inc()
        raise
    metrics.ENQUEUED.labels(called.name).inc()
    return job_id


async def state(job_id: str) -> dict[str, Any] | None:
    """The state of a job, with its result or its error when it ended; None for an unknown one.

    Raises:
        QueueDownError: when Redis does not answer within REDIS_TIMEOUT.
    """
    return await _open().use(lambda queue: queue.state(job_id))


def accepted(request: web.Request, job_id: str) -> web.Response:
    """202, and where to ask for the job: the route named `job`."""
    url = str(request.app.router["job"].url_for(id=job_id))
    return web.json_response({"id": job_id, "url": url}, status=202, headers={"Location": url})
