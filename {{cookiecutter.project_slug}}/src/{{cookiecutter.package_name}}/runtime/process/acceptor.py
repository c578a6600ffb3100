"""Takes connections from a listening socket that all workers share, so that each gets its share.

A worker that takes all that is there at one wake-up gets a whole burst of keep-alive connections,
[8,0,0,0] on four workers. SO_REUSEPORT spreads them, but sends half of the new connections to a
worker that is blocked. Here all workers watch the one socket, and each takes only so many that it
leads the one with the fewest by 1 + a sixteenth of its own. One that would lead by more stands
back for STAND_BACK seconds. If none of those behind it has moved in that time, which is to take or
to lose a connection, say because they are blocked, it takes one, and twice as many the next time.

Connections that come and go need no balance, and would pay dearly for it: what a worker has lost
it replaces without a look at the others, and without standing back, as long as it lost one within
REPLACE_WITHIN seconds. It takes no more than that for them: when a proxy closes all connections and
opens as many, a worker that has seen it first would think itself far behind the others.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Iterable

from aiohttp.web_protocol import RequestHandler

from .scoreboard import Scoreboard

log = logging.getLogger(__name__)

STAND_BACK = 0.01
REPLACE_WITHIN = 0.1
RETRY_AFTER = 1.0  # seconds until there may be file descriptors again
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Accepts for one worker, and shows the others how many connections it has."""

    def __init__(
        self,
        listener: socket.socket,
        make: Callable[[], RequestHandler],
        scoreboard: Scoreboard,
        row: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._make = make
        self._scoreboard = scoreboard
        self._row = row
        self._open = 0
        self._lost = 0  # closed, and not replaced yet
        self._last_lost = 0.0
        self._stands_back = False
        self._behind: list[int] = []  # rows of those with fewer connections, and their moves
        self._moves = 0
        self._helping = 0  # how many to take after standing back
        self._timer: asyncio.TimerHandle | None = None
        self._opening: dict[asyncio.Task[None], socket.socket] = {}

    def start(self) -> None:
        self._loop.add_reader(self._listener.fileno(), self._readable)

    def stop(self) -> None:
        """Take what is in the queue already, and nothing more."""
        self._loop.remove_reader(self._listener.fileno())
        self._take(1 << 16)
        if self._timer is not None:
            self._timer.cancel()
        self._listener.close()

    def opening(self) -> Iterable[socket.socket]:
        """Connections that have no transport yet."""
        return self._opening.values()

    def closed(self) -> None:
        """A connection was closed."""
        self._open -= 1
        self._lost += 1
        self._last_lost = self._loop.time()
        self._scoreboard.set_connections(self._row, self._open)
        if self._stands_back and self._timer is not None:
            self._stands_back = False
            self._timer.cancel()
            self.start()

    def _replaces(self) -> bool:
        return self._loop.time() - self._last_lost < REPLACE_WITHIN

    def _readable(self) -> None:
        if not self._replaces():
            self._lost = 0
        fewest = self._scoreboard.fewest_connections()
        room = max(fewest + 1 + self._open // 16 - self._open, self._lost)
        if room > 0:
            self._take(room)
        else:
            self._behind = self._scoreboard.behind(self._open, self._row)
            self._moves = self._scoreboard.moves(self._behind)
            self._stands_back = True
            self._pause(STAND_BACK)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener.fileno())
        self._timer = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self.start()
        if not self._stands_back:
            return
        self._stands_back = False
        if self._scoreboard.moves(self._behind) == self._moves:
            self._helping = self._helping * 2 or 1
            self._take(self._helping)
        else:
            self._helping = 0

    def _take(self, most: int) -> None:
        for _ in range(most):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                break  # another worker was quicker
            except OSError as error:
                if error.errno not in EXHAUSTED:
                    raise
                log.error("cannot accept connections (%s), again in %g s", error, RETRY_AFTER)
                self._pause(RETRY_AFTER)
                break
            self._open += 1
            self._lost = max(self._lost - 1, 0)
            connection.setblocking(False)
            task = self._loop.create_task(self._connect(connection))
            self._opening[task] = connection
            task.add_done_callback(self._opening.pop)
        self._scoreboard.set_connections(self._row, self._open)

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make, connection)
        except OSError:  # gone again
            connection.close()
            self.closed()
