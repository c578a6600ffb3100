"""The generated CI files: valid as their vendors say, and every line of them runs."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Answers, run, unavailable

Bake = Callable[..., Path]

GITHUB = Path(".github/workflows/ci.yml")
GITLAB = Path(".gitlab-ci.yml")
SCHEMAS = {
    GITHUB: ["--builtin-schema", "vendor.github-workflows"],
    GITLAB: ["--builtin-schema", "vendor.gitlab-ci", "--data-transform", "gitlab-ci"],
}
PROJECTS: list[Answers] = [
    {"ci": ci, "job_queue": queue} for ci in ("github", "gitlab") for queue in ("none", "redis")
]


def check_jsonschema(file: Path, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = Path(sys.executable).with_name("check-jsonschema")
    return subprocess.run(
        [command, *SCHEMAS[file], file], cwd=cwd, capture_output=True, text=True, check=False
    )


def lines(project: Path) -> Iterator[str]:
    """What the jobs of a project run, in order, each line as a shell gets it."""
    jobs: dict[str, Any]
    if (project / GITHUB).exists():
        jobs = yaml.safe_load((project / GITHUB).read_text())["jobs"]
        for job in jobs.values():
            yield from (step["run"] for step in job["steps"] if "run" in step)
    else:
        jobs = yaml.safe_load((project / GITLAB).read_text())
        for job in jobs.values():
            for part in ("before_script", "script", "after_script"):
                yield from job.get(part, [])


@pytest.mark.parametrize("answers", PROJECTS, ids=lambda answers: "-".join(answers.values()))
def test_is_valid(answers: Answers, bake: Bake) -> None:
    project = bake(**answers)
    file = GITHUB if answers["ci"] == "github" else GITLAB
    checked = check_jsonschema(file, project)
    assert checked.returncode == 0, checked.stdout


def test_a_job_may_not_be_called_like_a_keyword(bake: Bake, tmp_path: Path) -> None:
    valid = (bake(ci="gitlab", job_queue="none") / GITLAB).read_text()
    (tmp_path / GITLAB).write_text(valid.replace("\ncontainer:\n", "\nimage:\n"))
    assert "$.image" in check_jsonschema(GITLAB, tmp_path).stdout


@pytest.fixture(scope="session")
def runner(engine: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH on which docker is the engine of this machine, and root needs no sudo."""
    commands = tmp_path_factory.mktemp("runner")
    for name, instead in {"docker": engine, "sudo": ""}.items():
        (commands / name).write_text(f'#!/bin/sh\nexec {instead} "$@"\n')
        (commands / name).chmod(0o755)
    return f"{commands}:{os.environ['PATH']}"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("queue", ["none", "redis"])
def test_every_line_runs(queue: str, bake: Bake, runner: str) -> None:
    """In the order of the jobs; a line that both vendors' files have runs once."""
    projects = [bake(**answers) for answers in PROJECTS if answers["job_queue"] == queue]
    for line in dict.fromkeys(line for project in projects for line in lines(project)):
        if "apt-get" in line and os.geteuid():
            unavailable(f"only root runs {line!r}")
        run("bash", "-euo", "pipefail", "-c", line, cwd=projects[0], PATH=runner)
