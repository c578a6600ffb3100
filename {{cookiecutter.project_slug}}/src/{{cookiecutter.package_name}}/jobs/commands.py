"""`python -m PACKAGE jobs`: a job worker. `jobs dead` and `jobs retry`: for people.

Imports what takes long only when the settings are known to be right.
"""

import argparse
import os
import sys
from typing import NoReturn

from ..commands import runtime_folder
from .settings import JobSettings


def add_to(parser: argparse.ArgumentParser) -> None:
    choices = parser.add_subparsers(dest="job_command", metavar="COMMAND")
    choices.add_parser("dead", help="list the jobs that failed for good, the oldest first")
    retry = choices.add_parser("retry", help="enqueue dead jobs again")
    retry.add_argument("ids", metavar="ID", nargs="+", help="of a job, as `jobs dead` lists it")


def run(arguments: argparse.Namespace, settings: JobSettings) -> NoReturn:
    if arguments.job_command is None:
        work(settings)

    from . import dead

    sys.exit(dead.run(settings, getattr(arguments, "ids", None)))


def work(settings: JobSettings) -> NoReturn:
    with runtime_folder(settings) as folder:
        # the compute pool of a job worker is its own, and gives tasks the time of jobs
        os.environ["COMPUTE_URL"] = f"unix:{folder}/compute.sock"
        os.environ["COMPUTE_TIMEOUT"] = str(settings.jobs_timeout)

        from . import worker

        worker.run(JobSettings.from_env())
