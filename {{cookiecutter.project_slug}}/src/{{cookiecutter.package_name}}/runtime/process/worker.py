"""The web worker: one process, one event loop, one Application, and an end that nobody notices.

aiohttp's own GunicornWebWorker listens again with another backlog, notices SIGTERM up to a second
late, drops keep-alive requests when it is recycled, and skips on_cleanup when a request outlives
the drain. All of it is replaced here, so this is a gunicorn worker of its own.
"""

import asyncio
import faulthandler
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp import web
from gunicorn.workers.base import Worker

from .. import output
from ..clock import Clock, timeout
from ..http import admin as admin_port
from ..http.edge import Runner
from ..metrics import catalogue, loop, slots
from ..ready import Readiness
from ..schedule import Schedule
from .acceptor import Acceptor
from .children import separate, stay_deaf
from .scoreboard import HEARTBEAT, Scoreboard, State

if TYPE_CHECKING:
    from .arbiter import Service

log = logging.getLogger(__name__)

TICK = 0.1  # seconds between two looks while draining
QUIET_TICKS = 10  # looks without a request until an idle keep-alive client counts as gone
CLEANUP_SHARE = 0.2  # of GRACEFUL_TIMEOUT, kept for on_cleanup
QUICKLY = 1.0  # seconds instead of GRACEFUL_TIMEOUT after SIGINT or SIGQUIT
STRAGGLERS = 0.1  # seconds for cancelled handlers to end


class Served(NamedTuple):
    """What a worker serves. The process model itself knows nothing of HTTP beyond this."""

    runner: Runner
    admin: web.Application
    readiness: Readiness
    schedule: Schedule
    sockets: Callable[[], list[Any]]  # of its own, besides those of the two ports


def ready_for_signals(sockets: Callable[[], Iterator[int]]) -> None:
    """In a fresh worker: the stack on SIGABRT, and the signals that were held back by the fork.

    Args:
        sockets: descriptors that no child of the worker is to have.
    """
    # a terminal sends these to the whole group: the arbiter's answer is the one that counts
    stay_deaf(signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    for number in (signal.SIGTTIN, signal.SIGTTOU):  # the arbiter ignores them
        signal.signal(number, signal.SIG_DFL)
    separate(sockets)
    faulthandler.enable(output.stderr)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())


def show_state(state: State) -> None:
    """Show it in the metrics of this process."""
    for one in (State.SERVING, State.RECYCLE, State.DRAINING):
        shown = catalogue.WORKER_STATE.labels(slots.label(), one.name.lower())
        shown.set(one is state)


