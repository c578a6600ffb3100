"""Tasks as a user has them."""

from . import child_probes as child_probes  # its tasks
from .runtime import RefusedError, task


@task
def primes(limit: int) -> int:
    """How many primes are there up to and including `limit`?"""
    sieve = bytearray([0, 0]) + bytearray([1]) * (limit - 1)
    for number in range(2, int(limit**0.5) + 1):
        if sieve[number]:
            multiples = range(number * number, limit + 1, number)
            sieve[multiples.start :: number] = bytes(len(multiples))
    return sum(sieve[: limit + 1])


@task
def brew() -> int:
    raise RefusedError(409, "it is not a teapot")
