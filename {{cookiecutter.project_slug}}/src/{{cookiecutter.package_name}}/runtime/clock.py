"""Time that this process could run.

A container may be paused for minutes, a virtual machine for hours, and where CPU is short every
second is a long one. By the clock on the wall all deadlines have passed then, and whoever kept
them is killed. Here a pause counts as one short step, however long it was.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

STEPS = 10  # of a deadline; a pause takes one of them at most


class Clock:
    """Seconds since it was made, for whoever looks at it all the time."""

    def __init__(self, longest: float) -> None:
        """
        Args:
            longest: seconds that may count from one look to the next.
        """
        self.now = 0.0
        self._longest = longest
        self._looked = time.monotonic()

    def look(self) -> float:
        """What time it is; at least that often, that no longer step is missed."""
        before, self._looked = self._looked, time.monotonic()
        self.now += min(self._looked - before, self._longest)
        return self.now


@asynccontextmanager
async def timeout(seconds: float) -> AsyncIterator[asyncio.Timeout]:
    """As asyncio.timeout().

    Raises:
        TimeoutError: when the time is over.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle
    left = STEPS

    def step() -> None:
        nonlocal left, timer
        left -= 1
        if left:
            timer = loop.call_later(seconds / STEPS, step)
        else:
            limit.reschedule(0)

    async with asyncio.timeout(None) as limit:
        timer = loop.call_later(seconds / STEPS, step)
        try:
            yield limit
        finally:
            timer.cancel()
