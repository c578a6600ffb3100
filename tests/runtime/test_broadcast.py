"""One message to all workers, and with Redis to all pods; nothing is lost in silence."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from conftest import Service, copy_code, free_port, wait_for
from overlay import HAS_JOBS, PACKAGE, PROJECT

Start = Callable[..., Service]

MEMBERS = 8
SAID = 25  # messages of each


class Member:
    """One connection to the chat."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, worker: int) -> None:
        self.socket = socket
        self.worker = worker
        self.heard: list[Any] = []

    async def say(self, *words: object) -> None:
        for word in words:
            await self.socket.send_json(word)

    async def hear(self, number: int) -> None:
        """Until so many messages were heard, or the connection ends."""
        async with asyncio.timeout(60):
            while len(self.heard) < number:
                message = await self.socket.receive()
                if message.type is not aiohttp.WSMsgType.TEXT:
                    return
                self.heard.append(message.json())


class Room:
    """Members in one room of one or more services."""

    def __init__(self, *services: Service) -> None:
        self._services = services
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Room":
        self._session = await self._stack.enter_async_context(aiohttp.ClientSession())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def join(self, number: int) -> Member:
        service = self._services[number % len(self._services)]
        socket = await self._session.ws_connect(f"{service.url}/probe/chat/room")
        self._stack.push_async_callback(socket.close)
        return Member(socket, (await socket.receive_json())["worker"])


def everything(members: list[Member]) -> list[list[Any]]:
    """What each member was told by each, in order."""
    return [
        [[m for m in member.heard if m[0] == number] for number in range(len(members))]
        for member in members
    ]


async def talk(room: Room) -> list[Member]:
    members = [await room.join(number) for number in range(MEMBERS)]
    said = [[[number, n] for n in range(SAID)] for number in range(MEMBERS)]
    talking = [m.say(*words) for m, words in zip(members, said, strict=True)]
    hearing = [m.hear(MEMBERS * SAID) for m in members]
    await asyncio.gather(*talking, *hearing)
    assert everything(members) == [said] * MEMBERS
    return members


def test_all_members_hear_everything_whichever_worker_they_are_on(start: Start, loop: str) -> None:
    service = start("web", WEB_CONCURRENCY="4", EVENT_LOOP=loop)

    async def chat() -> None:
        async with Room(service) as room:
            members = await talk(room)
            assert len({member.worker for member in members}) > 1

    asyncio.run(chat())
    said = MEMBERS * SAID
    assert service.total("broadcast_published_total") == said
    assert service.total("broadcast_delivered_total") == said * MEMBERS
    assert service.total("broadcast_dropped_total", at="worker") == 0
    assert service.total("broadcast_dropped_total", at="subscriber") == 0


def test_the_death_of_a_worker_takes_only_its_own(start: Start, loop: str) -> None:
    service = start("web", WEB_CONCURRENCY="4", EVENT_LOOP=loop)

    async def chat() -> None:
        async with Room(service) as room:
            members = [await room.join(number) for number in range(MEMBERS)]
            victim = members[0].worker
            staying = [m for m in members if m.worker != victim]
            assert staying

            async def speak(number: int) -> None:
                for n in range(SAID):
                    await staying[number].say([number, n])
                    await asyncio.sleep(0.01)

            speaking = [asyncio.create_task(speak(number)) for number in range(len(staying))]
            await asyncio.sleep(0.05)
            os.kill(victim, signal.SIGKILL)
            await asyncio.gather(*speaking)
            await asyncio.gather(*(m.hear(len(staying) * SAID) for m in staying))
            said = [[[number, n] for n in range(SAID)] for number in range(len(staying))]
            assert everything(staying) == [said] * len(staying)

            # the successor hears them, and is heard
            await asyncio.to_thread(wait_for, lambda: service.live() == 4, 60)
            everybody = [*staying, *[await room.join(number) for number in range(MEMBERS)]]
            for member in everybody:
                member.heard.clear()
            await everybody[-1].say("welcome")
            await asyncio.gather(*(member.hear(1) for member in everybody))
            assert [member.heard for member in everybody] == [["welcome"]] * len(everybody)

    asyncio.run(chat())


def test_a_reload_leaves_nobody_deaf(start: Start) -> None:
    service = start("web", WEB_CONCURRENCY="3")
    before = set(service.workers())
    service.process.send_signal(signal.SIGHUP)
    wait_for(lambda: not before & set(service.workers()) and service.live() == 3, 60)

    async def chat() -> None:
        async with Room(service) as room:
            await talk(room)

    asyncio.run(chat())
    folder = service.folder() / "broadcast"
    assert len(list(folder.iterdir())) == 3  # those who left took their sockets along


def test_a_slow_subscriber_loses_is_counted_and_told(start: Start) -> None:
    service = start("web", WEB_CONCURRENCY="1")

    async def publish() -> Any:
        slow = asyncio.create_task(asyncio.to_thread(service.get, "/probe/slow/room"))
        await asyncio.to_thread(wait_for, service.notes.exists, 60)
        async with aiohttp.ClientSession(service.url) as session:
            for word in [*range(1500), "end"]:
                async with session.post("/probe/publish/room", json=word) as response:
                    assert response.status == 200
        service.notes.with_suffix(".go").touch()
        return (await slow).json()

    assert asyncio.run(publish()) == {"got": 1000, "missed": 501}
    assert service.total("broadcast_dropped_total", at="subscriber") == 501


