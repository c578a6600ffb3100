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
import logging
import mmap
import os
import struct
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import prometheus_client.values
from prometheus_client.samples import Exemplar

from . import slots

CALM = 5  # calls of heal: so late a scrape may find out what is well again
PAGE = max(4 * 4096, mmap.ALLOCATIONGRANULARITY)
CELLS_PER_PAGE = PAGE // 8
PARENT = "METRICS_FOLDER"  # in the environment of children: where their parent counts
TIME = "time"  # the mode of the number that says when one of mode mostrecent was set
GONE = struct.pack("Q", 0x7FF8_676F_6E65_0000)  # of a series that was removed: a NaN of our own
(NOTHING,) = struct.unpack("d", GONE)

log = logging.getLogger(__name__)

_files: dict[str, "_Files"] = {}
_values: WeakValueDictionary[int, "Value"] = WeakValueDictionary()  # all, the oldest first
_ages = count()
_by_sample: WeakValueDictionary[tuple[str, ...], "Value"] = WeakValueDictionary()
_aside: WeakSet["Value"] = WeakSet()  # those that count where no scrape sees it
_calm = 0
_lock = Lock()
exemplars: dict[bytes, Exemplar] = {}  # the last of each number that this process has, by key


def install(folder: Path) -> None:
    """Count in `folder` from now on, also what metrics that were made before have counted so far.

    Raises:
        OSError: when the folder cannot be written.
    """
    slots.install(folder)
    # libraries, and children that know nothing of ours, look at the first
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = os.environ[PARENT] = str(folder)
    _files.clear()
    for value in list(_values.values()):
        value._move()


def _after_fork() -> None:
    global _lock
    _lock = Lock()
    _files.clear()
    exemplars.clear()
    _aside.clear()
    for value in list(_values.values()):
        value._cells = None


os.register_at_fork(after_in_child=_after_fork)


