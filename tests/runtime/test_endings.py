"""Websockets and streams at the end of a worker; three public applications over reloads."""

import asyncio
import json
import os
import random
import signal
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from conftest import Service, copy_code, wait_for
from overlay import PACKAGE

Start = Callable[..., Service]

LONG = "300"  # seconds that a worker has to end, and does not take
SIZE = 300_000


@pytest.fixture
def start_public(start: Start, tmp_path: Path) -> Start:
    """Starts the three applications as one."""
    code = copy_code(tmp_path / "code")
    app = code / PACKAGE / "app.py"
    app.write_text("from .public import create_app as create_app\n")
    files = tmp_path / "files"
    files.mkdir()
    (files / "large").write_bytes(random.Random(0).randbytes(SIZE))

    def run(**env: str) -> Service:
        return start("web", code=code, PUBLIC_FILES=str(files), GRACEFUL_TIMEOUT=LONG, **env)

    return run


def access_lines(service: Service) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    return [line for line in lines if line["logger"] == "access"]


async def open_sockets(
    session: aiohttp.ClientSession, service: Service, path: str, number: int
) -> list[aiohttp.ClientWebSocketResponse]:
    return [await session.ws_connect(f"{service.url}{path}") for _ in range(number)]


async def ended(websocket: aiohttp.ClientWebSocketResponse) -> int | None:
    """The code that it is closed with."""
    async for _ in websocket:
        pass
    code: int | None = websocket.close_code
    return code


@pytest.mark.parametrize(
    ("path", "dismissed", "code", "by"),
    [
        ("/chat", "", 1001, "drain"),
        ("/silent", "", 1001, "drain"),
        ("/chat", "4000", 4000, None),
    ],
    ids=["by us", "whose handler never reads", "by on_shutdown, which comes first"],
)
def test_websockets_are_told_to_come_back(
    start_public: Start, loop: str, path: str, dismissed: str, code: int, by: str | None
) -> None:
    service = start_public(EVENT_LOOP=loop, PUBLIC_DISMISS=dismissed, WEB_CONCURRENCY="1")

    async def see() -> list[int | None]:
        async with aiohttp.ClientSession() as session:
            sockets = await open_sockets(session, service, path, 5)
            service.process.terminate()
            return await asyncio.gather(*map(ended, sockets))

    assert asyncio.run(asyncio.wait_for(see(), 60)) == [code] * 5
    assert service.process.wait(60) == 0  # and does not use up its time
    assert [(x["status"], x.get("aborted")) for x in access_lines(service)] == [(101, by)] * 5


def test_event_streams_end_in_order(start_public: Start, loop: str) -> None:
    service = start_public(EVENT_LOOP=loop, WEB_CONCURRENCY="1")

    async def listen(session: aiohttp.ClientSession) -> bytes:
        async with session.get(f"{service.url}/events") as response:
            begun = await response.content.readuntil(b"data: 5\n\n")
            os.kill(service.process.pid, signal.SIGTERM)
            rest: bytes = await response.read()  # raises where it is cut
            return bytes(begun) + rest

    async def see() -> list[bytes]:
        async with aiohttp.ClientSession() as session:
            return await asyncio.gather(*[listen(session) for _ in range(3)])

    bodies = asyncio.run(asyncio.wait_for(see(), 60))
    assert service.process.wait(60) == 0
    lines = access_lines(service)
    assert [(x["status"], x["aborted"]) for x in lines] == [(200, "drain")] * 3
    assert sorted(x["bytes"] for x in lines) == sorted(map(len, bodies))


def test_an_answer_begun_is_counted_even_when_the_worker_is_killed(
    start_public: Start, loop: str
) -> None:
    service = start_public(EVENT_LOOP=loop, WEB_CONCURRENCY="1")
    with socket.create_connection(("127.0.0.1", service.port)) as sock:
        sock.sendall(b"GET /events HTTP/1.1\r\nHost: test\r\n\r\n")
        assert sock.recv(12) == b"HTTP/1.1 200"
        os.kill(service.workers()[0], signal.SIGKILL)
    wait_for(lambda: service.total("worker_exits_total") == 1, 60)
    assert service.total("http_requests_total", route="/events", status="200") == 1


# --- three applications over reloads


