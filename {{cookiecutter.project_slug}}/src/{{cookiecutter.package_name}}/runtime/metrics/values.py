"""Where prometheus_client's metrics keep their numbers: in mapped files of this process's slot.

Takes the place of its own multiprocess value, which maps memory that the file system need not
have: a full tmpfs then kills the process at the next count. Here a page is filled before it is
mapped, and what finds no room counts on in memory that no scrape sees.

Two files belong together. `.keys` has a line of JSON for each number, `.cells` has the numbers in
the same order. Both only grow, and a number is there before its line: so they can be read at any
time, and what was understood of them once stays right.
"""

import errno
import json
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import prometheus_client.values

from . import slots

PAGE = max(4 * 4096, mmap.ALLOCATIONGRANULARITY)
CELLS_PER_PAGE = PAGE // 8
MODES = ("all", "sum", "min", "max")

_files: dict[str, "_Files"] = {}
_values: dict[tuple[str, ...], "Value"] = {}  # by sample and values of its labels
_lock = Lock()


def install(folder: Path) -> None:
    """Count in `folder` from now on, also what metrics that were made before have counted so far.

    Raises:
        OSError: when the folder cannot be written.
    """
    slots.install(folder)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    for value in _values.values():
        before = value.get()
        value._bind()
        value.inc(before)


def _after_fork() -> None:
    global _lock
    _lock = Lock()
    _files.clear()
    for value in _values.values():
        value._cells = None


os.register_at_fork(after_in_child=_after_fork)


class _Files:
    """One pair of files of this process's slot."""

    def __init__(self, kind: str) -> None:
        path = slots.folder() / f"{kind}_{slots.slot()}"
        self._keys, self._cells = path.with_suffix(slots.KEYS), path.with_suffix(slots.CELLS)
        self._keys.touch()
        lines = self._keys.read_bytes().split(b"\n")
        if half := lines.pop():  # the last holder died while it wrote
            os.truncate(self._keys, self._keys.stat().st_size - len(half))
        self._places = {line: place for place, line in enumerate(lines)}
        self._pages: list[memoryview[float]] = []

    def cell(self, key: bytes) -> "tuple[memoryview[float], int]":
        """The page that has the number of this key, and its index there.

        Raises:
            OSError: when there is no room for it.
        """
        place = self._places.get(key, len(self._places))
        page, index = divmod(place, CELLS_PER_PAGE)
        while page >= len(self._pages):
            self._pages.append(self._map(len(self._pages) * PAGE))
        if place == len(self._places):
            _append(self._keys, key + b"\n")
            self._places[key] = place
        return self._pages[page], index

    def _map(self, start: int) -> "memoryview[float]":
        missing = start + PAGE - (self._cells.stat().st_size if self._cells.exists() else 0)
        if missing > 0:
            _append(self._cells, bytes(missing))
        fd = os.open(self._cells, os.O_RDWR | os.O_CLOEXEC)
        try:
            return memoryview(mmap.mmap(fd, PAGE, offset=start)).cast("d")
        finally:
            os.close(fd)


def _append(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        size = os.fstat(fd).st_size
        if os.write(fd, data) < len(data):
            os.ftruncate(fd, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(fd)


def _private() -> "tuple[memoryview[float], int]":
    """A cell that no scrape sees."""
    return memoryview(bytearray(8)).cast("d"), 0


def place(sample: str, *labels: str) -> "tuple[memoryview[float], int]":
    """Where this process keeps a number, for code that only one thread of it ever runs.

    That code needs no lock to add to it, which halves what it costs. Not to be kept over a fork.
    """
    value = _values[sample, *labels]
    return value._cells or value._bind(), value._index


class Value:
    """A number of a metric, as prometheus_client wants it.

    Gauges are those of living processes, whether their mode says `live` or not.
    """

    _multiprocess = True

    def __init__(
        self,
        typ: str,
        metric_name: str,
        name: str,
        labelnames: Sequence[str],
        labelvalues: Sequence[str],
        help_text: str,
        multiprocess_mode: str = "",
        **_: Any,
    ) -> None:
        mode = multiprocess_mode.removeprefix("live")
        if mode and mode not in MODES:
            raise ValueError(f"{name}: no mode {mode}; give livesum, livemin, livemax or liveall")
        self._kind = slots.GAUGES if typ == "gauge" else slots.COUNTS
        labels = dict(zip(labelnames, labelvalues, strict=True))
        self._key = json.dumps([typ, mode, metric_name, name, labels, help_text]).encode()
        self._cells: memoryview[float] | None = None
        self._index = 0
        self._bind()
        _values[name, *labelvalues] = self

    def _bind(self) -> "memoryview[float]":
        if not slots.installed():
            self._cells, self._index = _private()
            return self._cells
        with _lock:
            try:
                files = _files.get(self._kind) or _files.setdefault(self._kind, _Files(self._kind))
                self._cells, self._index = files.cell(self._key)
            except OSError as error:
                slots.lose(error)
                self._cells, self._index = _private()
            return self._cells

    def inc(self, amount: float) -> None:
        cells = self._cells or self._bind()
        with _lock:
            cells[self._index] += amount

    def set(self, value: float, timestamp: float | None = None) -> None:
        (self._cells or self._bind())[self._index] = value

    def get(self) -> float:
        return float((self._cells or self._bind())[self._index])

    def set_exemplar(self, exemplar: object) -> None:
        """Exemplars have no place in the files."""

    def get_exemplar(self) -> None:
        return None


# every metric looks this class up when it is made
prometheus_client.values.ValueClass = Value
