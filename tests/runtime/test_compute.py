"""The compute pool: real gunicorn workers, and a client on each event loop."""

import asyncio
import http.client
import json
import math
import os
import signal
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import uvloop
from aiohttp import web
from conftest import (
    HANGS,
    Response,
    Service,
    children,
    copy_code,
    free_port,
    make_certificate,
    wait_for,
)
from overlay import PACKAGE

MISBEHAVING = "misbehaving_tasks"

registry: Any = import_module(f"{PACKAGE}.runtime.compute.registry")
client: Any = import_module(f"{PACKAGE}.runtime.compute.client")
Settings: Any = import_module(f"{PACKAGE}.runtime.settings").Settings
metrics: Any = import_module(f"{PACKAGE}.runtime.metrics.catalogue")
primes: Any = import_module(f"{PACKAGE}.tasks").primes
tasks: Any = import_module(f"{PACKAGE}.{MISBEHAVING}")
payloads: Any = import_module(f"{PACKAGE}.payload_tasks")

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@dataclass
class Pool:
    """What a web worker with these settings has to do with."""

    url: str
    loop: str = "uvloop"
    timeout: float = 30
    process: Any = None

    def run(self, main: Callable[[], Awaitable[Any]]) -> Any:
        """What `main` returns, run in a loop in which this pool is open."""

        async def inside() -> Any:
            context = client.context(Settings.from_env())(None)
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
        if self.url.startswith("unix:"):
            return children(self.process.pid)
        return [worker for arbiter in children(self.process.pid) for worker in children(arbiter)]


async def outcome(task: Callable[..., object], *args: object) -> Any:
    """The result or the exception."""
    try:
        return await client.run(task, *args)
    except Exception as error:
        return error


async def condition(what: Callable[[], object]) -> None:
    await asyncio.to_thread(wait_for, what)


def later(task: Callable[..., object], *args: object) -> asyncio.Task[Any]:
    return asyncio.create_task(outcome(task, *args))


