"""CPU-heavy work in processes of its own: `await compute.run(primes, limit)` from any handler."""

from .client import (
    ComputeError,
    DeadlineError,
    PoolDownError,
    QueueFullError,
    TaskError,
    WorkerDiedError,
    run,
)
from .registry import RefusedError, task

__all__ = [
    "ComputeError",
    "DeadlineError",
    "PoolDownError",
    "QueueFullError",
    "RefusedError",
    "TaskError",
    "WorkerDiedError",
    "run",
    "task",
]
