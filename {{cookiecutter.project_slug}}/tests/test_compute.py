"""The compute pool: real gunicorn workers, and a client on each event loop."""

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import misbehaving_tasks as tasks
import pytest
import uvloop
from misbehaving_tasks import PACKAGE, registry

client: Any = import_module(f"{PACKAGE}.compute.client")
metrics: Any = import_module(f"{PACKAGE}.telemetry.metrics")
primes: Any = import_module(f"{PACKAGE}.tasks").primes

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
Outcome = tuple[Any, float]


@dataclass
class Pool:
    url: str
    loop: str = "uvloop"
    timeout: float = 30
    process: subprocess.Popen[bytes] | None = None

    def run(self, main: Callable[[], Awaitable[Any]]) -> Any:
        """What `main` returns, run in a loop in which this pool is open."""

        async def inside() -> Any:
            context = client.compute_ctx(None)
            await anext(context)
            try:
                return await main()
            finally:
                await anext(context, None)

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COMPUTE_URL", self.url)
            patch.setenv("COMPUTE_TIMEOUT", str(self.timeout))
            with asyncio.Runner(loop_factory=LOOPS[self.loop]) as runner:
                return runner.run(inside())

    def call(self, task: Callable[..., object], *args: object) -> Any:
        return self.run(lambda: client.run(task, *args))

    def workers(self) -> list[int]:
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]


async def outcome(task: Callable[..., object], *args: object) -> Outcome:
    """The result or the exception, and how long it took."""
    began = time.perf_counter()
    try:
        result = await client.run(task, *args)
    except Exception as error:
        result = error
    return result, time.perf_counter() - began


def later(task: Callable[..., object], *args: object) -> asyncio.Task[Outcome]:
    return asyncio.create_task(outcome(task, *args))


@contextmanager
def pool_at(
    url: str,
    loop: str = "uvloop",
    *,
    workers: int = 1,
    timeout: float = 30,
    backlog: int = 64,
    max_tasks: int = 0,
) -> Iterator[Pool]:
    command = [sys.executable, "-m", "gunicorn", "--no-control-socket", "--worker-class=sync"]
    command += [f"--bind={url.removeprefix('http://')}", f"--workers={workers}"]
    command += [f"--backlog={backlog}", f"--max-requests={max_tasks}"]
    command += [f"--timeout={timeout + 1:.0f}", "misbehaving_tasks:application()"]
    env = os.environ | {"COMPUTE_TIMEOUT": str(timeout)}
    process = subprocess.Popen(command, cwd=Path(__file__).parent, env=env)
    pool = Pool(url, loop, timeout, process)
    try:
        ready = time.monotonic() + 10
        while True:
            try:
                if pool.call(primes, 10) == 4:
                    break
            except client.PoolDownError:
                assert process.poll() is None
                assert time.monotonic() < ready
                time.sleep(0.02)
        yield pool
    finally:
        process.terminate()
        process.wait(10)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def unix(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/compute.sock"


def address(kind: str, unix: str) -> str:
    return unix if kind == "unix" else f"http://127.0.0.1:{free_port()}"


@pytest.fixture(params=["unix-uvloop", "http-asyncio"])
def place(request: pytest.FixtureRequest, unix: str) -> tuple[str, str]:
    """A URL for the pool, and a loop for its caller."""
    kind, loop = request.param.split("-")
    return address(kind, unix), loop


@pytest.fixture(params=["unix-uvloop", "unix-asyncio", "http-uvloop", "http-asyncio"])
def every_place(request: pytest.FixtureRequest, unix: str) -> tuple[str, str]:
    kind, loop = request.param.split("-")
    return address(kind, unix), loop


def test_a_task_stays_a_function() -> None:
    assert primes(1_000_000) == 78498
    assert [primes(n) for n in (-1, 0, 1, 2, 3, 4)] == [0, 0, 0, 1, 2, 2]


def twice(number: int) -> int:
    return 2 * number


async def coroutine(number: int) -> int:
    return number


def untyped(number) -> int:  # type: ignore[no-untyped-def]
    return int(number)


def unanswered(number: int):  # type: ignore[no-untyped-def]
    return number


def tupled(number: int) -> tuple[int, int]:
    return number, number


def many(*numbers: int) -> int:
    return len(numbers)


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (coroutine, "no plain `def`"),
        (untyped, "no type is given for number"),
        (unanswered, "no type is given for return"),
        (tupled, r"tuple\[int, int\] does not fit in JSON"),
        (many, r"\*numbers: int cannot be passed by name"),
        (primes, "has a task of that name already"),
    ],
)
def test_what_cannot_be_a_task_is_refused(function: Callable[..., object], complaint: str) -> None:
    with pytest.raises(TypeError, match=complaint):
        registry.task(function)


