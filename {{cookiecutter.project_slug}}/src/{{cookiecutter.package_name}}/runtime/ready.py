"""Readiness of one's own: what the service needs to be of use, asked on a tick in each worker.

A probe finds what the last tick has found, in all workers: it never waits for a database, and a
check that fails makes the pod unready and nothing more.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from aiohttp import web

from .metrics import catalogue

MOST = 31  # checks: bits of a number in shared memory

Check = Callable[[web.Application], Awaitable[object]]
CHECKS: web.AppKey[dict[str, Check]] = web.AppKey("ready_checks", dict)

log = logging.getLogger(__name__)


def add_ready_check(app: web.Application, check: Check, name: str = "") -> None:
    """Have the service unready for as long as `await check(app)` raises, in whichever worker.

    Each worker asks every READY_INTERVAL seconds; what does not answer within READY_TIMEOUT has
    failed. A worker accepts no connections before it has asked for the first time.

    Args:
        name: what probes and metrics call it; the name of the function, unless given.

    Raises:
        ValueError: when there is one of that name, or too many.
    """
    checks = app.setdefault(CHECKS, {})
    name = name or check.__name__
    if name in checks or len(checks) == MOST:
        raise ValueError(f"{name}: give each check a name of its own, and {MOST} at most")
    checks[name] = check


class Board(Protocol):
    """What all workers know of each other."""

    @property
    def trouble(self) -> str: ...  # why the pool is not ready, whatever the checks say

    def failing(self) -> list[int]: ...  # of each serving worker, a bit for each check


class Readiness:
    """The checks of a worker."""

    def __init__(
        self, app: web.Application, board: Board, *, interval: float, patience: float
    ) -> None:
        """
        Args:
            interval: seconds between two rounds.
            patience: seconds that a check may take.
        """
        self._app = app
        self._board = board
        self._interval = interval
        self._patience = patience
        self._checks = app.get(CHECKS, {})
        self._asked: dict[str, asyncio.Task[object]] = {}
        self._why: dict[str, str] = {}  # the checks that fail here

    @property
    def trouble(self) -> str:
        """Why the pool is not ready; empty when it is."""
        if trouble := self._board.trouble:
            return trouble
        workers = self._board.failing()
        found = []
        for bit, name in enumerate(self._checks):
            if number := sum(failing >> bit & 1 for failing in workers):
                why = self._why.get(name, "it passes in the worker that answers")
                found.append(f"{name} fails in {number} of {len(workers)} workers: {why}")
        return "\n".join(found)

    async def ask(self) -> int:
        """Ask all checks at once; a bit for each that fails."""
        for name, check in self._checks.items():
            if name not in self._asked or self._asked[name].done():
                self._asked[name] = asyncio.ensure_future(self._call(check))
        if self._asked:
            await asyncio.wait(self._asked.values(), timeout=self._patience)
        failing = 0
        for bit, name in enumerate(self._checks):
            why = self._result(name)
            failing |= bool(why) << bit
            catalogue.READY.labels(name).set(not why)
            if why and name not in self._why:
                log.error("not ready: %s: %s", name, why)
            elif not why and name in self._why:
                log.info("ready again: %s", name)
            if why:
                self._why[name] = why
            else:
                self._why.pop(name, None)
        return failing

    async def watch(self, tell: Callable[[int], None]) -> None:
        """Ask every `interval` seconds until cancelled, and tell which fail."""
        while self._checks:
            await asyncio.sleep(self._interval)
            tell(await self.ask())

    async def _call(self, check: Check) -> object:
        return await check(self._app)

    def _result(self, name: str) -> str:
        """Why the check has failed; empty where it has passed."""
        asked = self._asked[name]
        if not asked.done():
            asked.cancel()  # one that does not even end then is not asked again until it does
            return f"no answer within {self._patience:g} s"
        if asked.cancelled():
            return "it was cancelled"
        error = asked.exception()
        return "" if error is None else f"{type(error).__name__}: {error}"