def test_what_is_too_long_or_no_json_is_refused(start: Start) -> None:
    service = start("web", WEB_CONCURRENCY="2", MAX_BODY="3Mi")
    fits = json.dumps("x" * (2**20 - 2)).encode()
    assert service.request("POST", "/probe/publish/room", fits).status == 200
    too_long = json.dumps("x" * 2**20).encode()
    assert service.request("POST", "/probe/publish/room", too_long).status == 500
    assert service.says("a message has at most 1048576 bytes as JSON")


def test_requests_that_subscribe_do_not_hold_up_the_end(start: Start) -> None:
    service = start("web", WEB_CONCURRENCY="1", GRACEFUL_TIMEOUT="60")

    async def chat() -> int:
        async with Room(service) as room:
            await room.join(0)
            return await asyncio.to_thread(service.stop, signal.SIGTERM, 60)

    assert asyncio.run(chat()) == 0


# --- with Redis: all pods

needs_jobs = pytest.mark.skipif(not HAS_JOBS, reason="only with a job queue")


@pytest.fixture
def redis_port(tmp_path: Path) -> Iterator[int]:
    server, port = shutil.which("redis-server"), free_port()
    if server is None:
        missing = "redis-server is not installed"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    process = run_redis(port, tmp_path)
    yield port
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def run_redis(port: int, folder: Path) -> "subprocess.Popen[bytes]":
    command = ["redis-server", "--port", str(port), "--save", "", "--dir", str(folder)]
    with (folder / "redis.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log)


def connected(service: Service) -> bool:
    return redis(service, "PUBSUB", "NUMSUB", f"{channel(service)}") > 0


def channel(service: Service) -> str:
    return service.env["JOBS_QUEUE"] + ":broadcast"


def redis(service: Service, *words: str) -> int:
    port = int(service.env["REDIS_URL"].rpartition(":")[2].partition("/")[0])
    found = subprocess.run(
        ["redis-cli", "-p", str(port), *words], capture_output=True, text=True, check=True
    )
    return int(found.stdout.split()[-1])


@needs_jobs
def test_members_of_two_pods_hear_each_other(start: Start, loop: str, redis_port: int) -> None:
    env = {"REDIS_URL": f"redis://127.0.0.1:{redis_port}/0", "JOBS_QUEUE": "chat"}
    first, second = (start("web", EVENT_LOOP=loop, **env) for _ in range(2))
    wait_for(lambda: redis(first, "PUBSUB", "NUMSUB", channel(first)) == 4, 60)

    async def chat() -> None:
        async with Room(first, second) as room:
            await talk(room)

    asyncio.run(chat())
    # what is none of ours is passed over
    redis(first, "PUBLISH", channel(first), "x")
    redis(first, "PUBLISH", channel(first), "stranger" * 3)
    asyncio.run(chat())


@needs_jobs
def test_without_redis_a_pod_goes_on_by_itself_and_what_was_missed_is_told(
    start: Start, tmp_path: Path
) -> None:
    port = free_port()
    server = run_redis(port, tmp_path)
    env = {"REDIS_URL": f"redis://127.0.0.1:{port}/0", "JOBS_QUEUE": "chat"}
    first, second = (start("web", WEB_CONCURRENCY="1", **env) for _ in range(2))

    def joined() -> bool:
        try:
            return redis(first, "PUBSUB", "NUMSUB", channel(first)) == 2
        except subprocess.CalledProcessError:
            return False

    async def chat() -> None:
        nonlocal server
        async with Room(first, second) as room:
            here, there = await room.join(0), await room.join(1)
            await asyncio.to_thread(wait_for, joined, 60)
            await here.say("before")
            await asyncio.gather(here.hear(1), there.hear(1))
            server.kill()
            server.wait()
            wait_for(lambda: first.says("reaches this pod only"), 60)
            await here.say("alone", "alone")
            await here.hear(3)
            server = run_redis(port, tmp_path)
            await asyncio.to_thread(wait_for, joined, 60)
            await here.say("again")
            await there.hear(3)
            assert there.heard == ["before", {"missed": 2}, "again"]

    try:
        asyncio.run(chat())
    finally:
        server.kill()
        server.wait()
    assert first.total("broadcast_dropped_total", at="redis") == 2


# --- the examples of the documentation

EVENT = b'data: {"text": "hello", "by": "somebody"}\n\n'


def test_the_documented_chat_and_events_work_as_written(start: Start, tmp_path: Path) -> None:
    code = copy_code(tmp_path / "code")
    text = (PROJECT / "docs" / "broadcast.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    (code / PACKAGE / "views.py").write_text("\n\n".join(blocks))
    service = start("web", code=code, WEB_CONCURRENCY="4")

    async def both() -> None:
        async with aiohttp.ClientSession(service.url) as session, AsyncExitStack() as stack:
            members = []
            for _ in range(8):
                socket = await session.ws_connect("/chat/news")
                members.append(await stack.enter_async_context(socket))
            listening = [await session.get("/events/news") for _ in range(8)]
            await members[0].send_json({"text": "hello"})
            async with asyncio.timeout(60):
                for member in members:
                    assert await member.receive_str() == "somebody: hello"
                for stream in listening:
                    assert await stream.content.readuntil(b"\n\n") == EVENT
                # at the end of the service the streams end as streams do
                service.process.send_signal(signal.SIGTERM)
                for stream in listening:
                    assert await stream.content.read() == b""

    asyncio.run(both())
    assert service.process.wait(60) == 0
