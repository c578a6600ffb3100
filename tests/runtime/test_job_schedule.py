"""Scheduled work of several pods that share a Redis: each turn is one pod's."""

import time
from collections.abc import Callable
from pathlib import Path

from conftest import Service, copy_code, wait_for
from job_kit import Redis
from overlay import PACKAGE
from test_schedule import APP, notes

Start = Callable[..., Service]


def test_one_pod_takes_a_turn(start: Start, redis: Redis, tmp_path: Path) -> None:
    code = copy_code(tmp_path / "own")
    (code / PACKAGE / "app.py").write_text(APP)
    began = int(time.time())
    env = {**redis.env, "WORK": "tick", "PROBE_NOTES": str(tmp_path / "notes")}
    pods = [start("web", code=code, **env) for _ in range(2)]
    for pod in pods:
        pod.notes = tmp_path / "notes"
        wait_for(lambda pod=pod: pod.says("scheduled work is done by this worker"))  # type: ignore[misc]
    wait_for(lambda: len(notes(pods[0])) >= 4)
    pods[0].kill()
    seen = len(notes(pods[1]))
    wait_for(lambda: len(notes(pods[1])) >= seen + 2)
    assert len(notes(pods[1])) <= int(time.time()) - began + 1

    redis.kill()
    wait_for(lambda: pods[1].total("scheduled_runs_total", work="tick", outcome="unclaimed") >= 1)
    assert pods[1].says(
        "tick: nobody knows whether another pod does it, so not here: the job queue"
    )
    redis.start()
    seen = len(notes(pods[1]))
    wait_for(lambda: len(notes(pods[1])) > seen)
