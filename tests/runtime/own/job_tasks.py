"""Tasks that leave traces, and those that fail, added to a copy of the package under test."""

import os
import signal
import time
from collections import deque
from collections.abc import Callable
from importlib import import_module
from itertools import repeat
from pathlib import Path
from typing import Any, TypeVar

from . import payload_tasks as payload_tasks  # its tasks

F = TypeVar("F", bound=Callable[..., object])

registry: Any = import_module(".runtime.compute.registry", __package__)


def task(function: F) -> F:
    made: F = registry.task(function)
    return made


@task
def work(trace: str, number: int, seconds: float) -> int:
    """Writes down when it begins and when it has done its work."""
    note(trace, f"begin {number}")
    time.sleep(seconds)
    note(trace, f"end {number}")
    return number


@task
def need(file: str, trace: str) -> str:
    """Fails until there is such a file."""
    note(trace, str(time.time()))
    return Path(file).read_text()


@task
def die(trace: str) -> None:
    note(trace, "begin")
    os.kill(os.getpid(), signal.SIGKILL)


@task
def hang(trace: str) -> None:
    """In C, where no exception can reach."""
    note(trace, "begin")
    deque(repeat(0), maxlen=0)


def note(trace: str, line: str) -> None:
    with Path(trace).open("a") as file:
        file.write(f"{line}\n")
