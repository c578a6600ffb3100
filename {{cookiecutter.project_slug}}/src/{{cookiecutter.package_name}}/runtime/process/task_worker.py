"""The compute worker: gunicorn's sync worker, which takes a connection when it is idle: a task."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from gunicorn.workers.sync import SyncWorker

from ..metrics import asked, values
from .scoreboard import Scoreboard, State
from .worker import ready_for_signals, show_state


class TaskWorker(SyncWorker):
    """Tells the arbiter what it is about to do."""

    row: int  # on the scoreboard; the arbiter sets both before the fork
    scoreboard: Scoreboard
    caller: socket.socket | None = None

    def notify(self) -> None:
        super().notify()
        values.heal()

    def init_signals(self) -> None:
        super().init_signals()
        ready_for_signals(self._descriptors)

    def _descriptors(self) -> Iterator[int]:
        listeners: Any = self.sockets
        sockets = [listener.sock for listener in listeners]
        return (s.fileno() for s in (*sockets, self.caller) if s is not None and s.fileno() >= 0)

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        self.caller = client
        super().handle(listener, client, addr)

    def load_wsgi(self) -> None:
        super().load_wsgi()
        build: Any = self.wsgi  # what gunicorn calls so, here Service.load()'s answer
        self.wsgi = build(self.recycle)

    def run(self) -> None:
        show_state(State.SERVING)
        self._tell(State.SERVING)
        if asked.wanted():  # else there is no thread here that the forks of a task would miss
            asked.start()
        super().run()
        if self.nr >= self.max_requests:
            self._tell(State.RECYCLE)

    def handle_exit(self, sig: int, frame: Any) -> None:
        super().handle_exit(sig, frame)
        self._tell(State.DRAINING)

    def recycle(self) -> None:
        """End after the task of now."""
        self.alive = False
        self._tell(State.RECYCLE)

    def _tell(self, state: State) -> None:
        self.scoreboard.set_state(self.row, state)
        with suppress(ProcessLookupError):
            os.kill(self.ppid, signal.SIGCHLD)
