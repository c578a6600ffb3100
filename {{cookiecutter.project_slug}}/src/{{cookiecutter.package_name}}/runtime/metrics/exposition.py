"""One scrape, whichever worker answers it: the sum over all processes.

prometheus_client's own collector parses every key of every file at every scrape: 79 ms for 100
routes and 16 processes. Here a line of a key file is parsed once, and what stands before a number
in the text is made once, by prometheus_client itself: a scrape reads numbers, adds them up, and
writes them where they belong.
"""

import json
import math
import operator
import time
from array import array
from bisect import insort
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from . import kernel, slots

Encoder = Callable[[Collector], bytes]
Numbers = list[float | None]  # by row; None where no file has one

SLICE, PAUSE = 0.001, 0.0001  # seconds of work, after which the loop gets its turn
BOUND = "\0bound\0"  # stands for the bound of every bucket, so that one is enough to be made
CORRUPT = 0  # the row of all lines that make no sense
DECODE = json.JSONDecoder().raw_decode  # json.loads looks for blanks around the value as well
COMBINE: dict[str, Callable[[float, float], float]] = {
    "": operator.add,
    "sum": operator.add,
    "min": min,
    "max": max,
    "all": max,  # of one
}


class _Child:
    """The numbers of a metric that have the same labels, in the order in which they are shown."""

    def __init__(self) -> None:
        self._buckets: list[tuple[float, int, str]] = []  # upper bound, row, the bound as written
        self._others: list[tuple[int, Sample]] = []
        self._rows: dict[str, int] = {}
        self._pieces: dict[str, list[str]] = {}  # what stands before the numbers, by format

    def row(self, name: str, labels: dict[str, str], bound: str | None, new: int) -> int:
        """The row of a sample, which is `new` if the sample is."""
        row = self._rows.setdefault(bound or name, new)
        if row == new:
            if bound is None:
                self._others.append((row, Sample(name, labels, 0.0)))
            else:
                insort(self._buckets, (float(bound), row, bound))
            self._pieces.clear()
        return row

    def lines(self, metric: Metric, numbers: Numbers, form: str, encode: Encoder) -> Iterator[str]:
        if self._buckets and self._buckets[-1][0] != math.inf:
            return  # a histogram that its process is about to make
        values = [numbers[row] for _, row, _ in self._buckets]
        total = 0.0
        for place, value in enumerate(values):
            total += value or 0.0
            values[place] = total
        if self._buckets:
            values.append(total)
        values += [numbers[row] for row, _ in self._others]
        if values[-1] is None:
            return
        for piece, value in zip(self._made(metric, form, encode), values, strict=True):
            yield f"{piece} {floatToGoString(value)}\n"

    def _made(self, metric: Metric, form: str, encode: Encoder) -> list[str]:
        if form not in self._pieces:
            samples = [sample for _, sample in self._others]
            if self._buckets:
                labels = samples[0].labels
                bucket = Sample(f"{metric.name}_bucket", {**labels, "le": BOUND}, 0.0)
                samples[:0] = [bucket, Sample(f"{metric.name}_count", labels, 0.0)]
            one = Metric(metric.name, "", metric.type)
            one.samples = samples
            lines = [line for line in _lines(encode, one) if line[0] != "#"]
            pieces = [line.rpartition(" ")[0] for line in lines]
            if self._buckets:
                pieces[:1] = [pieces[0].replace(BOUND, bound) for *_, bound in self._buckets]
            self._pieces[form] = pieces
        return self._pieces[form]


class _Family:
    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.children: dict[frozenset[tuple[str, str]], _Child] = {}
        self.heads: dict[str, str] = {}  # by format


class _File:
    """The rows of the lines of a key file, as far as it is known."""

    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.size = 0
        self.rows: list[int] = []


