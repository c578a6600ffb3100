"""What is in Redis: jobs on their way, which are streaq's, and what became of them, which is ours.

streaq runs one function of ours, which never fails in its eyes, and keeps no results for it. So a
failure is ours to handle (retried, or kept as a dead letter), and so is a second delivery: streaq
would put down a job that somebody else has just done as a failed one.
"""

import json
import ssl
import time
from typing import Any

import streaq
from streaq.task import Task, TaskStatus
from streaq.types import Streaq

from .settings import JobSettings

JOB = "job"  # the one function that streaq knows

STATES = {
    TaskStatus.QUEUED: "queued",
    TaskStatus.RUNNING: "running",
    TaskStatus.SCHEDULED: "retrying",
}


def reason(errors: BaseExceptionGroup[Any]) -> BaseException:
    """The first error of a group, and of the groups in it."""
    first = errors.exceptions[0]
    return reason(first) if isinstance(first, BaseExceptionGroup) else first


class Worker(streaq.Worker[None]):
    """A connection to the queue; use it as an async context manager."""

    def __init__(self, settings: JobSettings, patience: float, concurrency: int = 1) -> None:
        """
        Args:
            patience: seconds to wait for an answer of Redis.
        """
        options: dict[str, Any] = {}
        if settings.redis_url.startswith("rediss:"):
            # the client's own default does not look at the name in the certificate
            options["ssl_context"] = ssl.create_default_context()
        if (password := settings.password()) is not None:
            options["password"] = password
        super().__init__(
            settings.redis_url,
            redis_kwargs={
                "connect_timeout": settings.redis_timeout,
                "stream_timeout": patience,
                **options,
            },
            concurrency=concurrency,
            queue_name=settings.jobs_queue,
            serializer=lambda data: json.dumps(data, default=str),
            deserializer=json.loads,
            idle_timeout=settings.jobs_lost_after,
        )
        self.prefetch = concurrency  # a job that waits here would wait for nobody else
        self.stream = self.stream_key + self.priorities[0]
        self.delayed = self.queue_key + self.priorities[0]
        self.dead_key = self.prefix + ":dead"

    def outcome_key(self, job_id: str) -> str:
        return f"{self.prefix}:outcome:{job_id}"

    def job(self, job_id: str, task: str, arguments: dict[str, object]) -> Task[Any, Any]:
        """A job that is enqueued when it is awaited."""
        job = self.enqueue_unsafe(JOB, task, arguments)
        job.id = job_id
        return job

    async def state(self, job_id: str) -> dict[str, Any] | None:
        """What is known of a job: its state, with its result or its error when it ended."""
        # in this order, for a job that ends in between
        state = STATES.get(await self.status_by_id(job_id))
        outcome = await self.redis.get(self.outcome_key(job_id))
        if outcome is not None:
            return {"id": job_id, **json.loads(outcome)}
        return None if state is None else {"id": job_id, "state": state}

    async def dead(self) -> dict[str, dict[str, Any]]:
        """The dead letters by the ids of their jobs, the oldest first."""
        letters = await self.redis.hgetall(self.dead_key)
        found = {job_id: json.loads(letter) for job_id, letter in letters.items()}
        return dict(sorted(found.items(), key=lambda item: item[1]["died"]))

    async def revive(self, job_id: str) -> bool:
        """Enqueue a dead job again, with all its tries; whether it was there."""
        letter = await self.redis.hget(self.dead_key, job_id)
        if letter is None or await self.status_by_id(job_id) != TaskStatus.NOT_FOUND:
            return False
        dead, now = json.loads(letter), round(time.time() * 1000)
        job = self.job(job_id, dead["task"], dead["arguments"])
        data = await job.serialize(now)
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.delete([self.outcome_key(job_id)])
            pipe.hdel(self.dead_key, [job_id])
            self.publish_task(pipe, job, data, now, Streaq(pipe))
        return True
