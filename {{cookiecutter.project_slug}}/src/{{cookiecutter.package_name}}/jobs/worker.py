"""`python -m PACKAGE jobs`: takes jobs from the queue and has them done in the compute pool.

This process waits for Redis and for tasks, and serves the admin port. The tasks run in the workers
of a compute pool of its own, its child: one that hangs or crashes takes nothing else with it.
"""

import asyncio
import json
import logging
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from importlib import import_module
from typing import NoReturn

from aiohttp import web
from anyio import CancelScope, current_time
from coredis.exceptions import RedisError
from coredis.response.types import StreamPending
from streaq import StreaqRetry
from streaq.constants import REDIS_GROUP

from ..compute import client as compute
from ..compute import registry
from ..server import limits
from ..server.standalone import Standalone
from ..settings import service
from ..telemetry.logs import Record, current
from ..telemetry.metrics import INFO
from . import metrics
from .queue import JOB, Worker, reason
from .settings import JobSettings

LOOK = 2.0  # seconds between two looks at the length of the queue
RECONNECT = 1  # seconds between two attempts
BUSY = 0.2  # seconds until the pool, that has just lost a worker, may have room again
LONGEST_PAUSE = 3600.0  # seconds before a retry

log = logging.getLogger(__name__)


class Consumer(Worker):
    """Runs jobs until it is told to stop."""

    def __init__(self, settings: JobSettings, concurrency: int, stop: asyncio.Event) -> None:
        # a read blocks for jobs_lost_after
        patience = settings.jobs_lost_after + settings.redis_timeout
        super().__init__(settings, patience, concurrency)
        self.settings = settings
        self.stop = stop
        self.function = self.task(name=JOB, max_tries=None, ttl=0, silent=True)(self.attempt)

    async def signal_handler(self, scope: CancelScope) -> None:
        """Instead of streaq's, which hears no signal while there is no Redis.

        Cancelled when Redis goes away: a job may go on for as long as nobody else takes it over.
        """
        grace = self.settings.jobs_lost_after
        try:
            await self.stop.wait()
            grace = self.settings.graceful_timeout
        finally:
            scope.cancel()
            for running in self._cancel_scopes.values():
                running.deadline = current_time() + grace

    async def attempt(self, name: str, arguments: dict[str, object]) -> None:
        """Try to do a job; streaq gives it to us again until this returns."""
        job_id, tries = self.function.context.task_id, self.function.context.tries
        current.set(Record(job_id))
        try:
            if await self.redis.exists([self.outcome_key(job_id)]):
                log.info("%s %s was done before", name, job_id)
                metrics.OUTCOMES.labels(name, "repeated").inc()
            elif tries > self.settings.jobs_tries:
                await self.bury(job_id, name, arguments, "its worker was lost, every time")
            else:
                await self.run(job_id, name, arguments, tries)
        except (RedisError, OSError) as error:
            # an exception would be the end of the job
            raise StreaqRetry(delay=RECONNECT) from error

    async def run(self, job_id: str, name: str, arguments: dict[str, object], tries: int) -> None:
        began = time.perf_counter()
        try:
            if name not in registry.tasks:
                raise LookupError(f"this version of the service has no task {name}")
            result = await self.call(name, arguments)
        except (compute.ComputeError, LookupError, TypeError) as error:
            if tries == self.settings.jobs_tries:
                await self.bury(job_id, name, arguments, str(error))
                return
            pause = min(self.settings.jobs_retry_delay * 2 ** (tries - 1), LONGEST_PAUSE)
            log.warning("try %d of %s failed, again in %g s: %s", tries, name, pause, error)
            metrics.OUTCOMES.labels(name, "retried").inc()
            raise StreaqRetry(delay=timedelta(seconds=pause)) from error
        else:
            await self.keep(job_id, {"state": "done", "result": result})
            log.info("%s done", name)
            metrics.OUTCOMES.labels(name, "done").inc()
        finally:
            metrics.SECONDS.labels(name).observe(time.perf_counter() - began)

    async def call(self, name: str, arguments: dict[str, object]) -> object:
        while True:
            try:
                return await compute.run(registry.tasks[name].function, **arguments)
            except (compute.PoolDownError, compute.QueueFullError):  # so it was not started
                await asyncio.sleep(BUSY)

    async def bury(self, job_id: str, name: str, arguments: dict[str, object], error: str) -> None:
        letter = {"task": name, "arguments": arguments, "error": error, "died": time.time()}
        await self.redis.hset(self.dead_key, {job_id: json.dumps(letter)})
        await self.keep(job_id, {"state": "dead", "error": error})
        log.error("%s is dead: %s", name, error)
        metrics.OUTCOMES.labels(name, "dead").inc()

    async def keep(self, job_id: str, outcome: dict[str, object]) -> None:
        """Write down how a job ended, where Redis is away as soon as it is back."""
        key, text = self.outcome_key(job_id), json.dumps(outcome)
        while True:
            try:
                await self.redis.set(key, text, ex=self.settings.jobs_result_ttl)
            except (RedisError, OSError):
                await asyncio.sleep(RECONNECT)
            else:
                return

    async def look(self) -> None:
        """Measure the queue."""
        async with self.redis.pipeline(transaction=True) as pipe:
            length = pipe.xlen(self.stream)
            taken = pipe.xpending(self.stream, REDIS_GROUP)
            delayed = pipe.zcard(self.delayed)
            dead = pipe.hlen(self.dead_key)
            first = pipe.xrange(self.stream, count=1)
        summary = await taken
        assert isinstance(summary, StreamPending)
        running = summary.pending
        depths = {
            "queued": await length - running,
            "running": running,
            "retrying": await delayed,
            "dead": await dead,
        }
        for state, depth in depths.items():
            metrics.DEPTH.labels(self.queue_name, state).set(depth)
        oldest = [int(str(entry.identifier).partition("-")[0]) / 1000 for entry in await first]
        metrics.OLDEST.labels(self.queue_name).set(time.time() - oldest[0] if oldest else 0)


