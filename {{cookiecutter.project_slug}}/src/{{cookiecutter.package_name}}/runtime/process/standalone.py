"""A compute pool without web workers: its parent is a process that serves the admin port."""

import asyncio
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

from aiohttp import web

from ..http.admin import Runner, create_admin
from ..metrics import asked, slots
from ..metrics.catalogue import WORKER_INFO
from ..parts import Parts
from ..settings import Settings
from .arbiter import Launcher, Service
from .pools import compute_pool

log = logging.getLogger(__name__)


class Standalone:
    """The life of that process. A subclass says what else it does."""

    role = "admin"  # as worker_info shows it
    goodbye = signal.SIGTERM  # to the pool, in the end

    def __init__(self, settings: Settings, parts: Parts) -> None:
        self.settings = settings
        self.parts = parts
        self.stop = asyncio.Event()
        self._launcher = Launcher(Service(compute_pool, settings, parts), parent=os.getpid())

    @property
    def trouble(self) -> str:
        """Why we are not ready; empty when we are."""
        if self.stop.is_set():
            return "shutting down"
        return "" if self._launcher.scoreboard.serving else "no compute worker serves"

    def admin(self) -> web.Application:
        return create_admin(self, self.settings)

    def leave(self) -> None:
        if self.stop.is_set():
            self.tell_pool(signal.SIGQUIT)  # asked again: quickly
        self.stop.set()

    def tell_pool(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._pool, number)

    async def work(self) -> None:
        """Until `stop` is set, and for as long as the pool is needed after it."""
        await self.stop.wait()
        # tasks still come, as the balancer has yet to hear of it
        await asyncio.wait({self._ended}, timeout=self.settings.lame_duck)

    def run(self) -> NoReturn:
        """Become that process. Ends by SystemExit, in the pool that it forks too."""
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # until there are handlers
        self._pool = os.fork()
        if self._pool == 0:
            self._launcher.run()
        WORKER_INFO.labels(slots.label(), self.role).set(1)
        asked.start()
        loop = import_module(self.settings.event_loop).new_event_loop()
        sys.exit(loop.run_until_complete(self._live()))

    async def _live(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.leave)
        loop.add_signal_handler(signal.SIGHUP, self.tell_pool, signal.SIGHUP)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
        self._ended = asyncio.ensure_future(asyncio.to_thread(self._reap))
        self._ended.add_done_callback(lambda _: self.stop.set())
        runner = Runner(self.admin(), access_log=None, shutdown_timeout=1)
        await runner.setup()
        host, port, code = self.settings.admin_host, self.settings.admin_port, 0
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            # as gunicorn's: :: is every address of IPv4 too, where asyncio would leave it out
            both = host == "::"
            listener = socket.create_server((host, port), family=family, dualstack_ipv6=both)
            await web.SockSite(runner, listener).start()
        except OSError as error:
            log.error("cannot listen on ADMIN_HOST=%s, ADMIN_PORT=%d: %s", host, port, error)
            self.stop.set()
            self.tell_pool(signal.SIGQUIT)
            code = 1
        work = asyncio.ensure_future(self.work())
        await self.stop.wait()
        if self._ended.done():
            log.error("the compute pool ended: leaving too")
            code = 1
        await work
        self.tell_pool(self.goodbye)
        await self._ended
        await runner.cleanup()
        return code

    def _reap(self) -> None:
        """Return when the pool has ended; until then, bury what process 1 inherits."""
        while os.wait()[0] != self._pool:
            pass
