"""Standard output and standard error, which hold nobody up.

A pipe whose reader stopped blocks every process that writes into it, and with them the probes,
the requests and the end. Here a write waits for PATIENCE at most, and for nothing once the reader
is known to have stopped; what finds no room is dropped and counted.

Whether a write blocks is a property of the open file, which others may share, say a shell: so a
pipe is opened anew. Where that is not allowed, it is asked for room before each write.
"""

import io
import logging
import mmap
import os
import select
import socket
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from .metrics import catalogue

PATIENCE = 0.1  # seconds

log = logging.getLogger(__name__)

_said = mmap.mmap(-1, 1)  # shared with all forks: whether somebody has said that lines are lost


class Output(io.RawIOBase):
    """A standard stream, for whole lines; a write of PIPE_BUF bytes at most stays in one piece."""

    def __init__(self, fd: int, name: str) -> None:
        self.name = name
        self._stalled = False  # whether the last line was dropped
        self._dropped = 0  # lines, which nobody was told of yet
        self._since = 0.0
        self._why = ""
        self._torn = False  # whether the last line was written in part
        self._fd = fd
        self._write = self._open()
        self._room = select.poll()
        self._room.register(self._fd, select.POLLOUT)
        os.register_at_fork(after_in_child=self._after_fork)

    def _open(self) -> Callable[[memoryview], int]:
        try:
            kind = os.fstat(self._fd).st_mode
        except OSError:
            return lambda data: os.write(self._fd, data)  # closed: that is what it will say
        if stat.S_ISSOCK(kind):
            sock = socket.socket(fileno=os.dup(self._fd))
            return lambda data: sock.send(data, socket.MSG_DONTWAIT)
        if stat.S_ISFIFO(kind) or os.isatty(self._fd):
            with suppress(OSError):
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self._fd = os.open(f"/dev/fd/{self._fd}", flags)
        return lambda data: os.write(self._fd, data)

    def _after_fork(self) -> None:
        self._dropped = 0  # the parent's, which it tells itself

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        text = bytes(cast(bytes, data))
        if not self.send(text):
            self.drop(text.count(b"\n"))
        return len(text)

    def drop(self, lines: int) -> None:
        """Count lines that could not be written, and say so once."""
        self._dropped += lines
        catalogue.LOG_LINES_DROPPED.inc(lines)
        if self._stalled:
            return
        self._stalled, self._since = True, time.monotonic()
        if not _said[0] and self is not stderr:
            _said[0] = 1
            word = f"{self.name}: {self._why}: log lines are dropped until that is over\n"
            stderr.send(word.encode(), 0)

    def send(self, data: bytes, patience: float = PATIENCE) -> bool:
        """Whether `data` could be written; a part of it that was is a line of its own then.

        Args:
            patience: seconds to wait for room, unless lines were dropped for want of it just now.
        """
        end = time.monotonic() + (0 if self._stalled else patience)
        rest = memoryview(b"\n" + data if self._torn else data)
        size = len(rest)
        self._why = "nobody reads it"
        while rest:
            left = end - time.monotonic()
            if not self._room.poll(max(left, 0) * 1000):
                break
            try:
                rest = rest[self._write(rest[: select.PIPE_BUF]) :]
            except BlockingIOError:  # another process was quicker
                if left < 0:
                    break
            except OSError as error:
                self._why = error.strerror or repr(error)
                break
        self._torn = bool(rest) and (self._torn or len(rest) < size)
        if self._stalled and not rest:
            self._go_on()
        return not rest

    def _go_on(self) -> None:
        self._stalled, _said[0] = False, 0
        lines, seconds = self._dropped, time.monotonic() - self._since
        if lines:
            log.error("%s: %d log lines were dropped within %.1f s", self.name, lines, seconds)
        if not self._stalled:  # else nobody has read that either
            self._dropped -= lines


def _keep_closed() -> None:
    """Have no other file get the number of a standard stream that is closed."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # the lowest number that is free


_keep_closed()
stderr = Output(2, "standard error")
stdout = Output(1, "standard output")


def take_over() -> None:
    """Have all that Python writes to the standard streams go through here."""
    for name, stream in (("stdout", stdout), ("stderr", stderr)):
        old = getattr(sys, name)
        encoding = old.encoding if old is not None else "utf-8"
        if old is not None:
            old.flush()
        buffer = cast(io.BytesIO, stream)
        text = io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=True)
        setattr(sys, name, text)