@dataclass
class Seen:
    """What the clients saw."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    drained: Counter[str] = field(default_factory=Counter)
    left: int = 0
    file_bytes: int = 0
    messages: Counter[int] = field(default_factory=Counter)  # by client


async def chatter(
    session: aiohttp.ClientSession, url: str, seen: Seen, stop: asyncio.Event, me: int
) -> None:
    """Says something all the time, and comes back when it is told to."""
    while not stop.is_set():
        async with session.ws_connect(f"{url}/chat") as websocket:
            seen.answers["/chat", 101] += 1
            while not stop.is_set():
                with suppress(aiohttp.ClientConnectionResetError):  # the next message says how
                    await websocket.send_str(str(me))
                message = await websocket.receive()
                while message.type is aiohttp.WSMsgType.TEXT and message.data != str(me):
                    message = await websocket.receive()
                if message.type is not aiohttp.WSMsgType.TEXT:
                    # its own code is another where it could not say goodbye any more
                    assert message.data == 1001 or websocket.close_code == 1001, message
                    seen.drained["/chat"] += 1
                    break
                seen.messages[me] += 1
                await asyncio.sleep(0.01)


async def reader(
    session: aiohttp.ClientSession, url: str, seen: Seen, stop: asyncio.Event, content: bytes
) -> None:
    """Reads parts of a file."""
    while not stop.is_set():
        start = random.randrange(SIZE)
        wanted = content[start : start + random.randrange(1, SIZE)]
        headers = {"Range": f"bytes={start}-{start + len(wanted) - 1}"}
        async with session.get(f"{url}/files/large", headers=headers) as response:
            assert await response.read() == wanted
            seen.answers["/files", response.status] += 1
            seen.file_bytes += len(wanted)
        await asyncio.sleep(0.005)


async def listener(
    session: aiohttp.ClientSession, url: str, seen: Seen, stop: asyncio.Event
) -> None:
    """Listens to events, and again when they end."""
    while not stop.is_set():
        async with session.get(f"{url}/events") as response:
            seen.answers["/events", response.status] += 1
            async for _ in response.content:
                if stop.is_set():
                    seen.left += 1
                    response.close()
                    return
            seen.drained["/events"] += 1


async def reload(service: Service) -> None:
    old = set(service.workers())
    os.kill(service.process.pid, signal.SIGHUP)
    await asyncio.to_thread(wait_for, lambda: not old & set(service.workers()), 120)


async def all_talk(seen: Seen) -> None:
    """Wait until each is on a worker that stays."""
    before = Counter(seen.messages)
    while any(seen.messages[me] < before[me] + 5 for me in range(4)):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


@pytest.mark.timeout(300)
def test_public_applications_are_counted_to_the_request(
    start_public: Start, loop: str, tmp_path: Path
) -> None:
    service = start_public(EVENT_LOOP=loop)
    content = (tmp_path / "files" / "large").read_bytes()
    seen = Seen()

    async def use() -> None:
        stop = asyncio.Event()
        async with AsyncExitStack() as sessions, asyncio.TaskGroup() as clients:

            async def session() -> aiohttp.ClientSession:
                # one for each: a spare connection that idles may be closed as it is used again
                return await sessions.enter_async_context(aiohttp.ClientSession())

            for me in range(4):
                clients.create_task(chatter(await session(), service.url, seen, stop, me))
                clients.create_task(reader(await session(), service.url, seen, stop, content))
                clients.create_task(listener(await session(), service.url, seen, stop))
            await all_talk(seen)
            for _ in range(2):
                await reload(service)
                await all_talk(seen)
            stop.set()

    asyncio.run(use())
    wait_for(lambda: service.total("http_requests_in_progress") == 0, 60)
    samples = service.scrape()
    assert service.process.poll() is None
    service.stop()
    lines = access_lines(service)

    def counted(name: str, *labels: str) -> Counter[Any]:
        sums: Counter[Any] = Counter()
        for found, its, value in samples:
            if found == name:
                sums[tuple(its[label] for label in labels)] += int(value)
        return sums

    sent = {(route, str(status)): number for (route, status), number in seen.answers.items()}
    assert counted("http_requests_total", "route", "status") == sent
    assert Counter((x["path"].removesuffix("/large"), str(x["status"])) for x in lines) == sent
    assert sum(counted("http_request_duration_seconds_count", "route").values()) == sum(
        sent.values()
    )
    aborted = {(route, "drain"): number for route, number in seen.drained.items()}
    aborted["/events", "client"] = seen.left
    assert counted("http_responses_aborted_total", "route", "by") == aborted
    assert Counter((x["path"], x["aborted"]) for x in lines if "aborted" in x) == aborted
    assert sum(x["bytes"] for x in lines if x["status"] == 206) == seen.file_bytes
    assert seen.drained["/chat"] > 0 < seen.drained["/events"]
