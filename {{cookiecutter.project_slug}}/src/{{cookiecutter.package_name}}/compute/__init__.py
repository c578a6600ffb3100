"""CPU-heavy work in processes of its own: `await compute.run(primes, limit)` from any handler."""

from .registry import task

__all__ = ["task"]
