"""Yours: CPU-heavy work: plain functions, marked `@task`, run by `await compute.run(...)`."""

from math import isqrt

from .runtime import task


@task
def primes(limit: int) -> int:
    """How many primes are there up to and including `limit`?"""
    if limit < 2:
        return 0
    sieve = bytearray([0, 0]) + bytearray([1]) * (limit - 1)
    for number in range(2, isqrt(limit) + 1):
        if sieve[number]:
            multiples = range(number * number, limit + 1, number)
            sieve[multiples.start :: number] = bytes(len(multiples))
    return sieve.count(1)
