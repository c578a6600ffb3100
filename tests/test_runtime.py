"""The runtime's own tests, against generated projects and in their environments."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Answers, run
from test_answers import DEFAULT, RICHEST

HERE = Path(__file__).with_name("runtime")
FILES = sorted(file.name for file in HERE.glob("test_*.py"))
# Of what these prove nothing differs between the combinations; the richest has all of it.
ONCE = {
    "test_chat_soak.py",
    "test_dev.py",
    "test_elsewhere.py",
    "test_endings.py",
    "test_hostile_bodies.py",
    "test_hostile_clients.py",
    "test_hostile_fuzz.py",
    "test_hostile_requests.py",
    "test_moving_in.py",
    "test_openapi.py",
    "test_output.py",
    "test_page.py",
    "test_prometheus_client.py",
    "test_ready.py",
    "test_recipes.py",
    "test_soak.py",
    "test_statuses.py",
    "test_telling.py",
    "test_typed.py",
}
RUNS = [("default", DEFAULT, f) for f in FILES if not f.startswith("test_job") and f not in ONCE]
RUNS += [("richest", RICHEST, f) for f in FILES]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("answers", "file"), [run[1:] for run in RUNS], ids=[f"{run[0]}-{run[2]}" for run in RUNS]
)
def test_runtime(equipped: Callable[..., Path], answers: Answers, file: str) -> None:
    print(runtime_tests(equipped(**answers), file))


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