def nested(values: dict[str, list[float | None]], exact: bool = False) -> None: ...


@pytest.mark.parametrize(
    ("arguments", "fits"),
    [
        ([{"a": [1, 2.5, None]}], True),
        ([{}, True], True),
        ([], False),
        ([{}, 1], False),
        ([{"a": [True]}], False),
        ([{1: []}], False),
        ([{"a": ["1"]}], False),
        ([{}, True, 1], False),
    ],
)
def test_arguments_are_checked(
    monkeypatch: pytest.MonkeyPatch, arguments: list[Any], fits: bool
) -> None:
    monkeypatch.setattr(registry, "tasks", {})
    registry.task(nested)
    if fits:
        registry.find(nested).arguments(*arguments)
    else:
        with pytest.raises(TypeError, match="nested: "):
            registry.find(nested).arguments(*arguments)


def test_only_tasks_are_run(unix: str) -> None:
    pool = Pool(unix)
    with pytest.raises(TypeError, match="twice is no task; mark it with @task"):
        pool.call(twice, 1)
    with pytest.raises(TypeError, match="primes: '10' does not fit limit: int"):
        pool.call(primes, "10")


def test_results_and_exceptions_arrive(every_place: tuple[str, str]) -> None:
    with pool_at(*every_place) as pool:
        assert pool.call(primes, 1_000_000) == 78498
        with pytest.raises(client.TaskError, match="fail raised LookupError: lost") as raised:
            pool.call(tasks.fail, "lost")
        assert (raised.value.type, raised.value.message) == ("LookupError", "lost")
        assert raised.value.status == 500
        with pytest.raises(client.TaskError, match="returned 'no number'"):
            pool.call(tasks.lie)


def test_a_full_queue_refuses_at_once_and_loses_nothing(every_place: tuple[str, str]) -> None:
    async def overload() -> tuple[list[Outcome], list[Outcome]]:
        working = later(tasks.sleep, 0.5)
        await asyncio.sleep(0.2)
        queued = []
        for _ in range(5):  # the kernel takes one more than the backlog of 4
            queued.append(later(primes, 10))
            await asyncio.sleep(0.01)
        refused = await asyncio.gather(*[outcome(primes, 10) for _ in range(10)])
        return await asyncio.gather(working, *queued), refused

    with pool_at(*every_place, backlog=4) as pool:
        before = metrics.COMPUTE_REJECTED._value.get()
        accepted, refused = pool.run(overload)
        assert [result for result, _ in accepted[1:]] == [4] * 5
        for error, seconds in refused:
            assert isinstance(error, client.QueueFullError)
            assert (error.status, error.retry_after) == (503, 1)
            assert seconds < 0.05
        assert metrics.COMPUTE_REJECTED._value.get() == before + 10
        assert pool.call(primes, 10) == 4


def test_nobody_there(place: tuple[str, str]) -> None:
    pool = Pool(*place)
    result, seconds = pool.run(lambda: outcome(primes, 10))
    assert isinstance(result, client.PoolDownError)
    assert (result.status, result.retry_after) == (503, 5)
    assert seconds < 0.1


def test_a_killed_worker_costs_one_caller_its_answer(place: tuple[str, str]) -> None:
    async def around_a_death() -> list[Outcome]:
        neighbour = later(tasks.sleep, 0.3)
        await asyncio.sleep(0.1)
        return [await outcome(tasks.die), await outcome(primes, 10), await neighbour]

    with pool_at(*place, workers=2) as pool:
        (died, seconds), (later_result, _), (neighbour, _) = pool.run(around_a_death)
        assert isinstance(died, client.WorkerDiedError)
        assert died.status == 500
        assert seconds < 0.2
        assert later_result == 4
        assert neighbour in pool.workers()


def test_a_worker_killed_while_idle_costs_nobody_anything(unix: str) -> None:
    async def kill_then_call(pool: Pool) -> Any:
        os.kill(pool.workers()[0], signal.SIGSTOP)
        waiting = later(primes, 10)
        await asyncio.sleep(0.1)
        os.kill(pool.workers()[0], signal.SIGKILL)
        return (await waiting)[0]

    with pool_at(unix) as pool:
        assert pool.run(lambda: kill_then_call(pool)) == 4