@pytest.fixture(scope="session")
def misbehaving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with more tasks."""
    code = copy_code(tmp_path_factory.mktemp("misbehaving"))
    with (code / PACKAGE / "tasks.py").open("a") as file:
        file.write(f"\n\nfrom . import {MISBEHAVING}, payload_tasks\n")
    return code


PLACES = ["unix-uvloop", "http-asyncio", "unix-asyncio", "http-uvloop"]
StartPool = Callable[..., Pool]


def _pool(
    place: str,
    start: Callable[..., Service],
    code: Path,
    folder: Path,
    *,
    workers: int = 1,
    timeout: float = 30,
    backlog: int = 64,
    max_tasks: int = 0,
) -> Pool:
    kind, loop = place.split("-")
    socket_url = f"unix:{folder}/compute.sock"
    service = start(
        "compute",
        code=code,
        wait=False,
        COMPUTE_URL=socket_url if kind == "unix" else "",
        COMPUTE_CONCURRENCY=str(workers),
        COMPUTE_TIMEOUT=str(timeout),
        COMPUTE_BACKLOG=str(backlog),
        COMPUTE_MAX_TASKS=str(max_tasks),
    )
    url = socket_url if kind == "unix" else service.url
    pool = Pool(url, loop, timeout, service.process)

    def up() -> bool:
        assert service.process.poll() is None, service.log.read_text()
        try:
            return len(pool.workers()) == workers and pool.call(primes, 10) == 4
        except client.ComputeError:
            return False

    wait_for(up)
    return pool


@pytest.fixture(params=PLACES[:2])
def start_pool(
    request: pytest.FixtureRequest,
    start: Callable[..., Service],
    misbehaving: Path,
    tmp_path: Path,
) -> StartPool:
    """start_pool(workers=2) runs a compute pool until the end of the test."""
    return lambda **options: _pool(request.param, start, misbehaving, tmp_path, **options)


everywhere = pytest.mark.parametrize("start_pool", PLACES, indirect=True)
once = pytest.mark.parametrize("start_pool", PLACES[:1], indirect=True)


def test_a_task_stays_a_function() -> None:
    assert primes(1_000_000) == 78498
    assert [primes(n) for n in (1, 2, 3, 4)] == [0, 1, 2, 2]


def twice(number: int) -> int:
    return 2 * number


async def coroutine(number: int) -> int:
    return number


def untyped(number) -> int:  # type: ignore[no-untyped-def]
    return int(number)


def unanswered(number: int):  # type: ignore[no-untyped-def]
    return number


def complicated(number: int) -> dict[str, list[complex]]:
    return {"": [complex(number)]}


def ambiguous(number: int, text: str | bytes) -> None: ...


def many(*numbers: int) -> int:
    return len(numbers)


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (coroutine, "no plain `def`"),
        (untyped, "no type is given for number"),
        (unanswered, "no type is given for return"),
        (complicated, "complex does not go between processes"),
        (ambiguous, "more than one str-like type"),
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


def test_only_tasks_are_run() -> None:
    pool = Pool("unix:/nonexistent")
    with pytest.raises(TypeError, match="twice is no task; mark it with @task"):
        pool.call(twice, 1)
    with pytest.raises(TypeError, match=r"primes: Expected `int`, got `str` - at `\$\.limit`"):
        pool.call(primes, "10")


@everywhere
def test_results_and_exceptions_arrive(start_pool: StartPool) -> None:
    pool = start_pool()
    assert pool.call(primes, 1_000_000) == 78498
    with pytest.raises(client.TaskError, match="fail raised LookupError: lost") as raised:
        pool.call(tasks.fail, "lost")
    assert (raised.value.type, raised.value.message) == ("LookupError", "lost")
    assert raised.value.status == 500
    with pytest.raises(client.TaskError, match="returned 'no number': Expected `int`"):
        pool.call(tasks.lie)


TAKEN = datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=UTC)


@everywhere
def test_more_than_json_has_arrives_as_it_was(start_pool: StartPool) -> None:
    pool = start_pool()
    large = os.urandom(10_000_000)
    assert pool.call(payloads.echo, large) == large
    assert pool.call(payloads.measure, memoryview(large)) == len(large)
    picture = payloads.Picture(bytes(range(256)), 16)
    framed = pool.call(payloads.frame, picture, TAKEN, payloads.Kind.MIRRORED)
    mirrored = payloads.Picture(picture.pixels[::-1], 16)
    tomorrow = TAKEN + timedelta(days=1)
    assert framed == payloads.Framed(mirrored, payloads.Kind.MIRRORED, tomorrow)
    # what MessagePack has not: integers of more than 64 bits
    assert pool.call(payloads.factorial, 30) == math.factorial(30)
    assert pool.call(payloads.same, 10**30) == 10**30
    assert pool.call(payloads.same, [{"a": b"bytes"}, 1.5, None]) == [{"a": b"bytes"}, 1.5, None]
    assert math.isnan(pool.call(payloads.same, math.nan))


@once
def test_what_does_not_fit_is_told_with_its_place(start_pool: StartPool) -> None:
    pool = start_pool()
    picture = payloads.Picture("no bytes", 16)  # a dataclass checks nothing
    with pytest.raises(client.ComputeError, match=r"400: frame: .* - at `\$\.picture\.pixels`"):
        pool.call(payloads.frame, picture, TAKEN)
    with pytest.raises(TypeError, match=r"factorial: Expected `int` >= 0 - at `\$\.number`"):
        pool.call(payloads.factorial, -1)
    with pytest.raises(TypeError, match="same: Encoding objects of type object is unsupported"):
        pool.call(payloads.same, object())


@everywhere
def test_a_full_queue_refuses_at_once_and_loses_nothing(start_pool: StartPool) -> None:
    pool = start_pool(backlog=4)

    async def overload() -> tuple[list[Any], list[Any]]:
        (worker,) = pool.workers()
        os.kill(worker, signal.SIGSTOP)
        accepted = []
        for _ in range(5):  # the kernel takes one more than the backlog of 4
            accepted.append(later(primes, 10))
            await asyncio.sleep(0.01)
        refused = [await outcome(primes, 10) for _ in range(4)]
        os.kill(worker, signal.SIGCONT)
        return await asyncio.gather(*accepted), refused

    before = metrics.COMPUTE_REJECTED._value.get()
    accepted, refused = pool.run(overload)
    assert accepted == [4] * 5
    for error in refused:
        assert isinstance(error, client.QueueFullError)
        assert (error.status, error.retry_after) == (503, 1)
    assert metrics.COMPUTE_REJECTED._value.get() == before + len(refused)
    assert pool.call(primes, 10) == 4


@everywhere
def test_a_late_loop_is_not_a_full_queue(start_pool: StartPool) -> None:
    async def burst() -> list[Any]:
        return await asyncio.gather(*[outcome(primes, 10) for _ in range(500)])

    results = start_pool(workers=2, backlog=1024).run(burst)
    assert [result for result in results if result != 4] == []


@pytest.mark.parametrize("place", PLACES)
def test_nobody_there(place: str, tmp_path: Path) -> None:
    kind, loop = place.split("-")
    url = f"unix:{tmp_path}/none.sock" if kind == "unix" else f"http://127.0.0.1:{free_port()}"
    result = Pool(url, loop).run(lambda: outcome(primes, 10))
    assert isinstance(result, client.PoolDownError)
    assert (result.status, result.retry_after) == (503, 5)


@everywhere
def test_a_killed_worker_costs_one_caller_its_answer(start_pool: StartPool) -> None:
    async def around_a_death() -> list[Any]:
        neighbour = later(tasks.sleep, 2)
        await asyncio.sleep(0.1)
        return [await outcome(tasks.die), await outcome(primes, 10), await neighbour]

    pool = start_pool(workers=2)
    died, after, neighbour = pool.run(around_a_death)
    assert isinstance(died, client.WorkerDiedError)
    assert died.status == 500
    assert after == 4
    assert neighbour in pool.workers()


@once
def test_a_worker_killed_before_it_took_a_task_costs_nobody_anything(
    start_pool: StartPool,
) -> None:
    pool = start_pool()

    async def kill_then_wait() -> Any:
        os.kill(pool.workers()[0], signal.SIGSTOP)
        waiting = later(primes, 10)
        await asyncio.sleep(0.1)
        os.kill(pool.workers()[0], signal.SIGKILL)
        return await waiting

    assert pool.run(kill_then_wait) == 4


def test_a_task_over_its_deadline_is_stopped_and_its_worker_replaced(
    start_pool: StartPool,
) -> None:
    pool = start_pool(timeout=2)
    worker = pool.call(tasks.sleep, 0)
    result = pool.run(lambda: outcome(tasks.sleep, 600))
    assert isinstance(result, client.DeadlineError)
    assert result.status == 504
    pool.timeout = HANGS
    assert pool.call(tasks.sleep, 0) != worker


@once
def test_a_task_that_hangs_in_c_is_killed(start_pool: StartPool) -> None:
    pool = start_pool(timeout=2)
    worker = pool.call(tasks.sleep, 0)
    result = pool.run(lambda: outcome(tasks.hang))
    assert isinstance(result, client.DeadlineError)
    pool.timeout = HANGS
    assert pool.call(tasks.sleep, 0) != worker


def test_what_nobody_waits_for_is_not_started(start_pool: StartPool, tmp_path: Path) -> None:
    pool = start_pool()

    async def cancel_one() -> None:
        (worker,) = pool.workers()
        os.kill(worker, signal.SIGSTOP)
        waiting = later(tasks.write, f"{tmp_path}/cancelled")
        await asyncio.sleep(0.1)
        waiting.cancel()
        await asyncio.wait({waiting})
        os.kill(worker, signal.SIGCONT)
        assert await outcome(tasks.write, f"{tmp_path}/wanted") is None

    pool.run(cancel_one)
    assert (tmp_path / "wanted").exists()
    assert not (tmp_path / "cancelled").exists()


@once
def test_what_expired_in_the_queue_is_not_started(start_pool: StartPool, tmp_path: Path) -> None:
    pool = start_pool()
    pool.timeout = 1

    async def wait_too_long() -> Any:
        post_in_thread = asyncio.to_thread(post, pool, "/sleep", {"seconds": 2})
        busy = asyncio.ensure_future(post_in_thread)
        await asyncio.sleep(0.3)
        late = await outcome(tasks.write, f"{tmp_path}/expired")
        assert (await busy)[0] == 200
        return late

    assert isinstance(pool.run(wait_too_long), client.DeadlineError)
    assert pool.call(tasks.write, f"{tmp_path}/wanted") is None
    assert not (tmp_path / "expired").exists()


def test_a_short_task_overtakes_a_long_one(start_pool: StartPool) -> None:
    async def mix() -> None:
        long = later(tasks.sleep, 600)
        await asyncio.sleep(0.1)
        assert [await outcome(primes, 10) for _ in range(20)] == [4] * 20
        assert not long.done()
        long.cancel()

    start_pool(workers=2, timeout=HANGS).run(mix)


@once
def test_workers_are_recycled_without_a_loss(start_pool: StartPool) -> None:
    async def hundred() -> list[Any]:
        return await asyncio.gather(*[outcome(tasks.sleep, 0.001) for _ in range(100)])

    results = start_pool(workers=2, backlog=128, max_tasks=10).run(hundred)
    assert all(isinstance(pid, int) for pid in results), results
    assert max(map(results.count, results)) <= 12


def test_a_pool_that_stops_finishes_what_it_has_begun(
    start_pool: StartPool, tmp_path: Path
) -> None:
    pool = start_pool()

    async def stop() -> list[Any]:
        begun = later(tasks.sleep, 3, f"{tmp_path}/begun")
        await condition((tmp_path / "begun").exists)
        waiting = later(primes, 10)
        await asyncio.sleep(0.1)
        pool.process.terminate()
        return [await begun, await waiting]

    begun, waiting = pool.run(stop)
    assert isinstance(begun, int)
    assert isinstance(waiting, client.PoolDownError)
    assert pool.process.wait(HANGS) == 0


@once
def test_tasks_step_back_behind_requests(start_pool: StartPool) -> None:
    assert os.getpriority(os.PRIO_PROCESS, start_pool().workers()[0]) == min(os.nice(0) + 10, 19)


def post(pool: Pool, path: str, body: object) -> tuple[int, Any]:
    status, answer = send(pool, path, json.dumps(body).encode(), {})
    return status, json.loads(answer)


def send(pool: Pool, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("compute", timeout=HANGS)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(pool.url.removeprefix("unix:"))
    try:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@once
def test_it_is_plain_http(start_pool: StartPool) -> None:
    pool = start_pool()
    assert post(pool, "/primes", {"limit": 1000}) == (200, {"result": 168})
    assert post(pool, "/odds", {"limit": 1000})[0] == 404
    status, answer = post(pool, "/primes", {"limit": "1000"})
    assert (status, answer["message"]) == (400, "primes: Expected `int`, got `str` - at `$.limit`")
    assert post(pool, "/primes", [1000])[0] == 400
    assert post(pool, "/primes", {"limit": 1000, "limits": 1})[0] == 400
    body = {"picture": {"pixels": "AQID", "width": 3}, "taken": "2026-02-03T04:05:06Z"}
    framed = {"picture": body["picture"], "kind": "plain", "taken": "2026-02-04T04:05:06Z"}
    assert post(pool, "/frame", body) == (200, {"result": framed})
    status, answer = post(pool, "/same", {"value": {"a": [math.pi]}})
    assert (status, answer) == (200, {"result": {"a": [math.pi]}})


@once
def test_what_is_no_message_is_refused(start_pool: StartPool) -> None:
    pool = start_pool()
    pack = registry.MSGPACK
    deep = b"\x81\xa5value" + b"\x91" * 100_000
    for body in (b"", b"\xc1", b"{", b"\xdf\xff\xff\xff\xff", b"\x81\xa5value", deep):
        for name in ("same", "primes"):
            assert send(pool, f"/{name}", body, {"Content-Type": pack})[0] == 400
        assert send(pool, "/same", body, {})[0] == 400
    assert send(pool, "/same", b'{"value": ' + b"[" * 100_000, {})[0] == 400
    body, _ = registry.write({"limit": 1000}, pack)
    status, answer = send(pool, "/primes", body, {"Content-Type": pack})
    assert (status, registry.read(answer, pack, dict)) == (200, {"result": 168})


def test_a_pool_that_answers_otherwise_is_an_error_that_says_so(tmp_path: Path) -> None:
    async def stranger(request: web.Request) -> web.Response:
        await request.read()
        if request.path == "/primes":
            return web.Response(text="hello")
        if request.path == "/echo":
            response = web.StreamResponse()
            await response.prepare(request)
            return response
        return web.json_response({"result": "no number"})

    async def ask() -> list[Any]:
        app = web.Application()
        app.router.add_post("/{name}", stranger)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.UnixSite(runner, f"{tmp_path}/strange.sock").start()
        asked = [await outcome(primes, 10), await outcome(payloads.factorial, 3)]
        asked.append(await outcome(payloads.echo, b""))
        await runner.cleanup()
        return asked

    text, lie, endless = Pool(f"unix:{tmp_path}/strange.sock").run(ask)
    assert isinstance(text, client.ComputeError)
    assert "the pool answered 200, as text/plain that is unknown here" in str(text)
    assert isinstance(lie, client.ComputeError)
    assert "Expected `int`, got `str` - at `$.result`" in str(lie)
    assert isinstance(endless, client.ComputeError)
    assert "no HTTP that is understood here: no Content-Length" in str(endless)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_pool_behind_tls(tmp_path: Path, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    data = os.urandom(1_000_000)

    async def echo(request: web.Request) -> web.Response:
        assert request.content_type == registry.MSGPACK
        sent = registry.read(await request.read(), registry.MSGPACK, dict)
        body, media_type = registry.write({"result": sent["data"]}, registry.MSGPACK)
        return web.Response(body=body, content_type=media_type)

    async def ask(url: str) -> Any:
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/echo", echo)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
        answer = await outcome(payloads.echo, data)
        await runner.cleanup()
        return answer

    port = free_port()
    good, stranger = (f"https://{host}:{port}" for host in ("localhost", "127.0.0.1"))
    assert Pool(good, loop).run(partial(ask, good)) == data
    # its certificate is for another name
    assert isinstance(Pool(stranger, loop).run(partial(ask, stranger)), client.PoolDownError)


# --- through the service


def compute_workers(service: Service) -> list[int]:
    return [worker for pool in children(service.process.pid) for worker in children(pool)]


def in_background(service: Service, path: str, into: list[Response]) -> Thread:
    """Asks for a task; it is in the queue when this returns."""
    before = service.total("http_requests_in_progress")
    thread = Thread(target=lambda: into.append(service.get(path)))
    thread.start()
    wait_for(lambda: service.total("http_requests_in_progress") > before)
    time.sleep(0.1)
    return thread


def test_a_pool_elsewhere_has_probes_and_metrics(
    start: Callable[..., Service], misbehaving: Path, loop: str, tmp_path: Path
) -> None:
    service = start("compute", code=misbehaving, wait=False, EVENT_LOOP=loop, LAME_DUCK="1")
    wait_for(lambda: answers(service, "/readyz") == 200)
    pool = Pool(service.url, loop, process=service.process)
    assert pool.call(primes, 10) == 4
    assert service.total("compute_tasks_total", task="primes", outcome="ok") == 1
    assert service.total("compute_workers", state="live") == 1
    roles = {labels["role"] for name, labels, _ in service.scrape() if name == "worker_info"}
    assert roles == {"admin", "compute", "compute_arbiter"}

    service.process.send_signal(signal.SIGHUP)
    wait_for(lambda: service.total("compute_worker_exits_total", reason="recycled") == 1)

    async def stop_in_the_middle() -> list[Any]:
        long = later(tasks.sleep, 4, f"{tmp_path}/begun")
        await condition((tmp_path / "begun").exists)
        service.process.send_signal(signal.SIGTERM)
        await condition(lambda: answers(service, "/readyz") == 503)
        assert answers(service, "/livez") == 200
        return [await long, await outcome(primes, 10)]

    finished, refused = pool.run(stop_in_the_middle)
    assert isinstance(finished, int)
    assert isinstance(refused, client.PoolDownError)
    assert service.ended() == 0


def answers(service: Service, path: str) -> int:
    try:
        return service.get(path, admin=True).status
    except OSError:
        return 0


def test_a_pool_elsewhere_takes_tasks_in_its_lame_duck(start: Callable[..., Service]) -> None:
    service = start("compute", wait=False, LAME_DUCK="60")
    wait_for(lambda: answers(service, "/readyz") == 200)
    service.process.send_signal(signal.SIGTERM)
    wait_for(lambda: answers(service, "/readyz") == 503)
    assert Pool(service.url).call(primes, 10) == 4
    assert service.stop(signal.SIGINT) == 0  # asked again: at once


def test_a_pool_elsewhere_ends_with_a_reason(start: Callable[..., Service]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        service = start("compute", wait=False, ADMIN_PORT=port)
        assert service.ended() == 2
        assert service.says(f"ADMIN_PORT={port}")
    service = start("compute", wait=False)
    wait_for(lambda: answers(service, "/readyz") == 200)
    [arbiter] = children(service.process.pid)
    os.kill(arbiter, signal.SIGKILL)
    assert service.ended() == 1
    assert service.says("the compute pool ended")


def test_serve_answers_refuses_and_counts(start: Callable[..., Service], loop: str) -> None:
    service = start("serve", EVENT_LOOP=loop, COMPUTE_BACKLOG="1")
    response = wait_for(lambda: (r := service.get("/primes/1000000")).status == 200 and r)
    assert response.json() == {"limit": 1_000_000, "count": 78498}
    done = service.total("compute_tasks_total", task="primes", outcome="ok")

    (worker,) = compute_workers(service)
    os.kill(worker, signal.SIGSTOP)
    answers: list[Response] = []
    waiting = [in_background(service, "/primes/10", answers) for _ in range(2)]
    refused = service.get("/primes/10")
    assert refused.status == 503
    assert refused.headers["Retry-After"] == "1"
    assert refused.headers.get_content_type() == "application/problem+json"
    assert service.get("/").status == 200
    assert service.get("/readyz", admin=True).status == 200
    os.kill(worker, signal.SIGCONT)
    for thread in waiting:
        thread.join()
    assert [answer.status for answer in answers] == [200, 200]

    assert service.total("compute_rejected_total") == 1
    assert service.total("compute_tasks_total", task="primes", outcome="ok") == done + 2
    assert service.total("compute_task_seconds_count", task="primes") == done + 2
    assert service.total("compute_queue_seconds_count") == done + 2
    assert service.total("compute_workers", state="live") == 1


@pytest.mark.parametrize("url", ["", "unix:/nonexistent/compute.sock"])
def test_the_rest_is_well_without_a_pool(start: Callable[..., Service], url: str) -> None:
    service = start("web", COMPUTE_URL=url)
    response = service.get("/primes/10")
    assert response.status == 503
    assert "Retry-After" in response.headers
    assert service.get("/").status == 200
    assert service.get("/readyz", admin=True).status == 200


def test_serve_says_504_while_the_pool_says_nothing(start: Callable[..., Service]) -> None:
    service = start("serve", COMPUTE_TIMEOUT="1")
    (worker,) = wait_for(lambda: compute_workers(service))
    wait_for(lambda: service.get("/primes/10").status == 200)
    os.kill(worker, signal.SIGSTOP)
    assert service.get("/primes/10").status == 504


def test_compute_answers_until_the_web_workers_have_drained(
    start: Callable[..., Service],
) -> None:
    service = start("serve")
    wait_for(lambda: service.get("/primes/10").status == 200)
    (worker,) = compute_workers(service)
    os.kill(worker, signal.SIGSTOP)
    answers: list[Response] = []
    waiting = in_background(service, "/primes/10", answers)
    service.process.terminate()
    time.sleep(0.5)
    assert not answers
    os.kill(worker, signal.SIGCONT)
    waiting.join()
    assert answers[0].status == 200
    assert service.ended() == 0
