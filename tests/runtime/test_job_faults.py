"""The job queue where Redis lies, and where others have written into it."""

import http.client
import json
import os
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from conftest import Service, wait_for
from job_kit import (
    Firewall,
    Redis,
    Start,
    StartWorker,
    command,
    enqueue,
    job,
    lines,
    wait_for_end,
)
from overlay import PACKAGE

QUEUE = f"streaq:{PACKAGE}"
STREAM = f"{QUEUE}:queues:normal"


def through(wall: Firewall) -> dict[str, str]:
    # only REDIS_TIMEOUT can end the wait
    url = f"redis://127.0.0.1:{wall.port}/0"
    return {"REDIS_URL": url, "REDIS_TIMEOUT": "2", "JOBS_LOST_AFTER": "600"}


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="there is no IPv6")
def test_two_colons_mean_every_address(worker: StartWorker) -> None:
    service = worker(HOST="::", ADMIN_HOST="::")  # is asked over IPv4 until it is ready
    for host in ("127.0.0.1", "::1"):
        connection = http.client.HTTPConnection(host, service.admin_port, timeout=30)
        connection.request("GET", "/livez")
        assert connection.getresponse().status == 200
        connection.close()


# --- a connection that falls silent


def test_the_next_job_is_taken_after_a_connection_fell_silent(
    start: Start, redis: Redis, firewall: Firewall, job_code: Path, loop: str
) -> None:
    env = {**redis.env, **through(firewall)}
    web = start("web", code=job_code, WEB_CONCURRENCY="1", EVENT_LOOP=loop, **env)
    job_id = web.request("POST", "/primes/10").json()["id"]

    def ask(number: int) -> int:
        return web.request("POST", "/primes/10").status

    for silences in (1, 2):
        firewall.forget()
        with ThreadPoolExecutor(5) as clients:
            assert list(clients.map(ask, range(5))) == [503] * 5
        assert ask(0) == 202
        assert job(web, job_id)["state"] == "queued"
        assert web.log.read_text().count("connecting again") == silences
    assert web.stop() == 0


def test_a_job_worker_finds_back_from_a_connection_that_fell_silent(
    web: Service, worker: StartWorker, firewall: Firewall, tmp_path: Path, loop: str
) -> None:
    jobs, trace = worker(EVENT_LOOP=loop, **through(firewall)), tmp_path / "trace"
    assert wait_for_end(web, enqueue(web, "work", trace=str(trace), number=0, seconds=0))
    firewall.forget()  # while it waits for jobs
    last = enqueue(web, "work", trace=str(trace), number=1, seconds=3)
    wait_for(lambda: "begin 1" in lines(trace), 60)
    firewall.forget()  # while it does one
    wait_for_end(web, last)
    assert job(web, last)["state"] == "done"
    wait_for_end(web, enqueue(web, "work", trace=str(trace), number=2, seconds=0))
    assert lines(trace) == [f"{what} {n}" for n in range(3) for what in ("begin", "end")]
    assert jobs.log.read_text().count("no answer within") == 2
    assert jobs.stop() == 0


# --- what is no job


def send(redis: Redis, *words: bytes | str) -> bytes:
    """A command whose words are any bytes."""
    data = b"*%d\r\n" % len(words)
    for word in words:
        text = word.encode() if isinstance(word, str) else word
        data += b"$%d\r\n%s\r\n" % (len(text), text)
    with socket.create_connection(("127.0.0.1", redis.port), timeout=5) as connection:
        connection.sendall(data)
        answer = connection.recv(1 << 20)
    assert not answer.startswith(b"-"), answer
    return answer


def put(redis: Redis, job_id: str, data: bytes) -> None:
    send(redis, "SET", f"{QUEUE}:task:data:{job_id}", data)
    send(redis, "XADD", STREAM, "*", "task_id", job_id, "enqueue_time", str(int(time.time())))


def as_job(*args: object, **other: object) -> bytes:
    return json.dumps({"f": "job", "a": args, "k": {}, "t": 1, **other}).encode()


PICKLE = b"cos\nsystem\n(S'touch %s'\ntR."
POISON = {
    "list": b"[1,2]",
    "empty": b"{}",
    "null": b"null",
    "number": b"12",
    "text": b'"text"',
    "no JSON": b"{",
    "no text": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "not a number": b'{"f":"job","a":["work",{"seconds":NaN}],"k":{},"t":1}',
    "no task": as_job(),
    "one word": as_job("work"),
    "not a name": as_job(["work"], {}),
    "arguments in order": as_job("primes", [10]),
    "keywords": as_job("primes", {"limit": 10}, k={"limit": 10}),
    "after another": as_job("primes", {"limit": 10}, A="other"),
    "another function": as_job("primes", {"limit": 10}, f="system"),
}


