"""Tasks that do what no task should, added to a copy of the package under test."""

import os
import signal
import time
from collections import deque
from collections.abc import Callable
from importlib import import_module
from itertools import repeat
from pathlib import Path
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., object])

registry: Any = import_module(".runtime.compute.registry", __package__)


def task(function: F) -> F:
    made: F = registry.task(function)
    return made


@task
def sleep(seconds: float, begun: str | None = None) -> int:
    if begun is not None:
        Path(begun).touch()
    time.sleep(seconds)
    return os.getpid()


@task
def burn(milliseconds: int) -> int:
    end = time.process_time_ns() + milliseconds * 1_000_000
    while time.process_time_ns() < end:
        sum(range(1000))
    return os.getpid()


@task
def write(path: str) -> None:
    Path(path).touch()


@task
def fail(text: str) -> None:
    raise LookupError(text)


@task
def lie() -> int:
    return "no number"  # type: ignore[return-value]


@task
def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@task
def hang() -> None:
    """In C, where no exception can reach."""
    deque(repeat(0), maxlen=0)
