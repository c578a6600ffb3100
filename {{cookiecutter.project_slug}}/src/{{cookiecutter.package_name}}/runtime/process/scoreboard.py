"""A few numbers about every worker, in memory that all processes of a pool share.

The arbiter makes it before it forks and hands each worker a row. One process writes a cell and
every process reads it; an aligned 4-byte store is never seen half done, so there is no lock.
"""

import mmap
from collections.abc import Iterator
from enum import IntEnum

ROWS = 1024
HEARTBEAT = 0.5  # seconds between two signs of life of a worker


class State(IntEnum):
    """Where a worker is in its life."""

    OVERDUE = -1  # has not booted in time, and says where it was
    FREE = 0
    BOOTING = 1
    SERVING = 2
    RECYCLE = 3  # asks to be replaced; a web worker goes on serving
    DRAINING = 4


class Scoreboard:
    """Rows of workers, and whether the whole pool is shutting down."""

    def __init__(self) -> None:
        cells = memoryview(mmap.mmap(-1, 4 * (4 * ROWS + 2))).cast("i")
        self._states = cells[:ROWS]
        self._connections = cells[ROWS : 2 * ROWS]
        self._moves = cells[2 * ROWS : 3 * ROWS]
        self._failing = cells[3 * ROWS : 4 * ROWS]
        self._pool = cells[4 * ROWS :]  # shutting down, number of rows in use so far

    @property
    def shutting_down(self) -> bool:
        return bool(self._pool[0])

    @property
    def trouble(self) -> str:
        """Why the pool is not ready; empty when it is."""
        return "shutting down" if self.shutting_down else ""

    def shut_down(self) -> None:
        self._pool[0] = 1

    @property
    def serving(self) -> bool:
        """Whether any worker serves."""
        return any(True for _ in self._serving())

    def lease(self) -> int:
        """A free row, marked BOOTING. Only the arbiter calls it.

        Raises:
            RuntimeError: when there are more workers than rows.
        """
        for row in range(ROWS):
            if self._states[row] == State.FREE:
                self._states[row], self._connections[row] = State.BOOTING, 0
                self._pool[1] = max(self._pool[1], row + 1)
                return row
        raise RuntimeError(f"more than {ROWS} workers")

    def state(self, row: int) -> int:
        return self._states[row]

    def set_state(self, row: int, state: State) -> None:
        self._states[row] = state

    def set_failing(self, row: int, checks: int) -> None:
        """Which readiness checks fail in a worker, a bit for each."""
        self._failing[row] = checks

    def failing(self) -> list[int]:
        """The same, of every worker that serves."""
        return [self._failing[row] for row in self._serving()]

    def set_connections(self, row: int, number: int) -> None:
        self._connections[row] = number
        self._moves[row] = self._moves[row] + 1 & 0x7FFFFFFF

    def fewest_connections(self) -> int:
        """Of the serving worker that has the fewest; 0 where none serves."""
        return min((self._connections[row] for row in self._serving()), default=0)

    def behind(self, connections: int, row: int) -> list[int]:
        """Rows of the other serving workers that have fewer."""
        return [r for r in self._serving() if r != row and self._connections[r] < connections]

    def moves(self, rows: list[int]) -> int:
        """How often these have taken or lost connections so far."""
        return sum(self._moves[row] for row in rows)

    def _serving(self) -> Iterator[int]:
        return (row for row in range(self._pool[1]) if self._states[row] == State.SERVING)