def test_what_is_no_job_is_dead_and_the_worker_goes_on(
    web: Service, worker: StartWorker, redis: Redis, tmp_path: Path
) -> None:
    jobs = worker()
    proof = tmp_path / "proof"
    poison = {**POISON, "pickle": PICKLE % bytes(proof)}
    ids = {f"{number:032x}": name for number, name in enumerate(poison)}
    for job_id, name in ids.items():
        put(redis, job_id, poison[name])
    wrong_type, bare = "f" * 32, "e" * 32
    send(redis, "LPUSH", f"{QUEUE}:task:data:{wrong_type}", "x")
    send(redis, "XADD", STREAM, "*", "task_id", wrong_type, "enqueue_time", "1")
    send(redis, "XADD", STREAM, "*", "something", "else")
    send(redis, "XADD", STREAM, "*", "task_id", bare, "enqueue_time", "soon")
    send(redis, "ZADD", f"{QUEUE}:cron:schedule", "1", "nothing")
    job_id = enqueue(web, "work", trace="/dev/null", number=7, seconds=0)
    assert wait_for_end(web, job_id)["result"] == 7
    for entry, name in ids.items():
        dead = wait_for_end(web, entry)
        assert dead["state"] == "dead", name
        assert "no job of this service" in dead["error"], name
    assert "wrong kind" in wait_for_end(web, wrong_type)["error"]
    listed = command(redis, "jobs", "dead")
    assert listed.returncode == 0, listed.stderr
    assert len(listed.stdout.splitlines()) == len(ids) + 3
    assert command(redis, "jobs", "retry", next(iter(ids))).returncode == 1
    assert jobs.total("jobs_tried_total", task="unknown", outcome="dead") == len(ids) + 3
    assert jobs.log.read_text().count("connected to") == 1  # it never lost its connection
    wait_for(lambda: jobs.total("jobs_queue_depth", state="running") == 0)
    assert not proof.exists()


def test_whoever_writes_to_redis_can_run_tasks_and_nothing_else(
    web: Service, worker: StartWorker, redis: Redis, tmp_path: Path
) -> None:
    worker(JOBS_TRIES="1")
    proof = tmp_path / "proof"
    calls: list[tuple[str, dict[str, object]]] = [
        ("os.system", {"command": f"touch {proof}"}),
        ("__import__", {"name": "os"}),
        ("work.__globals__", {}),
        ("../work", {}),
        ("", {}),
        ("work", {"trace": "/dev/null", "number": "not an int", "seconds": 0}),
        ("work", {"trace": "/dev/null", "number": 1, "seconds": 0, "task": "other"}),
        ("work", {"self": 1}),
    ]
    for number, call in enumerate(calls):
        put(redis, f"{number:032x}", as_job(*call))
    put(redis, "a" * 32, as_job("primes", {"limit": 10}))
    assert wait_for_end(web, "a" * 32)["result"] == 4
    for number, call in enumerate(calls):
        assert wait_for_end(web, f"{number:032x}")["state"] == "dead", call
    # and what is kept of a job is read as JSON too
    for key in (f"{QUEUE}:outcome:{'b' * 32}", f"{QUEUE}:outcome:{'c' * 32}"):
        send(redis, "SET", key, PICKLE % bytes(proof))
        assert job(web, key[-32:])["state"] == "dead"
    send(redis, "HSET", f"{QUEUE}:dead", "d" * 32, PICKLE % bytes(proof), "e" * 32, "[1]")
    listed = command(redis, "jobs", "dead")
    assert listed.returncode == 0, listed.stderr
    assert not proof.exists()


# --- how many at a time

IN_ITS_OWN_CGROUP = """
mount -t tmpfs none /sys/fs/cgroup
echo 100000 100000 > /sys/fs/cgroup/cpu.max
exec "$@"
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="mounts files: needs root and unshare"
)
def test_as_many_jobs_at_a_time_as_there_are_cpus_now(
    web: Service, worker: StartWorker, tmp_path: Path
) -> None:
    jobs = worker(
        through=["unshare", "--mount", "sh", "-ec", IN_ITS_OWN_CGROUP, "-"],
        COMPUTE_CONCURRENCY="",
        JOBS_TIMEOUT="60",
    )
    quota = Path(f"/proc/{jobs.process.pid}/root/sys/fs/cgroup/cpu.max")

    def running() -> float:
        return jobs.total("jobs_queue_depth", state="running")

    for number in range(40):
        enqueue(web, "work", trace=str(tmp_path / "trace"), number=number, seconds=3)
    wait_for(lambda: running() == 1)
    for cpus in (3, 1, 2):
        quota.write_text(f"{cpus}00000 100000")
        wait_for(partial(lambda cpus: running() == cpus, cpus), 30)
