"""Takes connections from a listening socket that all workers share.

A worker that accepts all that is there at one wake-up gets a whole burst of keep-alive connections
([8,0,0,0] on four workers); SO_REUSEPORT spreads them, but sends half of them to a worker that is
blocked. Here every worker watches the one socket and takes one connection a wake-up, so that a
blocked worker takes none; and one that leads the least loaded stands back once, for STAND_BACK
seconds, then takes the connection if nobody did.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

from .scoreboard import Scoreboard

log = logging.getLogger(__name__)

STAND_BACK = 0.005
RETRY_AFTER = 1.0  # seconds to wait for file descriptors to come free
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Accepts for one worker, and publishes how many connections it has."""

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        connections: Callable[[], int],
        scoreboard: Scoreboard,
        row: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._protocol = protocol
        self._connections = connections
        self._scoreboard = scoreboard
        self._row = row
        self._timer: asyncio.TimerHandle | None = None
        self._opening: set[asyncio.Task[object]] = set()

    def start(self) -> None:
        self._loop.add_reader(self._listener.fileno(), self._readable)

    def stop(self) -> None:
        """Take what is in the queue already, and nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._listener.fileno())
        while self._accept():
            pass
        self._listener.close()

    def _readable(self) -> None:
        mine = self._connections() + len(self._opening)
        self._scoreboard.set_connections(self._row, mine)
        if mine > self._scoreboard.fewest_connections() + 1 + mine // 16:
            self._pause(STAND_BACK)
        else:
            self._accept()

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener.fileno())
        self._timer = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._timer = None
        self._accept()
        self.start()

    def _accept(self) -> bool:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False  # another worker was quicker
        except OSError as error:
            if error.errno not in EXHAUSTED:
                raise
            log.error("cannot accept connections: %s; trying again in %g s", error, RETRY_AFTER)
            self._pause(RETRY_AFTER)
            return False
        connection.setblocking(False)
        task = self._loop.create_task(self._open(connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return True

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError:  # gone again
            connection.close()
