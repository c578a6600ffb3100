"""The example task. What the compute pool makes of it is no matter of these tests."""

from types import ModuleType

import pytest


@pytest.mark.parametrize(
    ("limit", "count"), [(-1, 0), (1, 0), (2, 1), (3, 2), (10, 4), (100, 25), (1_000_000, 78_498)]
)
def test_primes(tasks: ModuleType, limit: int, count: int) -> None:
    assert tasks.primes(limit) == count
