"""Carries frames between the workers of one machine: a unix socket for each, no broker.

Every worker listens on a socket in one folder. Who comes connects to all that are there, and says
its name; they connect back. A worker sends on the connections that it made, and reads on those
that it accepted: so what one sends arrives in order, and the dead take nothing of the others along.
"""

import asyncio
import logging
import os
import secrets
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from ..metrics import catalogue

UNSENT = 8 * 2**20  # bytes that wait for one slow worker; what comes on top of them is dropped
LONGEST = 2**21  # bytes of a frame; who claims more is none of us
PATIENCE = 1.0  # seconds until a worker that does not connect back is taken for blocked
LENGTH = struct.Struct("!I")

log = logging.getLogger(__name__)


class _Link(asyncio.Protocol):
    """To a worker that this one sends to."""

    def __init__(self, lost: Callable[[], None]) -> None:
        self._lost = lost

    def connection_made(self, transport: Any) -> None:
        self.transport: asyncio.Transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost()


class _Ear(asyncio.Protocol):
    """From a worker that sends to this one: its name in a line, then frames."""

    def __init__(self, mesh: "Mesh") -> None:
        self._mesh = mesh
        self._named = False
        self._data = bytearray()

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport
        self._mesh.ears.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._mesh.ears.discard(self)

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._named:
            name, newline, rest = bytes(self._data).partition(b"\n")
            if not newline:
                return
            self._named, self._data = True, bytearray(rest)
            self._mesh.heard_of(name.decode())
        at = 0
        while len(self._data) >= at + LENGTH.size:
            (length,) = LENGTH.unpack_from(self._data, at)
            if length > LONGEST:
                self._transport.abort()
                return
            end = at + LENGTH.size + length
            if len(self._data) < end:
                break
            self._mesh.receive(bytes(self._data[at + LENGTH.size : end]))
            at = end
        del self._data[:at]


class Mesh:
    """Sends frames to all other workers that have their socket in `folder`, and gives theirs."""

    def __init__(self, folder: Path, receive: Callable[[bytes], None]) -> None:
        self.receive = receive
        self.ears: set[_Ear] = set()
        self._folder = folder
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._links: dict[str, _Link] = {}
        self._heard: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = str(self._folder / self._name)
        self._server = await self._loop.create_unix_server(lambda: _Ear(self), path)
        others = [other.name for other in self._folder.iterdir() if other.name != self._name]
        await asyncio.gather(*(self._connect(name) for name in others))
        # not before all of them would send here
        heard = [self._event(name).wait() for name in others if name in self._links]
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*heard), PATIENCE)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        (self._folder / self._name).unlink(missing_ok=True)
        for task in self._tasks:
            task.cancel()
        for link in list(self._links.values()):
            link.transport.close()
        for ear in list(self.ears):
            ear.close()

    def sockets(self) -> list[Any]:
        """Those it listens, sends and hears on."""
        transports = [link.transport for link in self._links.values()]
        transports += [ear._transport for ear in self.ears]
        return [*self._server.sockets, *(one.get_extra_info("socket") for one in transports)]

    def send(self, frame: bytes) -> None:
        """Send a frame to all, without waiting for any."""
        data = LENGTH.pack(len(frame)) + frame
        for link in self._links.values():
            if link.transport.get_write_buffer_size() + len(data) > UNSENT:
                catalogue.BROADCAST_DROPPED.labels("worker").inc()
            else:
                link.transport.write(data)

    def heard_of(self, name: str) -> None:
        """A worker has connected."""
        self._event(name).set()
        if name not in self._links:
            task = self._loop.create_task(self._connect(name))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _event(self, name: str) -> asyncio.Event:
        return self._heard.setdefault(name, asyncio.Event())

    async def _connect(self, name: str) -> None:
        path = self._folder / name
        link = _Link(lambda: self._forget(name, link))
        try:
            await self._loop.create_unix_connection(lambda: link, str(path))
        except FileNotFoundError:
            return  # it has just left
        except ConnectionRefusedError:  # it was killed
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            log.error("a worker hears nothing of what is published in this one: %s", error)
            return
        if name in self._links:  # it was quicker
            link.transport.close()
            return
        link.transport.write(f"{self._name}\n".encode())
        self._links[name] = link

    def _forget(self, name: str, link: _Link) -> None:
        if self._links.get(name) is link:
            del self._links[name]
            self._event(name).set()  # nobody has to wait for the dead
            del self._heard[name]
