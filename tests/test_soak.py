"""The generated project's own tests at full length: make soak."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import run

pytestmark = [
    pytest.mark.skipif(not os.environ.get("SOAK"), reason="only in make soak"),
    pytest.mark.timeout(1200),
]


def test_full_length(installed: Callable[..., Path]) -> None:
    print(run("make", "soak", "TESTS=tests/test_process_model.py", cwd=installed()))
