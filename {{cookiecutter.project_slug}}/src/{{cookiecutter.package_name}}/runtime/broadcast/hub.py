"""Publishers and subscribers of this process, and what connects them to those of others.

A message is a frame: who published it, its number there, its channel, its data. So a frame that
comes twice, over two ways, is noticed, and so is one that did not come.
"""

import asyncio
import logging
import os
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any, Generic, Protocol, Self, TypeVar, overload
from weakref import WeakSet

import msgspec
from aiohttp import web

from ..metrics import catalogue, slots
from .mesh import Mesh

LONGEST = 2**20  # bytes of a message
WAITING = 1000  # messages that a subscription holds for its reader
PUBLISHERS = 10_000  # of which the last number is remembered
HEADER = struct.Struct("!8sQH")  # publisher, number, length of the channel's name

T = TypeVar("T")
OnMissed = Callable[[int], None]

log = logging.getLogger(__name__)


for place in ("subscriber", "worker"):  # shown from the beginning, as nothing lost
    catalogue.BROADCAST_DROPPED.labels(place)


class Way(Protocol):
    """Carries frames to other processes."""

    def send(self, frame: bytes) -> None: ...


class Subscription(Generic[T]):
    """The messages of a channel, from the moment it was made. It ends when the worker does.

    Nothing has to be closed: it is forgotten when nobody holds it any more.
    """

    def __init__(self, channel: str, decoder: msgspec.json.Decoder[T], on_missed: OnMissed | None):
        self.channel = channel
        self._decoder = decoder
        self._on_missed = on_missed
        self._items: deque[T] = deque()
        self._missed = 0
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while not self._items and not self._missed and not self._ended:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._missed:
            missed, self._missed = self._missed, 0
            if self._on_missed is not None:
                self._on_missed(missed)
            if not self._items:
                return await self.__anext__()
        if self._items:
            return self._items.popleft()
        raise StopAsyncIteration

    def _put(self, data: T) -> None:
        if len(self._items) >= WAITING:
            self._items.popleft()
            self._missed += 1
            catalogue.BROADCAST_DROPPED.labels("subscriber").inc()
        self._items.append(data)
        self._wake()

    def _miss(self, number: int) -> None:
        self._missed += number
        self._wake()

    def _end(self) -> None:
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Hub:
    """What this process publishes and hears."""

    def __init__(self) -> None:
        self.ways: list[Way] = []
        self._id = os.urandom(8)
        self._number = 0
        self._last: dict[bytes, int] = {}  # the number of the last message, by publisher
        self._channels: dict[str, WeakSet[Subscription[Any]]] = {}
        self._decoders: dict[Any, msgspec.json.Decoder[Any]] = {}

    def publish(self, channel: str, data: Any) -> None:
        text, name = msgspec.json.encode(data), channel.encode()
        if len(text) > LONGEST:
            raise ValueError(f"a message has at most {LONGEST} bytes as JSON; this has {len(text)}")
        self._number += 1
        frame = HEADER.pack(self._id, self._number, len(name)) + name + text
        catalogue.BROADCAST_PUBLISHED.inc()
        self.receive(frame)
        for way in self.ways:
            way.send(frame)

    def subscribe(self, channel: str, of: Any, on_missed: OnMissed | None) -> Subscription[Any]:
        if of not in self._decoders:
            self._decoders[of] = msgspec.json.Decoder(of)
        subscription = Subscription(channel, self._decoders[of], on_missed)
        self._channels.setdefault(channel, WeakSet()).add(subscription)
        return subscription

    def receive(self, frame: bytes) -> None:
        """Give a frame to those who subscribed to its channel."""
        publisher, number, length = HEADER.unpack_from(frame)
        last = self._last.get(publisher)
        if last is not None and number <= last:
            return  # came by another way already
        if last is not None and number > last + 1:
            self._tell_missed(number - last - 1)
        if last is None and len(self._last) >= PUBLISHERS:
            del self._last[next(iter(self._last))]
        self._last[publisher] = number
        body = HEADER.size + length
        channel = frame[HEADER.size : body].decode()
        if not (subscriptions := self._channels.get(channel)):
            self._channels.pop(channel, None)
            return
        decoded: dict[msgspec.json.Decoder[Any], Any] = {}  # once for all who want the same type
        reached = 0
        for subscription in subscriptions:
            decoder = subscription._decoder
            try:
                if decoder not in decoded:
                    decoded[decoder] = decoder.decode(frame[body:])
            except msgspec.ValidationError as error:
                log.error("channel %s: not what its subscriber reads: %s", channel, error)
                catalogue.BROADCAST_DROPPED.labels("subscriber").inc()
                continue
            subscription._put(decoded[decoder])
            reached += 1
        catalogue.BROADCAST_DELIVERED.inc(reached)

    def _tell_missed(self, number: int) -> None:
        for subscriptions in self._channels.values():
            for subscription in subscriptions:
                subscription._miss(number)

    async def end(self) -> None:
        """Every subscription ends, so that the requests that read them do."""
        for subscriptions in self._channels.values():
            for subscription in list(subscriptions):
                subscription._end()


_hub = Hub()


async def publish(channel: str, data: Any) -> None:
    """Send `data` to all who subscribed to `channel`, in this process and in others.

    At most once, and in order for each publisher. It waits for nobody: what a slow reader cannot
    take is dropped there, counted in `broadcast_dropped_total`, and told to its reader.

    Raises:
        TypeError: when msgspec does not know how to write it as JSON.
        ValueError: when it has more than 1 MiB as JSON.
    """
    _hub.publish(channel, data)


def sockets() -> list[Any]:
    """Of this process, by which it is connected to the other workers."""
    return [one for way in _hub.ways if isinstance(way, Mesh) for one in way.sockets()]


@overload
def subscribe(channel: str, *, on_missed: OnMissed | None = None) -> Subscription[Any]: ...


@overload
def subscribe(
    channel: str, of: type[T], *, on_missed: OnMissed | None = None
) -> Subscription[T]: ...


def subscribe(
    channel: str, of: Any = Any, *, on_missed: OnMissed | None = None
) -> Subscription[Any]:
    """The messages of `channel` from now on: `async for news in subscribe("news", News)`.

    All who subscribed get the same object: do not change it.

    Args:
        of: what they are read as: a msgspec.Struct, a dataclass or any other type that msgspec
            knows. One that is not that is dropped, counted and logged.
        on_missed: is told how many messages were lost on their way, of any channel where it is not
            known of which, before the first that follows.
    """
    return _hub.subscribe(channel, of, on_missed)


def context(
    *bridges: Callable[[Hub], AsyncIterator[None]],
) -> Callable[[web.Application], AsyncIterator[None]]:
    """For `cleanup_ctx`: while it is open, this process hears the others."""

    async def hold(app: web.Application) -> AsyncIterator[None]:
        global _hub
        _hub = Hub()
        _hub_of_app = _hub

        async def end(_: web.Application) -> None:
            await _hub_of_app.end()

        app.on_shutdown.append(end)
        async with AsyncExitStack() as stack:
            if slots.installed():
                mesh = Mesh(slots.folder() / "broadcast", _hub.receive)
                await stack.enter_async_context(mesh)
                _hub.ways.append(mesh)
            for bridge in bridges:
                running = bridge(_hub)
                await anext(running)
                stack.push_async_callback(_finish, running)
            yield

    return hold


async def _finish(running: AsyncIterator[None]) -> None:
    await anext(running, None)