class Process(Standalone):
    """The life of a job worker."""

    role = "jobs"
    goodbye = signal.SIGQUIT  # nobody waits for what it may still be doing
    settings: JobSettings

    def __init__(self, settings: JobSettings) -> None:
        super().__init__(settings)
        self._unready = "not connected to Redis yet"

    @property
    def trouble(self) -> str:
        return super().trouble or self._unready

    def admin(self) -> web.Application:
        app = super().admin()
        app.cleanup_ctx.append(compute.compute_ctx)
        return app

    def leave(self) -> None:
        self.stop.set()  # however often: a job that is cut off has failed a try

    async def work(self) -> None:
        import_module("..tasks", __package__)  # after the fork: the pool can load newer ones
        consumer = asyncio.create_task(self.consume())
        await self.stop.wait()
        # longer only where Redis does not answer; then it is left where it stands
        await asyncio.wait({consumer}, timeout=self.settings.graceful_timeout + 1)

    async def consume(self) -> None:
        """Take jobs until we are to stop, over every loss of the connection."""
        concurrency = limits.compute_workers(self.settings).number
        while not self.stop.is_set():
            try:
                consumer = Consumer(self.settings, concurrency, self.stop)
                consumer.lifespan = self.watch(consumer)
                await consumer.run_async()
            except* Exception as errors:
                self._unready = f"no connection to {self.settings.redis_url}: {reason(errors)}"
                log.error("%s", self._unready)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stop.wait(), RECONNECT)

    @asynccontextmanager
    async def watch(self, consumer: Consumer) -> AsyncIterator[None]:
        """Measure the queue while the consumer runs, and whether Redis answers."""

        async def look() -> None:
            while True:
                try:
                    async with asyncio.timeout(self.settings.redis_timeout):
                        await consumer.look()
                except (RedisError, OSError) as error:
                    self._unready = f"{self.settings.redis_url} does not answer: {error!r}"
                else:
                    self._unready = ""
                await asyncio.sleep(LOOK)

        log.info("connected to %s", self.settings.redis_url)
        looking = asyncio.create_task(look())
        try:
            yield
        finally:
            looking.cancel()


def run(settings: JobSettings) -> NoReturn:
    """Become a job worker."""
    logging.getLogger("coredis").setLevel(logging.CRITICAL)  # its errors are ours to tell, once
    logging.getLogger("streaq").setLevel(logging.ERROR)
    INFO.labels(*service()).set(1)
    Process(settings).run()
