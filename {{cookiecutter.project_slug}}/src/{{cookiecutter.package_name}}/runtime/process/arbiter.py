"""The management process: gunicorn's arbiter, with supervision that loses nothing.

A worker is replaced before it stops, the number of workers follows the CPU given while running,
and why a worker ended is known. `serve` runs two pools in one process tree: the arbiter of the web
workers and, as its child, the arbiter of the compute workers, which outlives the web workers.
"""

import gc
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

from gunicorn import glogging, sock
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer
from gunicorn.workers.base import Worker
from prometheus_client import Counter, Gauge

from .. import preload
from ..clock import Clock
from ..metrics import slots, values
from ..metrics.catalogue import WORKER_INFO
from ..parts import Parts, brief
from ..settings import Settings
from . import limits
from .scoreboard import HEARTBEAT, Scoreboard, State

log = logging.getLogger(__name__)

BOOT_ATTEMPTS = 5  # boots that fail in a row, with no worker serving, until the pool gives up
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0  # seconds before trying again after a boot that failed
LONGEST_TURN = 1.5  # seconds of our loop, which waits for 1 s at most
KILL_AFTER = 2.0  # seconds that a worker gets beyond its time before SIGKILL
UNUSED_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU)


class Log(glogging.Logger):
    """gunicorn's own lines go where all others go."""

    def setup(self, cfg: Any) -> None:
        self.error_log = logging.getLogger("gunicorn")

    def exception(self, msg: object, *args: object, **kwargs: Any) -> None:
        """Such as why a worker does not boot."""
        error = sys.exception()
        self.error_log.error(msg, *args, exc_info=brief(error) if error else None, **kwargs)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What tells one pool from another; times are in seconds."""

    name: str
    options: dict[str, Any]  # gunicorn's
    load: Callable[[], Any]  # called in each worker: what gunicorn calls the WSGI application
    count: Callable[[Settings], limits.Count]
    timeout: float  # that a worker may go without a heartbeat
    budget: float  # from SIGTERM to a worker's end
    workers: Gauge
    exits: Counter


class Service(BaseApplication):
    """A pool as gunicorn wants it: its configuration and what its workers load."""

    def __init__(
        self, make_pool: Callable[[Any, Parts], Pool], settings: Settings, parts: Parts
    ) -> None:
        self.make_pool = make_pool
        self.settings = settings
        self.parts = parts
        super().__init__()

    def load_config(self) -> None:
        self.pool = self.make_pool(self.settings, self.parts)
        heartbeats = "/dev/shm" if os.access("/dev/shm", os.W_OK) else str(slots.folder())
        common = {
            "proc_name": self.pool.name,
            "logger_class": Log,
            "control_socket_disable": True,
            "worker_tmp_dir": heartbeats,
            "pre_fork": Launcher.pre_fork,
            "workers": self.pool.count(self.settings).number,
        }
        for name, value in {**common, **self.pool.options}.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        return self.pool.load()


@dataclass
class Life:
    """What the arbiter knows of a worker beyond what gunicorn keeps."""

    row: int
    generation: int
    heard: float  # when it last gave a sign of life; all times here are the arbiter's clock's
    sign: float = 0.0  # that sign
    served: bool = False
    leaving: str = ""  # why it was told to go
    overdue: bool = False  # was blocked, or did not go in time
    deadline: float = math.inf  # time of SIGKILL


class Launcher(Arbiter):
    """The arbiter of one pool."""

    SIGNALS: ClassVar = [signal.SIGHUP, signal.SIGQUIT, signal.SIGINT, signal.SIGTERM]
    app: Service

    def __init__(self, app: Service, companion: Service | None = None, parent: int = 0) -> None:
        """
        Args:
            companion: a second pool that this process supervises and that ends after its own.
            parent: the process to follow into its end, for a companion.
        """
        self.clock = Clock(LONGEST_TURN)
        self.scoreboard = Scoreboard()
        self.lives: dict[Worker, Life] = {}
        self.generation = 0
        self.boots_failed = 0
        self.next_boot = 0.0
        self.oom_kills = limits.oom_kills()
        self.companion = companion
        self.companion_pid = 0
        self.next_companion = 0.0
        self.parent = parent
        self.socket_lost = False
        # gunicorn's are the class's: a companion would find its parent's in them
        vars(self).update(WORKERS={}, LISTENERS=[])
        super().__init__(app)

    # --- start and end

    def start(self) -> None:
        self.manage_companion()  # before there are listeners that it would inherit
        super().start()
        role = "compute_arbiter" if self.app.pool.name == "compute" else "arbiter"
        WORKER_INFO.labels(slots.label(), role).set(1)
        gc.collect()
        gc.freeze()  # so that the collector does not touch, and thereby copy, what workers share

    def init_signals(self) -> None:
        super().init_signals()
        for number in UNUSED_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if self.parent:  # a terminal sends SIGINT to all; the parent says when
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())

    def stop(self, graceful: bool = True) -> None:
        self.scoreboard.shut_down()
        self.close_listeners()
        limit = self.clock.look() + self.app.pool.budget + KILL_AFTER
        for worker in list(self.WORKERS.values()):
            self.tell_to_go(worker, "shutdown", signal.SIGTERM if graceful else signal.SIGQUIT)
        while self.WORKERS and self.clock.look() < limit:
            if {signal.SIGINT, signal.SIGQUIT} & set(self.wait_for_signals(0.05)) and graceful:
                log.warning("asked again: shutting down quickly")
                graceful = False
                self.kill_workers(signal.SIGQUIT)
                limit = self.clock.now + KILL_AFTER
            self.reap_workers()
        self.kill_companion(signal.SIGTERM if graceful else signal.SIGQUIT)
        limit = max(limit, self.clock.now + KILL_AFTER)
        while self.companion_pid and self.clock.look() < limit:
            self.wait_for_signals(0.05)
            self.reap_workers()
        self.kill_workers(signal.SIGKILL)
        self.kill_companion(signal.SIGKILL)
        while self.WORKERS or self.companion_pid:
            self.reap_workers()
            time.sleep(0.01)
        for number in self.SIGNALS:  # one more would kill the interpreter while it cleans up
            signal.signal(number, signal.SIG_IGN)

    def close_listeners(self, *, unlink: bool = True) -> None:
        listeners: Any = self.LISTENERS
        sock.close_sockets(listeners, unlink)
        listeners.clear()

    # --- the number of workers

    def manage_workers(self) -> None:
        """Bring the pool nearer to what is wanted: spawn first, then let the surplus go.

        A worker that is to be replaced goes on serving until its successor serves, and there is
        never more than one successor too many, so that memory holds them.
        """
        if self.parent and os.getppid() != self.parent:
            raise StopIteration  # the loop's own word for a graceful end
        self.follow_limits()
        for life in self.lives.values():
            if not life.leaving and self.scoreboard.state(life.row) == State.DRAINING:
                life.leaving = "left"
                life.deadline = self.clock.now + self.app.pool.budget + KILL_AFTER
        staying = [w for w in self.WORKERS.values() if not self.lives[w].leaving]
        for worker in staying:
            life = self.lives[worker]
            if not life.served and self.scoreboard.state(life.row) >= State.SERVING:
                life.served = True
                self.boots_failed = 0
        stale = {w for w in staying if self.is_stale(self.lives[w])}
        missing = self.num_workers + bool(stale) - len(staying)
        if time.monotonic() >= self.next_boot and len(self.WORKERS) <= 2 * self.num_workers:
            for _ in range(min(missing, 1) if self.boots_failed else missing):
                self.spawn_worker()
        serving = [w for w in staying if self.lives[w].served]
        self.app.pool.workers.labels("live").set(len(serving))
        serving.sort(key=lambda w: (w not in stale, w.age))
        for worker in serving[: max(len(serving) - self.num_workers, 0)]:
            reason = "recycled" if worker in stale else "scaled_down"
            self.tell_to_go(worker, reason, signal.SIGTERM)
        self.watch_socket()
        values.heal()
        self.manage_companion()

    def follow_limits(self) -> None:
        count = self.app.pool.count(self.app.settings)
        if count.number != self.num_workers:
            log.info("%s: %d workers from now on: %s", self.app.pool.name, *count)
            self.num_workers = count.number
        self.app.pool.workers.labels("wanted").set(count.number)

    def is_stale(self, life: Life) -> bool:
        return life.generation < self.generation or self.scoreboard.state(life.row) == State.RECYCLE

    @staticmethod
    def pre_fork(arbiter: "Launcher", worker: Any) -> None:
        worker.scoreboard = arbiter.scoreboard
        worker.row = arbiter.scoreboard.lease()
        worker.timeout = HEARTBEAT  # stock workers look this often whether their arbiter lives
        arbiter.lives[worker] = Life(worker.row, arbiter.generation, arbiter.clock.now)

    def spawn_worker(self) -> Any:
        # a signal that came before the worker's own handlers are in place would be lost in ours
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            return super().spawn_worker()
        except (OSError, RuntimeError) as error:  # no process, or no file for its heartbeat
            self.boot_failed(str(error))
        finally:
            if os.getpid() == self.pid:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())

    def tell_to_go(self, worker: Worker, reason: str, number: signal.Signals) -> None:
        life = self.lives[worker]
        life.leaving = life.leaving or reason
        life.deadline = self.clock.now + self.app.pool.budget + KILL_AFTER
        os.kill(int(worker.pid), number)

    def watch_socket(self) -> None:
        """Listen anew where somebody has removed our unix socket: nobody finds the workers then."""
        listeners: Any = self.LISTENERS
        for place, old in enumerate(listeners):
            if not isinstance(old, sock.UnixSocket) or Path(old.cfg_addr).is_socket():
                continue
            path, logger = Path(old.cfg_addr), cast(Any, self.log)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                listeners[place] = sock.UnixSocket(str(path), self.cfg, logger)
            except OSError as error:
                if not self.socket_lost:
                    log.error("%s was removed, and cannot be made anew: %s", path, error)
                self.socket_lost = True
                self.app.pool.workers.labels("live").set(0)  # as nobody can reach them
                return
            old.sock.close()  # the workers have it until they go
            self.socket_lost = False
            self.generation += 1
            log.error("%s was removed: made anew, with new workers", path)

    # --- reload

    def handle_hup(self) -> None:
        """Replace every worker by one with the code and settings of now, one after the other.

        Workers import the application themselves, so new code is theirs without a trace in here;
        where it does not boot, the old workers go on.
        """
        try:
            self.app.parts.check_syntax()
            self.app.parts.forget(keep=preload.loaded.modules)
            if preload.changed():
                log.warning("the code of preload() has changed: a restart renews what it loaded")
            self.app.settings = self.app.parts.load_settings().from_env()
            self.app.reload()
            self.setup(self.app)
        except Exception as error:
            log.error("cannot reload, the old version goes on", exc_info=brief(error))
            return
        log.info("%s: reloading", self.app.pool.name)
        self.generation += 1
        self.boots_failed, self.next_boot = 0, 0.0
        self.kill_companion(signal.SIGHUP)

    # --- workers that fail

    def murder_workers(self) -> None:
        now = self.clock.look()
        for worker in self.WORKERS.values():
            life = self.lives[worker]
            if (sign := worker.tmp.last_update()) != life.sign:
                life.sign, life.heard = sign, now
            silent = now - life.heard
            if now > life.deadline:
                log.error("worker %s did not end in time: killing it", worker.pid)
                life.overdue, life.deadline = True, now + KILL_AFTER
                os.kill(int(worker.pid), signal.SIGKILL)
            elif silent > self.app.pool.timeout and not life.overdue:
                log.error("worker %s is blocked for %.0f s: here is where", worker.pid, silent)
                life.overdue, life.deadline = True, now + KILL_AFTER
                os.kill(int(worker.pid), signal.SIGABRT)

    def reap_workers(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.companion_pid:
                self.companion_pid = 0
                log.info("the arbiter of the other pool ended: %s", _how(status)[1])
            elif pid in self.WORKERS:  # else an orphan, handed to us as process 1
                self.bury(self.WORKERS.pop(pid), status)

    def bury(self, worker: Worker, status: int) -> None:
        life = self.lives.pop(worker)
        state = self.scoreboard.state(life.row)
        self.scoreboard.set_state(life.row, State.FREE)
        worker.tmp.close()
        reason, detail = self.why(life, state, status)
        self.app.pool.exits.labels(reason, detail).inc()
        expected = reason in ("recycled", "scaled_down", "shutdown")
        log.log(
            logging.INFO if expected else logging.ERROR,
            "%s worker %s ended: %s %s",
            self.app.pool.name,
            worker.pid,
            reason,
            detail,
        )
        if state < State.SERVING and not life.leaving:
            self.boot_failed(f"{reason} {detail}")

    def why(self, life: Life, state: int, status: int) -> tuple[str, str]:
        how, detail = _how(status)
        if life.overdue or state == State.OVERDUE:
            return "timeout", detail
        if detail == "SIGKILL":
            seen, self.oom_kills = self.oom_kills, limits.oom_kills()
            if self.oom_kills > seen:
                return "out_of_memory", detail
        if life.leaving and detail in ("0", "SIGTERM"):
            return life.leaving, ""
        if detail == "0":  # in good order, but not by our word
            return "recycled" if state == State.RECYCLE else "left", ""
        return how, detail

    def boot_failed(self, why: str) -> None:
        self.boots_failed += 1
        staying = [life for life in self.lives.values() if life.served and not life.leaving]
        pause = min(FIRST_PAUSE * 2**self.boots_failed, LONGEST_PAUSE)
        if len(staying) >= self.num_workers:  # it was to replace one that goes on
            pause = LONGEST_PAUSE
        self.next_boot = time.monotonic() + pause
        log.error(
            "%s: a worker did not boot (%s), %d in a row; trying again in %.1f s",
            self.app.pool.name,
            why,
            self.boots_failed,
            pause,
        )
        serving = any(life.served for life in self.lives.values())
        if self.boots_failed >= BOOT_ATTEMPTS and not serving:
            raise HaltServer(
                f"no {self.app.pool.name} worker boots ({why}); what it said stands above",
                self.WORKER_BOOT_ERROR,
            )

    # --- the other pool

    def manage_companion(self) -> None:
        if self.companion is None or self.companion_pid or time.monotonic() < self.next_companion:
            return
        self.next_companion = time.monotonic() + 1.0
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        parent = os.getpid()
        self.companion_pid = os.fork()
        if self.companion_pid == 0:
            self.close_listeners(unlink=False)
            Launcher(self.companion, parent=parent).run()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())

    def kill_companion(self, number: signal.Signals) -> None:
        if self.companion_pid:
            os.kill(self.companion_pid, number)


def _how(status: int) -> tuple[str, str]:
    code = os.waitstatus_to_exitcode(status)
    return ("crashed", str(code)) if code >= 0 else ("killed", signal.Signals(-code).name)
