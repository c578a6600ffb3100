"""The runtime's own tests, against generated projects and in their environments."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Answers, run
from test_answers import DEFAULT, RICHEST

HERE = Path(__file__).with_name("runtime")


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("answers", [RICHEST, DEFAULT], ids=["richest", "default"])
def test_runtime(
    equipped: Callable[..., Path], answers: Answers, request: pytest.FixtureRequest
) -> None:
    """All of them; PYTEST_ADDOPTS=--last-failed, after that, those that failed."""
    assert request.config.cache is not None
    kept = request.config.cache.mkdir("runtime") / request.node.callspec.id
    print(runtime_tests(equipped(**answers), "--override-ini", f"cache_dir={kept}"))


@pytest.mark.skipif(not os.environ.get("SOAK"), reason="only in make soak")
@pytest.mark.timeout(1800)
def test_process_model_at_length(equipped: Callable[..., Path]) -> None:
    print(runtime_tests(equipped(), "test_process_model.py", "-n0", "--timeout=600"))


@pytest.mark.skipif(not os.environ.get("SOAK"), reason="only in make soak")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("file", ["test_soak.py", "test_chat_soak.py"])
def test_faults_at_length(equipped: Callable[..., Path], file: str) -> None:
    print(runtime_tests(equipped(**RICHEST), file, "-n0"))


def runtime_tests(project: Path, *arguments: str) -> str:
    """What the runtime's tests say of this project; they must pass."""
    python = project / ".venv" / "bin" / "python"
    return run(python, "-m", "pytest", *arguments, cwd=HERE, PROJECT=str(project))