class WebWorker(Worker):
    """Serves the Application on the first listener and the admin application on the second."""

    app: "Service"
    row: int  # on the scoreboard; the arbiter sets both before the fork
    scoreboard: Scoreboard

    def init_signals(self) -> None:
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        ready_for_signals(self._descriptors)

    def _descriptors(self) -> Iterator[int]:
        """Of the listeners, of all connections, and what else is served."""
        listeners: Any = self.sockets
        sockets = [listener.sock for listener in listeners]
        if self.booted:
            sockets += self._acceptor.opening()
            for runner in (self._runner, self._admin):
                for connection in runner.server.connections if runner.server else ():
                    if connection.transport is not None:
                        sockets.append(connection.transport.get_extra_info("socket"))
            sockets += self._sockets()
        return (fd for sock in sockets if (fd := sock.fileno()) >= 0)

    def run(self) -> None:
        self.booted = False
        self._clock = Clock(2 * HEARTBEAT)
        loop = import_module(self.app.settings.event_loop)
        with asyncio.Runner(loop_factory=loop.new_event_loop) as runner:
            runner.run(self._live())

    async def _live(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._quick = asyncio.Event()
        self.loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        self.loop.add_signal_handler(signal.SIGQUIT, self._leave_quickly)
        heartbeat = asyncio.ensure_future(self._beat())
        boot = asyncio.ensure_future(self._boot())
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({boot, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not boot.done():
                boot.cancel()
                await asyncio.wait({boot})
                return
            await boot
            await stop
            await self._drain()
        finally:
            stop.cancel()
            heartbeat.cancel()

    def _leave_quickly(self) -> None:
        self._quick.set()
        self._stop.set()

    async def _boot(self) -> None:
        settings = self.app.settings
        build: Any = self.wsgi  # what gunicorn calls so, here Service.load()'s answer
        try:
            async with timeout(settings.worker_timeout) as limit:
                served: Served = await build(self.scoreboard)
                await served.runner.setup()
        except TimeoutError as error:
            if not limit.expired():
                raise
            self.scoreboard.set_state(self.row, State.OVERDUE)
            why = f"create_app() took longer than WORKER_TIMEOUT={settings.worker_timeout:g}"
            raise TimeoutError(why) from error
        self._show_failing(await served.readiness.ask())
        self._runner, self._sockets = served.runner, served.sockets
        self._admin = admin_port.Runner(served.admin, access_log=None, shutdown_timeout=1)
        await self._admin.setup()
        self._server = server = self._runner.server
        listeners: Any = self.sockets
        public, admin = (listener.sock for listener in listeners)
        self._acceptor = Acceptor(public, server, self.scoreboard, self.row)
        server.connection_closed = self._acceptor.closed
        self._acceptor.start()
        await web.SockSite(self._admin, admin, backlog=settings.backlog).start()
        self._watch = asyncio.ensure_future(
            loop.watch(lambda: len(server.connections), lambda: server.requests_count)
        )
        self._schedule = served.schedule
        self._keeping = asyncio.ensure_future(self._schedule.keep())
        self._asking = asyncio.ensure_future(served.readiness.watch(self._show_failing))
        self.booted = True
        catalogue.WORKER_BOOTS.inc()
        self._tell(State.SERVING)

    def _show_failing(self, checks: int) -> None:
        self.scoreboard.set_failing(self.row, checks)

    def _tell(self, state: State) -> None:
        """Show the state to the arbiter, and wake it."""
        self.scoreboard.set_state(self.row, state)
        show_state(state)
        with suppress(ProcessLookupError):
            os.kill(self.ppid, signal.SIGCHLD)

    async def _beat(self) -> None:
        while True:
            # a create_app() that does not even let itself be cancelled is for the arbiter to end
            if self._clock.look() < 2 * self.app.settings.worker_timeout or self.booted:
                self.notify()
            if os.getppid() != self.ppid:
                log.error("the arbiter is gone: leaving")
                self._leave_quickly()
            elif (
                self.scoreboard.state(self.row) == State.SERVING
                and self._server.requests_count > self.max_requests
            ):
                self._tell(State.RECYCLE)
            await asyncio.sleep(HEARTBEAT)

    async def _drain(self) -> None:
        settings = self.app.settings
        whole_pool = self.scoreboard.shutting_down
        self._asking.cancel()
        self._keeping.cancel()
        self._server.closing = True
        if whole_pool and not self._quick.is_set():
            # still accepting, as the balancer has yet to hear of it
            catalogue.LAME_DUCK.set(1)
            with suppress(TimeoutError):
                async with timeout(settings.lame_duck):
                    await self._quick.wait()
        self._tell(State.DRAINING)
        grace = QUICKLY if self._quick.is_set() else settings.graceful_timeout
        end = self._clock.look() + grace
        self._acceptor.stop()
        if not whole_pool:  # the others answer probes and scrapes; else it is us, until the end
            await self._stop_admin()
        await self._until(end, "on_shutdown", self._runner.app.shutdown())
        limit = end - grace * CLEANUP_SHARE
        # half of what is left: the other half is for their clients to say goodbye
        ending = asyncio.ensure_future(
            self._server.end_streams(max(limit - self._clock.look(), 0) / 2)
        )
        await self._until_quiet(limit)
        ending.cancel()
        await self._schedule.finish(max(limit - self._clock.look(), 0))
        await self._server.shutdown(STRAGGLERS)
        await self._until(end, "on_cleanup", self._runner.app.cleanup())
        await self._stop_admin()
        await self._until_answered(end)
        await self._admin.cleanup()
        self._watch.cancel()

    async def _stop_admin(self) -> None:
        for site in list(self._admin.sites):
            await site.stop()

    async def _until_answered(self, limit: float) -> None:
        """Wait for who asked the admin port in the last moment: it may not be read yet."""
        server: Any = self._admin.server
        for _ in range(QUIET_TICKS):
            await asyncio.sleep(TICK)
            waiting = any(connection.waits for connection in server.connections)
            if not waiting or self._clock.look() >= limit:
                break

    async def _until(self, end: float, name: str, step: Awaitable[None]) -> None:
        """Whatever becomes of a step of the application's, the next ones are taken."""
        try:
            async with timeout(max(end - self._clock.look(), 0.1)):
                await step
        except TimeoutError:
            log.error("%s did not end within GRACEFUL_TIMEOUT: leaving it", name)
        except Exception:
            log.exception("%s failed", name)

    async def _until_quiet(self, limit: float) -> None:
        """Wait for the requests in flight, and for keep-alive clients to send their last one."""
        quiet, seen = 0, -1
        while quiet < QUIET_TICKS and self._clock.look() < limit:
            opening = any(True for _ in self._acceptor.opening())  # accepted in the last moment
            if not (opening or self._server._connections):
                break
            busy = opening or any(
                # idle only when the last byte is written, though not yet taken by the kernel
                connection._request_in_progress
                or connection._messages
                or transport.get_write_buffer_size()
                for connection, transport in self._server._connections.items()
            )
            if busy or self._server.requests_count != seen:
                quiet, seen = 0, self._server.requests_count
            elif self._quick.is_set():
                break
            else:
                quiet += 1
            await asyncio.sleep(TICK)