def test_a_task_over_its_deadline_is_stopped_and_its_worker_replaced(
    place: tuple[str, str],
) -> None:
    with pool_at(*place, timeout=1) as pool:
        worker = pool.call(tasks.sleep, 0)
        (result, seconds) = pool.run(lambda: outcome(tasks.sleep, 20))
        assert isinstance(result, client.DeadlineError)
        assert result.status == 504
        assert seconds < 1.3
        assert pool.call(tasks.sleep, 0) != worker


def test_a_task_that_hangs_in_c_is_killed(unix: str) -> None:
    with pool_at(unix, timeout=1) as pool:
        worker = pool.call(tasks.sleep, 0)
        result, seconds = pool.run(lambda: outcome(tasks.hang))
        assert isinstance(result, client.DeadlineError)
        assert seconds < 1.3
        pool.timeout = 10
        assert pool.call(tasks.sleep, 0) != worker


def test_what_nobody_waits_for_is_not_started(place: tuple[str, str], tmp_path: Path) -> None:
    async def cancelled() -> None:
        busy = later(tasks.sleep, 0.4)
        await asyncio.sleep(0.1)
        waiting = later(tasks.write, f"{tmp_path}/cancelled")
        await asyncio.sleep(0.1)
        waiting.cancel()
        assert isinstance((await busy)[0], int)
        assert (await outcome(tasks.write, f"{tmp_path}/wanted"))[0] is None

    with pool_at(*place) as pool:
        pool.run(cancelled)
        assert (tmp_path / "wanted").exists()
        assert not (tmp_path / "cancelled").exists()


def test_what_expired_in_the_queue_is_not_started(unix: str, tmp_path: Path) -> None:
    path = f"{tmp_path}/expired"
    with pool_at(unix) as pool:
        sent = time.time()
        headers = {"Compute-Sent": str(sent - 2), "Compute-Timeout": "1"}
        status, answer = post(pool, "/write", {"path": path}, headers)
        assert (status, answer) == (504, {"message": "not started: its deadline had passed"})
        assert not Path(path).exists()


def test_a_short_task_overtakes_a_long_one(place: tuple[str, str]) -> None:
    async def mixed() -> tuple[list[Outcome], Outcome]:
        long = later(tasks.sleep, 1)
        await asyncio.sleep(0.1)
        short = [await outcome(primes, 10) for _ in range(20)]
        return short, await long

    with pool_at(*place, workers=2) as pool:
        short, _ = pool.run(mixed)
        assert [result for result, _ in short] == [4] * 20
        assert max(seconds for _, seconds in short) < 0.2


def test_workers_are_recycled_without_a_loss(unix: str) -> None:
    async def hundred() -> list[Outcome]:
        return await asyncio.gather(*[outcome(tasks.sleep, 0.001) for _ in range(100)])

    with pool_at(unix, workers=2, backlog=128, max_tasks=10) as pool:
        pids = [result for result, _ in pool.run(hundred)]
        assert all(isinstance(pid, int) for pid in pids), pids
        assert max(pids.count(pid) for pid in pids) <= 10


def test_a_pool_that_stops_finishes_what_it_has_begun(place: tuple[str, str]) -> None:
    async def stop(process: subprocess.Popen[bytes]) -> list[Outcome]:
        begun = later(tasks.sleep, 0.5)
        await asyncio.sleep(0.1)
        waiting = later(primes, 10)
        await asyncio.sleep(0.1)
        process.terminate()
        return [await begun, await waiting]

    with pool_at(*place) as pool:
        process = pool.process
        assert process is not None
        (begun, _), (waiting, _) = pool.run(lambda: stop(process))
        assert isinstance(begun, int)
        assert isinstance(waiting, client.PoolDownError)
        assert process.wait(5) == 0


def post(
    pool: Pool, path: str, body: object, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("compute", timeout=5)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(pool.url.removeprefix("unix:"))
    try:
        connection.request("POST", path, json.dumps(body), headers or {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_it_is_plain_http(unix: str) -> None:
    with pool_at(unix) as pool:
        assert post(pool, "/primes", {"limit": 1000}) == (200, {"result": 168})
        assert post(pool, "/odds", {"limit": 1000})[0] == 404
        status, answer = post(pool, "/primes", {"limit": "1000"})
        assert (status, answer["message"]) == (400, "primes: '1000' does not fit limit: int")
        assert post(pool, "/primes", [1000])[0] == 400
