"""The job queue: a real Redis, real workers, and everything that can end in the middle."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from conftest import HANGS, SOAK, Service, free_port, make_certificate, running, wait_for
from job_kit import (
    LOST_AFTER,
    Redis,
    Start,
    StartWorker,
    command,
    enqueue,
    job,
    lines,
    ready,
    wait_for_end,
)
from overlay import PACKAGE, PROJECT

JOBS = 2000 if SOAK else 200

pytestmark = pytest.mark.timeout(900 if SOAK else 120)
at_length = pytest.mark.skipif(not SOAK, reason="takes its time: SOAK=1")


# --- what a job is


def test_a_job_is_accepted_done_and_answered_for(
    web: Service, worker: StartWorker, redis: Redis, loop: str
) -> None:
    response = web.request("POST", "/primes/1000000")
    assert response.status == 202
    url = response.headers["Location"]
    assert response.json() == {"id": url.removeprefix("/jobs/"), "url": url}
    assert web.get(url).json()["state"] == "queued"
    key = f"streaq:{PACKAGE}:task:data:{response.json()['id']}"
    assert json.loads(redis.call("GET", key).split("\r\n")[1])["a"] == ["primes", {"limit": 10**6}]

    jobs = worker(EVENT_LOOP=loop)
    done = wait_for_end(web, response.json()["id"])
    assert done == {"id": response.json()["id"], "state": "done", "result": 78498}
    assert web.get(f"/jobs/{'0' * 32}").status == 404
    assert web.total("jobs_enqueued_total", task="primes") == 1
    assert jobs.total("jobs_tried_total", task="primes", outcome="done") == 1
    assert jobs.total("jobs_duration_seconds_count", task="primes") == 1
    assert jobs.total("compute_tasks_total", task="primes", outcome="ok") == 1
    assert jobs.get("/livez", admin=True).status == 200
    assert jobs.stop() == 0


def test_what_json_has_not_is_in_redis_as_json_and_arrives_as_it_was(
    web: Service, worker: StartWorker, redis: Redis
) -> None:
    picture = {"pixels": "AQID", "width": 3}
    job_id = enqueue(web, "frame", picture=picture, taken="2026-02-03T04:05:06Z", kind="mirrored")
    kept = json.loads(redis.call("GET", f"streaq:{PACKAGE}:task:data:{job_id}").split("\r\n")[1])
    arguments = {"picture": picture, "taken": "2026-02-03T04:05:06Z", "kind": "mirrored"}
    assert kept["a"] == ["frame", arguments]
    endless = enqueue(web, "endless")
    worker()
    mirrored = {"pixels": "AwIB", "width": 3}
    result = {"picture": mirrored, "kind": "mirrored", "taken": "2026-02-04T04:05:06Z"}
    assert wait_for_end(web, job_id) == {"id": job_id, "state": "done", "result": result}
    assert "not JSON compliant" in wait_for_end(web, endless)["error"]


def test_the_queue_is_measured(web: Service, worker: StartWorker, tmp_path: Path) -> None:
    jobs = worker()
    for number in range(3):
        enqueue(web, "work", trace=str(tmp_path / "trace"), number=number, seconds=3)
    wait_for(lambda: jobs.total("jobs_queue_depth", state="running") == 1)
    assert jobs.total("jobs_queue_depth", state="queued") == 2
    wait_for(lambda: jobs.total("jobs_oldest_seconds") > 1)


def test_a_job_that_fails_is_tried_again_a_little_later(
    web: Service, worker: StartWorker, tmp_path: Path
) -> None:
    jobs = worker()
    file, trace = tmp_path / "file", tmp_path / "trace"
    job_id = enqueue(web, "need", file=str(file), trace=str(trace))
    wait_for(lambda: len(lines(trace)) == 2)
    assert job(web, job_id)["state"] in ("running", "retrying")
    file.write_text("here")
    assert wait_for_end(web, job_id)["result"] == "here"
    first, second, third = map(float, lines(trace))
    assert second - first > 0.2
    assert third - second > 0.4
    assert jobs.total("jobs_tried_total", task="need", outcome="retried") == 2


def test_a_dead_job_waits_for_somebody_to_look_at_it(
    web: Service, worker: StartWorker, redis: Redis, tmp_path: Path
) -> None:
    jobs = worker()
    file, trace = tmp_path / "file", tmp_path / "trace"
    job_id = enqueue(web, "need", file=str(file), trace=str(trace))
    dead = wait_for_end(web, job_id)
    assert dead["state"] == "dead"
    assert "need raised FileNotFoundError" in dead["error"]
    assert len(lines(trace)) == 3
    wait_for(lambda: jobs.total("jobs_queue_depth", state="dead") == 1)
    (listed,) = command(redis, "jobs", "dead").stdout.splitlines()
    assert listed.startswith(job_id)
    assert str(file) in listed
    assert "FileNotFoundError" in listed

    file.write_text("here at last")
    unknown = command(redis, "jobs", "retry", "nonsense", job_id)
    assert (unknown.returncode, job_id in unknown.stderr) == (1, False)
    assert "nonsense is not among the dead" in unknown.stderr
    assert wait_for_end(web, job_id)["result"] == "here at last"
    assert command(redis, "jobs", "dead").stdout == ""


def test_a_task_that_crashes_or_hangs_takes_nothing_with_it(
    web: Service, worker: StartWorker, tmp_path: Path
) -> None:
    jobs = worker(JOBS_TRIES="2", JOBS_TIMEOUT="1", COMPUTE_CONCURRENCY="2")
    died, hung = (enqueue(web, task, trace=str(tmp_path / task)) for task in ("die", "hang"))
    assert wait_for_end(web, enqueue(web, "work", trace="/dev/null", number=1, seconds=0.1))
    assert "its worker died" in wait_for_end(web, died)["error"]
    assert "no result within" in wait_for_end(web, hung)["error"]
    assert lines(tmp_path / "die") == lines(tmp_path / "hang") == ["begin"] * 2
    assert running(jobs.process.pid)
    assert jobs.total("jobs_tried_total", outcome="dead") == 2


# --- ends and losses


def test_a_worker_that_stops_ends_its_job_first(
    web: Service, worker: StartWorker, tmp_path: Path
) -> None:
    jobs, trace = worker(), tmp_path / "trace"
    ids = [enqueue(web, "work", trace=str(trace), number=n, seconds=1) for n in range(3)]
    wait_for(lambda: lines(trace))
    assert jobs.stop() == 0
    assert lines(trace) == ["begin 0", "end 0"]
    assert [job(web, job_id)["state"] for job_id in ids] == ["done", "queued", "queued"]


def test_a_job_that_does_not_end_in_time_is_handed_over(
    web: Service, worker: StartWorker, tmp_path: Path
) -> None:
    jobs, trace = worker(GRACEFUL_TIMEOUT="1"), tmp_path / "trace"
    job_id = enqueue(web, "work", trace=str(trace), number=0, seconds=2)
    wait_for(lambda: lines(trace))
    assert jobs.stop() == 0
    worker()
    assert wait_for_end(web, job_id)["state"] == "done"
    assert lines(trace) == ["begin 0", "begin 0", "end 0"]


@at_length
def test_a_long_job_is_nobody_elses_while_its_worker_lives(
    web: Service, worker: StartWorker, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    _ = worker(JOBS_TIMEOUT="30"), worker(JOBS_TIMEOUT="30")
    job_id = enqueue(web, "work", trace=str(trace), number=0, seconds=2.5 * LOST_AFTER)
    assert wait_for_end(web, job_id)["state"] == "done"
    assert lines(trace) == ["begin 0", "end 0"]


@at_length
def test_a_worker_is_lost_with_its_pool(web: Service, worker: StartWorker, tmp_path: Path) -> None:
    jobs, trace = worker(), tmp_path / "trace"
    job_id = enqueue(web, "work", trace=str(trace), number=0, seconds=1)
    wait_for(lambda: lines(trace))
    (pool,) = jobs.workers()
    os.kill(pool, signal.SIGKILL)
    assert jobs.ended() == 1
    assert jobs.says("the compute pool ended")
    worker()
    assert wait_for_end(web, job_id)["state"] == "done"


@at_length
def test_a_job_that_takes_its_worker_along_every_time_is_dead(
    web: Service, worker: StartWorker, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    job_id = enqueue(web, "work", trace=str(trace), number=0, seconds=30)
    for tries in (1, 2):
        jobs = worker(JOBS_TRIES="2")
        wait_for(lambda tries=tries: len(lines(trace)) == tries)  # type: ignore[misc]
        jobs.kill()
    worker(JOBS_TRIES="2")
    assert "its worker was lost" in wait_for_end(web, job_id)["error"]
    assert lines(trace) == ["begin 0"] * 2


def all_done(web: Service, trace: Path, ids: list[str], most_repeated: int) -> None:
    """Every job was done; those that began more than once are not too many."""
    wait_for(lambda: len({x for x in lines(trace) if x[0] == "e"}) == len(ids), 60 if SOAK else 30)
    ended = Counter(line for line in lines(trace) if line.startswith("end"))
    begun = sum(line.startswith("begin") for line in lines(trace))
    assert len(ended) == len(ids)
    assert begun <= len(ids) + most_repeated, Counter(lines(trace)).most_common(10)
    wait_for(lambda: all(job(web, job_id)["state"] == "done" for job_id in ids))


def test_no_job_is_lost_when_workers_are_killed_every_second(
    web: Service, worker: StartWorker, tmp_path: Path
) -> None:
    trace, kills = tmp_path / "trace", 0
    endure = {"JOBS_TRIES": "1000"}  # each of these ends is a try
    workers = [worker(**endure) for _ in range(3)]
    ids = [enqueue(web, "work", trace=str(trace), number=n, seconds=0.05) for n in range(JOBS)]
    # a worker lives for three seconds; where it takes as long to start, nothing would be done
    limit = time.monotonic() + (500 if SOAK else 20)
    while sum(line.startswith("end") for line in lines(trace)) < JOBS and time.monotonic() < limit:
        time.sleep(1)
        workers.pop(0).kill()
        workers.append(worker(wait=False, **endure))
        kills += 1
    assert kills > 3
    all_done(web, trace, ids, most_repeated=kills)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=at_length)])
def test_no_job_is_lost_when_redis_restarts(
    web: Service, worker: StartWorker, redis: Redis, tmp_path: Path, number: signal.Signals
) -> None:
    trace = tmp_path / "trace"
    jobs = [worker(), worker()]
    ids = [enqueue(web, "work", trace=str(trace), number=n, seconds=0.02) for n in range(JOBS)]
    wait_for(lambda: len(lines(trace)) > JOBS // 4)
    redis.process.send_signal(number)
    redis.process.wait()
    wait_for(lambda: not any(map(ready, jobs)))
    assert all(service.get("/livez", admin=True).status == 200 for service in jobs)
    redis.start()
    all_done(web, trace, ids, most_repeated=len(jobs))


@at_length
def test_a_worker_finds_back_to_a_redis_that_fell_silent(
    web: Service, worker: StartWorker, redis: Redis, tmp_path: Path
) -> None:
    jobs, trace = worker(), tmp_path / "trace"
    ids = [enqueue(web, "work", trace=str(trace), number=n, seconds=0.5) for n in range(3)]
    wait_for(lambda: lines(trace))
    redis.process.send_signal(signal.SIGSTOP)
    wait_for(lambda: not ready(jobs))
    time.sleep(2 * LOST_AFTER)
    redis.process.send_signal(signal.SIGCONT)
    all_done(web, trace, ids, most_repeated=1)
    redis.process.send_signal(signal.SIGSTOP)
    wait_for(lambda: not ready(jobs))
    assert jobs.stop() == 0


@pytest.mark.parametrize("how", ["gone", "silent"])
def test_the_service_is_well_without_redis(
    start: Start, redis: Redis, job_code: Path, how: str
) -> None:
    if how == "gone":
        redis.kill()
    env = redis.env | {"REDIS_TIMEOUT": "0.5"}
    web = start("serve", code=job_code, WEB_CONCURRENCY="1", **env)
    if how == "silent":
        wait_for(lambda: web.request("POST", "/primes/10").status == 202)
        redis.process.send_signal(signal.SIGSTOP)
    for method, path in (("POST", "/primes/10"), ("GET", f"/jobs/{'0' * 32}")):
        response = web.request(method, path)
        assert response.status == 503
        assert "the job queue" in response.json()["detail"]
        assert "Retry-After" in response.headers
    assert web.get("/").status == 200
    wait_for(lambda: web.get("/primes/10").status == 200)
    assert web.get("/readyz", admin=True).status == 200
    assert web.total("jobs_rejected_total", task="primes") >= 1
    if how == "gone":
        redis.start()
    redis.process.send_signal(signal.SIGCONT)
    wait_for(lambda: web.request("POST", "/primes/10").status == 202)
    assert web.stop() == 0


def test_a_redis_that_has_lost_everything_is_set_up_again(
    web: Service, worker: StartWorker, redis: Redis
) -> None:
    worker()
    enqueue(web, "work", trace="/dev/null", number=0, seconds=0)
    redis.call("FLUSHALL")
    redis.call("FUNCTION", "FLUSH")
    again = wait_for(lambda: (r := web.request("POST", "/primes/10")).status == 202 and r)
    assert wait_for_end(web, again.json()["id"])["result"] == 4


# --- settings


def test_password_from_a_file_and_tls(
    start: Start, job_code: Path, redis: Redis, tmp_path: Path
) -> None:
    redis.kill()
    key, certificate = make_certificate(tmp_path)
    tls_port = free_port()
    redis.options = ("--tls-port", str(tls_port), "--tls-cert-file", str(certificate))
    redis.options += ("--tls-key-file", str(key), "--tls-auth-clients", "no")
    redis.options += ("--requirepass", "pass word/%40")
    redis.start()
    file = tmp_path / "password"
    file.write_text("pass word/%40\n")
    env = redis.env | {"REDIS_PASSWORD_FILE": str(file), "SSL_CERT_FILE": str(certificate)}
    env["REDIS_TIMEOUT"] = "1"
    good = start("web", code=job_code, **env | {"REDIS_URL": f"rediss://localhost:{tls_port}"})
    wait_for(lambda: good.request("POST", "/primes/10").status == 202)
    for wrong in (
        {"REDIS_URL": f"rediss://127.0.0.1:{tls_port}"},  # not the name in the certificate
        {"REDIS_URL": f"rediss://localhost:{tls_port}", "SSL_CERT_FILE": ""},
        {"REDIS_PASSWORD_FILE": ""},
    ):
        service = start("web", code=job_code, **env | wrong)
        assert service.says("no job queue at")
        assert service.request("POST", "/primes/10").status == 503


WRONG = {
    "REDIS_URL": ("http://x", "redis://host:port"),
    "REDIS_PASSWORD_FILE": ("/nonexistent", "cannot be read"),
    "REDIS_TIMEOUT": ("0", "a number from"),
    "JOBS_QUEUE": ("a b", "letters, digits"),
    "JOBS_TRIES": ("0", "whole number from 1"),
    "JOBS_TIMEOUT": ("never", "a number"),
    "PORT": ("http", "whole number"),
}


@pytest.mark.parametrize("name", ["jobs", "web"])
def test_wrong_settings_stop_the_start_with_all_of_them(name: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", PACKAGE, name],
        env={setting: value for setting, (value, _) in WRONG.items()},
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )
    assert result.returncode == 2
    for setting, (value, rule) in WRONG.items():
        assert re.search(f"{setting}='{re.escape(value)}'.*{rule}", result.stderr), result.stderr


def test_a_port_that_is_taken_stops_the_start(worker: StartWorker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        jobs = worker(wait=False, ADMIN_PORT=port)
        assert jobs.ended() == 2
    assert jobs.says(f"ADMIN_PORT={port}")
    assert not jobs.says("Traceback")


def test_no_password_is_shown() -> None:
    settings = import_module(f"{PACKAGE}.runtime.jobs.settings").JobSettings
    assert "secret" not in str(settings.from_env({"REDIS_PASSWORD": "secret"}).as_json())
    wrong: Any = import_module(f"{PACKAGE}.runtime.settings").SettingsError
    with pytest.raises(wrong, match="REDIS_PASSWORD_FILE"):
        settings.from_env({"REDIS_URL": "redis://:secret@host"})


def test_every_setting_of_jobs_has_a_row() -> None:
    settings = import_module(f"{PACKAGE}.runtime.jobs.settings")
    page = (PROJECT / "docs" / "settings.md").read_text()
    for name in settings.JobSettings().as_json():
        assert re.search(rf"^\| *`{name}`", page, re.M), f"{name} has no row in docs/settings.md"