def storable(text: str) -> str:
    """The text with U+FFFD for what no UTF-8 can say, as of a header that was no UTF-8."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def is_gone(value: float) -> bool:
    return value != value and struct.pack("d", value) == GONE


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
        self._inherited = set(lines)
        self._pages: list[memoryview[float]] = []
        while len(self._pages) * CELLS_PER_PAGE < len(lines):
            self._pages.append(self._map(len(self._pages) * PAGE))

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

    def inherits(self, key: bytes) -> bool:
        """Whether its number is that of the slot's last holder still: true once."""
        inherited = key in self._inherited
        self._inherited.discard(key)
        return inherited

    def removed(self) -> bool:
        """Whether somebody has removed a file of the pair, or replaced it."""
        try:
            there = self._keys.stat().st_ino, self._cells.stat().st_ino
        except FileNotFoundError:
            return bool(self._pages)
        return bool(self._pages) and self._inodes != there

    def restore(self) -> None:
        """Make the files anew, with all that was in them: the numbers are in memory still.

        Raises:
            OSError: when there is no room for them.
        """
        for path in (self._keys, self._cells):
            path.unlink(missing_ok=True)
        _append(self._cells, b"".join(map(bytes, self._pages)))
        _append(self._keys, b"".join(line + b"\n" for line in self._places))
        self._pages = [self._map(place * PAGE) for place in range(len(self._pages))]

    def _map(self, start: int) -> "memoryview[float]":
        missing = start + PAGE - (self._cells.stat().st_size if self._cells.exists() else 0)
        if missing > 0:
            _append(self._cells, bytes(missing))
        fd = os.open(self._cells, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._inodes = self._keys.stat().st_ino, os.fstat(fd).st_ino
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


class Place:
    """Where this process keeps a number: `place.cells[place.index]`."""

    __slots__ = ("cells", "index")
    cells: "memoryview[float]"
    index: int


def place(sample: str, *labels: str) -> Place:
    """The place of a number, for code that only the thread of `heal` ever runs.

    That code needs no lock to add to it, which halves what it costs. Not to be kept over a fork.
    """
    return _by_sample[sample, *labels]._at()


def heal() -> None:
    """Count where a scrape sees it again, as far as we did not: call it every second.

    What found no room, or no file descriptor, was kept aside; what was in files that somebody has
    removed is in memory still.
    """
    global _calm
    if not slots.installed():
        return
    restored = []
    try:
        for kind, files in _files.items():
            if files.removed():
                slots.restore()
                files.restore()
                restored.append(kind)
    except OSError as error:
        slots.lose(error)
    for value in list(_values.values()) if restored else ():
        if value._kind in restored and value not in _aside:
            value._start(_files[value._kind], again=True)
    aside = list(_aside)
    for value in aside:
        value._move()
        if value in _aside:
            return  # still no room
    if restored:
        log.error("somebody has removed files of metrics (%s): made anew", ", ".join(restored))
    if aside or restored:
        _calm = CALM
    if _calm:
        _calm -= 1
        slots.recover(f"numbers kept aside and counted now: {len(aside)}")


class Value:
    """A number of a metric, as prometheus_client wants it.

    What it shows is this process's own on top of what earlier holders of the slot left.
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
        self._mode = multiprocess_mode.removeprefix("live")
        if multiprocess_mode.startswith("live"):
            self._kind = slots.GAUGES
        else:
            self._kind = slots.LAST if self._mode == "all" else slots.COUNTS
        labels = dict(zip(labelnames, map(storable, labelvalues), strict=True))
        self._line = [typ, self._mode, metric_name, name, labels, storable(help_text)]
        self._key = json.dumps(self._line).encode()
        self._cells: memoryview[float] | None = None
        self._index = 0
        self._place: Place | None = None
        self._bind()
        _values[next(_ages)] = self
        _by_sample[name, *labelvalues] = self

    def _bind(self) -> "memoryview[float]":
        with _lock:
            try:
                if not slots.installed():
                    raise LookupError
                files = _files.get(self._kind) or _files.setdefault(self._kind, _Files(self._kind))
                self._start(files)
                _aside.discard(self)
                lost = None
            except LookupError:
                self._start(None)
                lost = None
            except OSError as error:
                self._start(None)
                _aside.add(self)
                lost = error
        if lost is not None:  # without the lock, as a log line may be counted
            slots.lose(lost)
        assert self._cells is not None
        return self._cells

    def _at(self) -> Place:
        if self._place is None:
            self._place = Place()
        self._place.cells, self._place.index = self._cells or self._bind(), self._index
        return self._place

    def _start(self, files: _Files | None, *, again: bool = False) -> None:
        """Find the cell, and note what is in it before this process counts in it.

        Args:
            again: whether it has counted in it already.
        """
        cells, index = _private() if files is None else files.cell(self._key)
        inherits = files is not None and files.inherits(self._key)
        if not again:
            if is_gone(cells[index]):
                cells[index], inherits = 0.0, False
            self._inherited = cells[index] if inherits else None
        self._cells, self._index = cells, index
        if self._place is not None:
            self._place.cells, self._place.index = cells, index

    def _move(self) -> None:
        """Go on in a cell of the folder that has been installed."""
        gone = self._cells is not None and is_gone(self._cells[self._index])
        before = self.get()
        self._bind()
        if gone:
            self.forget()
        else:
            self.inc(before)

    def inc(self, amount: float) -> None:
        cells = self._cells or self._bind()
        with _lock:
            value = cells[self._index] + amount
            if value != value and is_gone(cells[self._index]):
                value = amount
            cells[self._index] = value

    def set(self, value: float, timestamp: float | None = None) -> None:
        cells = self._cells or self._bind()
        cells[self._index] = value + (self._inherited or 0.0)

    def get(self) -> float:
        """This process's own number."""
        value = (self._cells or self._bind())[self._index]
        return 0.0 if is_gone(value) else value - (self._inherited or 0.0)

    def forget(self) -> None:
        """Show nothing until there is a number again."""
        cells = self._cells or self._bind()
        cells[self._index], self._inherited = NOTHING, None

    def set_exemplar(self, exemplar: Exemplar) -> None:
        exemplars[self._key] = exemplar

    def get_exemplar(self) -> Exemplar | None:
        return exemplars.get(self._key)


class _Extreme(Value):
    """A gauge that is the least or the largest of what processes had, the dead ones included."""

    def _start(self, files: _Files | None, *, again: bool = False) -> None:
        super()._start(files, again=again)
        if not again:
            self._own = 0.0

    def inc(self, amount: float) -> None:
        self.set(self.get() + amount)

    def set(self, value: float, timestamp: float | None = None) -> None:
        cells = self._cells or self._bind()
        self._own = value
        pick: Callable[[float, float], float] = min if self._mode == "min" else max
        cells[self._index] = value if self._inherited is None else pick(value, self._inherited)

    def get(self) -> float:
        if self._cells is None:
            self._bind()
        return self._own


class _Recent(Value):
    """A gauge that is what was set last, in whichever process; not shown until it is set."""

    def _start(self, files: _Files | None, *, again: bool = False) -> None:
        super()._start(files, again=again)
        self._inherited = None
        key = json.dumps([self._line[0], TIME, *self._line[2:]]).encode()
        self._times, self._time_index = _private() if files is None else files.cell(key)

    def _move(self) -> None:
        before, when = self.get(), self._times[self._time_index]
        self._bind()
        if when:
            self.set(before, when)

    def set(self, value: float, timestamp: float | None = None) -> None:
        super().set(value)
        self._times[self._time_index] = timestamp or 0.0  # after it, so that it is never too new


KINDS = {"min": _Extreme, "max": _Extreme, "mostrecent": _Recent, "livemostrecent": _Recent}


def _value(*its: Any, **more: Any) -> Value:
    return KINDS.get(more.get("multiprocess_mode", ""), Value)(*its, **more)


def remove(metric: str, labels: dict[str, str]) -> None:
    """Show those series of a metric no more that have these labels, whichever process counts them.

    One that is counted again begins at 0.

    Raises:
        OSError: when the files cannot be read.
    """
    wanted = {name: storable(value) for name, value in labels.items()}.items()
    for keys in slots.folder().glob(f"*{slots.KEYS}"):
        lines = keys.read_bytes().split(b"\n")[:-1]
        for place, line in enumerate(lines):
            # a line is that of the metric only if its name is in it, and few have it
            if f'"{metric}"'.encode() in line:
                _, _, name, _, its, _ = json.loads(line)
                if name == metric and wanted <= its.items():
                    with keys.with_suffix(slots.CELLS).open("r+b") as cells:
                        cells.seek(8 * place)
                        cells.write(GONE)


# every metric looks this class up when it is made
prometheus_client.values.ValueClass = _value

if PARENT in os.environ:
    try:
        slots.join(Path(os.environ[PARENT]))
    except OSError as error:
        slots.lose(error)
