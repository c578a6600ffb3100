"""The dead letters, for people: who they are, and another life for them."""

import asyncio
import json
import sys
from datetime import UTC, datetime

from coredis.exceptions import RedisError

from .queue import Worker, reason
from .settings import JobSettings


def run(settings: JobSettings, retried: list[str] | None) -> int:
    """List the dead, or retry those named; the exit code."""
    try:
        return asyncio.run(show(settings) if retried is None else retry(settings, retried))
    except* (RedisError, OSError) as errors:
        print(f"no answer of {settings.redis_url}: {reason(errors)}", file=sys.stderr)
    return 1


async def show(settings: JobSettings) -> int:
    async with Worker(settings, settings.redis_timeout) as queue:
        for job_id, letter in (await queue.dead()).items():
            died = datetime.fromtimestamp(letter["died"], UTC).isoformat(" ", "seconds")
            arguments = json.dumps(letter["arguments"])
            print(job_id, died, f"{letter['task']}({arguments}): {letter['error']}", sep="  ")
    return 0


async def retry(settings: JobSettings, ids: list[str]) -> int:
    async with Worker(settings, settings.redis_timeout) as queue:
        missing = [job_id for job_id in ids if not await queue.revive(job_id)]
    for job_id in missing:
        print(f"{job_id} is not among the dead; `jobs dead` lists them", file=sys.stderr)
    return int(bool(missing))
