"""`python -m PACKAGE jobs`: a job worker. `jobs dead` and `jobs retry`: for people."""

import argparse
import asyncio
import json
import os
import sys
from datetime import UTC, datetime
from typing import NoReturn

from coredis.exceptions import RedisError

from ..commands import runtime_folder
from .queue import Worker, reason
from .settings import JobSettings


def add_to(parser: argparse.ArgumentParser) -> None:
    choices = parser.add_subparsers(dest="job_command", metavar="COMMAND")
    choices.add_parser("dead", help="list the jobs that failed for good, the oldest first")
    retry = choices.add_parser("retry", help="enqueue dead jobs again")
    retry.add_argument("ids", metavar="ID", nargs="+", help="of a job, as `jobs dead` lists it")


def run(arguments: argparse.Namespace, settings: JobSettings) -> NoReturn:
    if arguments.job_command is None:
        work(settings)
    try:
        if arguments.job_command == "dead":
            code = asyncio.run(list_dead(settings))
        else:
            code = asyncio.run(retry(settings, arguments.ids))
    except* (RedisError, OSError) as errors:
        print(f"no answer of {settings.redis_url}: {reason(errors)}", file=sys.stderr)
        code = 1
    sys.exit(code)


def work(settings: JobSettings) -> NoReturn:
    with runtime_folder(settings) as folder:
        # the compute pool of a job worker is its own, and gives tasks the time of jobs
        os.environ["COMPUTE_URL"] = f"unix:{folder}/compute.sock"
        os.environ["COMPUTE_TIMEOUT"] = str(settings.jobs_timeout)

        from . import worker

        worker.run(JobSettings.from_env())


async def list_dead(settings: JobSettings) -> int:
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
