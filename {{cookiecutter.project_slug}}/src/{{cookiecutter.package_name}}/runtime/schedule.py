"""Work on a schedule: once in the service, and not once in each worker.

One worker leads, by a lock that the kernel frees however that worker ends; then another one does.
What is due every n seconds is due whenever Unix time is a multiple of n: so workers and pods agree
on its turns without a word, and a new leader takes up a turn that the old one has not begun.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from . import logs
from .metrics import catalogue, slots
from .parts import brief

TICK = 0.2  # seconds between two looks at the clock
CUT_SHORT = 0.5  # seconds for work that is cancelled to end

Function = Callable[[web.Application], Awaitable[object]]
# whether this pod is the one to take the turn, by its name, its time and the seconds between two
Claim = Callable[[str, int, int], Awaitable[bool]]

log = logging.getLogger(__name__)


@dataclass
class Work:
    """What is to be done every so many seconds."""

    name: str
    seconds: int
    function: Function
    turn: int | None = None  # the last that was taken
    running: asyncio.Task[None] | None = field(default=None, repr=False)

    def due(self) -> bool:
        """Whether there is a turn now; it is taken then."""
        now = int(time.time() // self.seconds)
        if self.turn is None:
            self.turn = self._remembered(now)
        if now <= self.turn:
            return False
        self.turn = now
        with suppress(OSError):  # where there is no room, only a new leader would miss it
            self._memory.write_text(str(self.time))
        return True

    @property
    def time(self) -> int:
        """Of the last turn, as Unix time."""
        return (self.turn or 0) * self.seconds

    @property
    def _memory(self) -> Path:
        return slots.folder() / f"schedule_{self.name}"

    def _remembered(self, now: int) -> int:
        try:
            return int(self._memory.read_text()) // self.seconds
        except (OSError, ValueError):  # nobody has taken one yet
            return now


WORKS: web.AppKey[dict[str, Work]] = web.AppKey("schedule", dict)


def every(app: web.Application, seconds: int, function: Function, name: str = "") -> None:
    """Have `await function(app)` called every so many seconds, by one worker of the service.

    A turn that comes while the one before is still at work is left out.

    Args:
        seconds: counted from 1970 on, in UTC: 3600 is on the hour, 86400 at midnight.
        name: what the log and metrics call it; the name of the function, unless given.

    Raises:
        ValueError: when there is one of that name, or it is none, or it is less than a second.
    """
    works = app.setdefault(WORKS, {})
    name = name or function.__name__
    if name in works or not re.fullmatch(r"[\w-]{1,100}", name):
        raise ValueError(f"{name!r}: give a name of its own, of letters, digits, - and _")
    if seconds < 1:
        raise ValueError(f"{name}: give at least 1 second, not {seconds}")
    works[name] = Work(name, seconds, function)


class Schedule:
    """The schedule of a worker, who keeps to it while it leads."""

    def __init__(self, app: web.Application, claim: Claim) -> None:
        self._app = app
        self._claim = claim
        self._works = app.get(WORKS, {}).values()

    async def keep(self) -> None:
        """Begin what is due, until cancelled."""
        leads = False
        while self._works:
            if not leads and (leads := slots.lead()):
                log.info("scheduled work is done by this worker from now on")
            for work in self._works if leads else ():
                if work.due():
                    self._begin(work)
            await asyncio.sleep(TICK)

    async def finish(self, patience: float) -> None:
        """Wait for what was begun, when nothing begins any more; then somebody else may lead.

        Args:
            patience: seconds until it is cancelled.
        """
        running = {work.running for work in self._works if work.running}
        if running:
            _, late = await asyncio.wait(running, timeout=patience)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=CUT_SHORT)
        slots.follow()

    def _begin(self, work: Work) -> None:
        if work.running and not work.running.done():
            log.warning("%s is still at work: this turn is left out", work.name)
            catalogue.SCHEDULED_RUNS.labels(work.name, "left_out").inc()
        else:
            work.running = asyncio.ensure_future(self._run(work))

    async def _run(self, work: Work) -> None:
        logs.current.set(logs.Record(logs.new_id()))
        try:
            if not await self._claim(work.name, work.time, work.seconds):
                return  # another pod has
        except OSError as error:
            log.error(
                "%s: nobody knows whether another pod does it, so not here: %s", work.name, error
            )
            catalogue.SCHEDULED_RUNS.labels(work.name, "unclaimed").inc()
            return
        outcome, began = "cut_short", time.perf_counter()
        try:
            await work.function(self._app)
            outcome = "done"
        except Exception as error:
            outcome = "failed"
            log.error("%s failed", work.name, exc_info=brief(error))
        finally:
            if outcome == "cut_short":
                log.error("%s was cut short by the end of its worker", work.name)
            catalogue.SCHEDULED_RUNS.labels(work.name, outcome).inc()
            catalogue.SCHEDULED_SECONDS.labels(work.name).observe(time.perf_counter() - began)
