"""A chat under random kills loses nothing but what was in a killed worker's hands."""

import asyncio
import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable

import aiohttp
import pytest
from conftest import HANGS, SOAK, Service, wait_for

Start = Callable[..., Service]

SECONDS = 600 if SOAK else 8
WORKERS = 4
MEMBERS = 8
PAUSE = 0.1  # seconds between two messages of one member

pytestmark = pytest.mark.timeout(SECONDS + 300)


class Stay:
    """A member's connection to one worker, until that is killed."""

    def __init__(self, number: int, worker: int, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.number = number
        self.worker = worker
        self.socket = socket
        self.began = time.monotonic()
        self.said: list[float] = []  # when: the first is message 0
        self.heard: defaultdict[int, list[int]] = defaultdict(list)  # by who said it
        self.told_missed = 0
        self.ended = False

    async def say(self) -> None:
        self.said.append(time.monotonic())
        await self.socket.send_json([self.number, len(self.said) - 1])

    async def hear(self) -> None:
        async for message in self.socket:
            match message.json():
                case {"missed": missed}:
                    self.told_missed += missed
                case [number, n]:
                    self.heard[number].append(n)
        self.ended = True

    def lost(self, speaker: "Stay") -> set[int]:
        """What it should have heard of `speaker`, and did not."""
        heard = self.heard[speaker.number]
        assert heard == sorted(set(heard)), "twice, or out of order"
        first = next((n for n, at in enumerate(speaker.said) if at > self.began), None)
        if first is None:
            return set()
        if self.ended:  # what it did not hear any more was in its worker's hands
            end = heard[-1] + 1 if heard else 0
        elif speaker.ended:  # what it heard itself had been sent to all
            end = speaker.heard[speaker.number][-1] + 1 if speaker.heard[speaker.number] else 0
        else:
            end = len(speaker.said)
        return set(range(first, end)) - set(heard)


class Chat:
    """Members who talk, and come back when their worker is killed."""

    def __init__(self, service: Service, session: aiohttp.ClientSession) -> None:
        self._service, self._session = service, session
        self.over = False
        self.stays: list[Stay] = []

    @property
    def present(self) -> list[Stay]:
        return [stay for stay in self.stays if not stay.ended]

    def all_back(self) -> bool:
        there = {stay.worker for stay in self.present}
        return len(self.present) == MEMBERS and there <= set(self._service.workers())

    async def join(self) -> Stay:
        async with asyncio.timeout(HANGS):
            while True:
                try:
                    socket = await self._session.ws_connect(f"{self._service.url}/probe/chat/room")
                    first = await socket.receive()
                except aiohttp.ClientError:
                    first = None
                if first is not None and first.type is aiohttp.WSMsgType.TEXT:
                    break
                await asyncio.sleep(0.05)
        stay = Stay(len(self.stays), first.json()["worker"], socket)
        self.stays.append(stay)
        return stay

    async def member(self) -> None:
        while not self.over:
            stay = await self.join()
            hearing = asyncio.create_task(stay.hear())
            while not hearing.done() and not self.over:
                try:
                    await stay.say()
                except aiohttp.ClientError:
                    break
                await asyncio.sleep(random.uniform(0, 2 * PAUSE))
            await hearing


def kill_at_random(service: Service) -> int:
    """The number of workers that were killed."""
    end, kills = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        time.sleep(random.uniform(0, 2))
        victim = random.choice(service.workers())
        os.kill(victim, signal.SIGKILL)
        kills += 1
        wait_for(lambda: victim not in service.workers() and service.live() >= WORKERS - 1)  # noqa: B023
    wait_for(lambda: service.live() == WORKERS)
    return kills


def test_nothing_is_lost_but_what_was_in_a_killed_workers_hands(start: Start, loop: str) -> None:
    service = start("web", WEB_CONCURRENCY=str(WORKERS), EVENT_LOOP=loop)

    async def talk() -> tuple[int, list[Stay]]:
        async with aiohttp.ClientSession() as session:
            chat = Chat(service, session)
            members = [asyncio.create_task(chat.member()) for _ in range(MEMBERS)]
            kills = await asyncio.to_thread(kill_at_random, service)
            async with asyncio.timeout(HANGS):
                while not chat.all_back():  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                chat.over = True
                last = {stay.number: len(stay.said) for stay in chat.present}
                await asyncio.gather(*(stay.say() for stay in chat.present))
                # each publisher's come in order: nothing is on its way behind its last
                while not all(  # noqa: ASYNC110
                    stay.heard[number][-1:] == [n]
                    for stay in chat.present
                    for number, n in last.items()
                ):
                    await asyncio.sleep(0.02)
            present = chat.present
            await asyncio.gather(*(stay.socket.close() for stay in present), *members)
            for stay in present:
                stay.ended = False  # not by a kill
            return kills, chat.stays

    kills, stays = asyncio.run(talk())
    lost = {
        (stay.number, speaker.number): found
        for stay in stays
        for speaker in stays
        if (found := stay.lost(speaker))
    }
    told = sum(stay.told_missed for stay in stays)
    dropped = service.total("broadcast_dropped_total")
    said = sum(len(stay.said) for stay in stays)
    heard = sum(len(numbers) for stay in stays for numbers in stay.heard.values())
    print(f"{kills} kills, {len(stays)} stays: {said} said, {heard} heard, {dropped:.0f} dropped")
    assert len(stays) > MEMBERS
    assert sum(map(len, lost.values())) <= told, lost
    assert dropped or not told
    assert service.total("worker_exits_total", detail="SIGKILL") == kills