class _One(Collector):
    """A registry of a single metric."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        yield self._metric


def _lines(encode: Encoder, metric: Metric) -> list[str]:
    lines = encode(_One(metric)).decode().split("\n")
    return [line for line in lines if line not in ("# EOF", "")]


class _Breath:
    """Lets go of the interpreter so often that an event loop beside it does not notice.

    Left to itself, a thread lets go only when another has waited for 5 ms.
    """

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def take(self) -> None:
        if time.perf_counter() - self._began > SLICE:
            time.sleep(PAUSE)
            self._began = time.perf_counter()


class Exposition:
    """Shows the files of all slots, and remembers what it has learnt of them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._files: dict[str, _File] = {}
        self._families: dict[str, _Family] = {}
        self._rows: dict[bytes, int] = {}  # by line
        self._combine = [COMBINE[""]]  # by row

    def scrape(self, accept: str) -> tuple[bytes, str]:
        """All metrics in the format that the Accept header asks for, and its content type.

        It reads every process's files: call it in a thread.
        """
        began = time.thread_time()
        encode, content_type = choose_encoder(accept)
        breath = _Breath()
        with self._lock:
            try:
                pids, numbers = self._read(breath)
            except OSError as error:
                slots.lose(error)
                pids, numbers = {}, [None] * len(self._combine)
            lines = list(self._write(numbers, content_type, encode, breath))
        for metric in kernel.collect(pids):
            lines += [f"{line}\n" for line in _lines(encode, metric)]
        spent = Metric("metrics_scrape_seconds", "CPU time that this scrape took.", "gauge")
        spent.add_sample(spent.name, {}, time.thread_time() - began)
        lines += [f"{line}\n" for line in _lines(encode, spent)]
        if content_type.startswith("application/openmetrics-text"):
            lines.append("# EOF\n")
        return "".join(lines).encode(), content_type

    def _read(self, breath: _Breath) -> tuple[dict[int, int], Numbers]:
        found = [match for path in slots.folder().iterdir() if (match := slots.FILE(path.name))]
        pids = slots.held({int(match[2]) for match in found})
        known, self._files = self._files, {}
        numbers: Numbers = [None] * len(self._combine)
        for match in found:
            name, kind, slot, suffix = match[0], match[1], int(match[2]), match[3]
            if suffix != slots.KEYS or (kind == slots.GAUGES and slot not in pids):
                continue
            path = slots.folder() / name
            try:
                file = self._learn(path, known.get(name), slot, breath)
                data = path.with_suffix(slots.CELLS).read_bytes()
            except FileNotFoundError:
                continue  # made, or removed, in this very moment
            self._files[name] = file
            cells = array("d", data[: len(data) // 8 * 8])
            numbers += [None] * (len(self._combine) - len(numbers))
            for row, value in zip(file.rows, cells, strict=False):
                before = numbers[row]
                numbers[row] = value if before is None else self._combine[row](before, value)
            breath.take()
        return pids, numbers

    def _learn(self, path: Path, file: _File | None, slot: int, breath: _Breath) -> _File:
        status = path.stat()
        if file is None or status.st_ino != file.inode or status.st_size < file.size:
            file = _File(status.st_ino)
        if status.st_size > file.size:
            with path.open("rb") as keys:
                keys.seek(file.size)
                whole, newline, _ = keys.read().rpartition(b"\n")  # the last line may be half there
            lines = whole.split(b"\n") if newline else []
            for start in range(0, len(lines), 500):
                some = lines[start : start + 500]
                rows = map(self._rows.get, some)
                file.rows += [
                    self._row(line, slot) if row is None else row
                    for line, row in zip(some, rows, strict=True)
                ]
                breath.take()
            file.size += len(whole) + len(newline)
        return file

    def _row(self, line: bytes, slot: int) -> int:
        """The row of a line that was not met before."""
        try:
            (typ, mode, name, sample, labels, text), _ = DECODE(line.decode())
            "".join((sample, *labels, *labels.values()))  # all of them are text
            if name not in self._families:
                self._families[name] = _Family(Metric(name, text, typ))
            combine = COMBINE[mode]
            if mode == "all":
                labels["worker"] = str(slot)
            bound = labels.pop("le", None) if typ == "histogram" else None
            float(bound or 0)
        except (ValueError, TypeError, KeyError, AttributeError):
            return CORRUPT
        children = self._families[name].children
        child = children.setdefault(frozenset(labels.items()), _Child())
        new = len(self._combine)
        row = child.row(sample, labels, bound, new)
        if row == new:
            self._combine.append(combine)
        if mode != "all":  # then the line is that of every slot
            self._rows[line] = row
        return row

    def _write(
        self, numbers: Numbers, form: str, encode: Encoder, breath: _Breath
    ) -> Iterator[str]:
        for family in self._families.values():
            if form not in family.heads:
                head = _lines(encode, family.metric)
                family.heads[form] = "".join(f"{line}\n" for line in head)
            shown = False
            for child in family.children.values():
                for line in child.lines(family.metric, numbers, form, encode):
                    if not shown:
                        yield family.heads[form]
                        shown = True
                    yield line
                breath.take()


scrape = Exposition().scrape
