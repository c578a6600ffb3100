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


@pytest.mark.parametrize(("job_queue", "tests"), [("none", "process_model"), ("redis", "jobs")])
def test_full_length(installed: Callable[..., Path], job_queue: str, tests: str) -> None:
    project = installed(job_queue=job_queue)
    print(run("make", "soak", f"TESTS=tests/test_{tests}.py", cwd=project))
