"""One scrape, whichever worker answers it: the sum over all processes.

prometheus_client's own collector parses every key of every file at every scrape: 79 ms for 100
routes and 16 processes. Here a line of a key file is parsed once, and what stands before a number
in the text is made once, by prometheus_client itself: a scrape reads numbers, adds them up, and
writes them where they belong.
"""

import json
import math
import operator
import os
import re
import stat
import sys
import time
from array import array
from bisect import insort
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString

from . import kernel, slots, values

Encoder = Callable[[Collector], bytes]
Names = Collection[str]  # of samples; empty for all
Numbers = list[float | None]  # by row; None where no file has one
IMPORT = f"have it import {__package__.partition('.')[0]} before anything with metrics"
DAMAGED = "the rest is shown; nothing but the service may write to its folder, restart it"
# what we can speak of what an Accept header may ask for; others stand back
SPOKEN = {"", "0.0.4", "1.0.0"}
VERSION = re.compile(r";\s*version\s*=\s*([^;\s]*)")

SLICE, PAUSE = 0.001, 0.0001  # seconds of work, after which the loop gets its turn
AT_ONCE = 16  # of the same metric, whose lines prometheus_client makes in one go
BOUND = "\0bound\0"  # stands for the bound of every bucket, so that one is enough to be made
BEFORE_BOUND = b', "le": "'  # in a line of a bucket; a label's value has no bare quote
CORRUPT = 0  # the row of all lines that make no sense
DECODE = json.JSONDecoder().raw_decode  # json.loads looks for blanks around the value as well
COMBINE: dict[str, Callable[[float, float], float]] = {
    "": operator.add,
    "sum": operator.add,
    "min": min,
    "max": max,
    "all": max,  # of one
    "mostrecent": max,  # of those that are as recent
}


class _Child:
    """The numbers of a metric that have the same labels, in the order in which they are shown."""

    def __init__(self) -> None:
        self._buckets: list[tuple[float, int, str]] = []  # upper bound, row, the bound as written
        self._others: list[tuple[int, Sample]] = []
        self._rows: dict[str, int] = {}
        self._pieces: dict[str, list[tuple[str, str]]] = {}  # by format

    def row(self, name: str, labels: dict[str, str], bound: str | None, new: int) -> int:
        """The row of a sample, which is `new` if the sample is.

        Raises:
            ValueError: when the bound of its bucket is no number.
        """
        limit = float(bound or 0)
        row = self._rows.setdefault(bound or name, new)
        if row == new:
            if bound is None:
                self._others.append((row, Sample(name, labels, 0.0)))
            else:
                insort(self._buckets, (limit, row, bound))
            self._pieces.clear()
        return row

    def is_new(self, form: str) -> bool:
        """Whether `learn` is to be called before `lines`."""
        # not while its process is about to make the buckets of a histogram
        return form not in self._pieces and (not self._buckets or self._buckets[-1][0] == math.inf)

    def samples(self, name: str) -> list[Sample]:
        """One of each kind, as most of what buckets show is the same."""
        samples = [sample for _, sample in self._others]
        if self._buckets:
            labels = samples[0].labels
            bucket = Sample(f"{name}_bucket", {**labels, "le": BOUND}, 0.0)
            samples[:0] = [bucket, Sample(f"{name}_count", labels, 0.0)]
        return samples

    def learn(self, form: str, shown: Iterable[tuple[str, Sample]]) -> None:
        """What stands before each number, and the name of its sample.

        Args:
            shown: what `samples` gave, each with the line that shows it.
        """
        made = [(line.rpartition(" ")[0], sample.name) for line, sample in shown]
        if self._buckets:
            piece, name = made[0]
            made[:1] = [(piece.replace(BOUND, bound), name) for *_, bound in self._buckets]
        self._pieces[form] = made

    def lines(
        self, numbers: Numbers, form: str, names: Names, notes: dict[int, str]
    ) -> Iterator[str]:
        if form not in self._pieces:
            return
        found = [numbers[row] for _, row, _ in self._buckets]
        total = 0.0
        for place, value in enumerate(found):
            total += value or 0.0
            found[place] = total
        if self._buckets:
            found.append(total)
        found += [numbers[row] for row, _ in self._others]
        if found[-1] is None:
            return
        rows = [row for _, row, _ in self._buckets]
        rows += [CORRUPT] * bool(rows) + [row for row, _ in self._others]
        for (piece, name), value, row in zip(self._pieces[form], found, rows, strict=True):
            if value is not None and (not names or name in names):
                yield f"{piece} {floatToGoString(value)}{notes.get(row, '') if notes else ''}\n"


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
        self.recent: dict[int, int] = {}  # places of numbers of mode mostrecent, by row
        self.times: dict[int, int] = {}  # and of their times


class _One(Collector):
    """A registry of a single metric."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        yield self._metric


def _lines(encode: Encoder, metric: Metric) -> list[str]:
    lines = encode(_One(metric)).decode().split("\n")
    return [line for line in lines if line not in ("# EOF", "")]


def _shown(encode: Encoder, metric: Metric, names: Names) -> list[str]:
    if names:
        metric.samples = [sample for sample in metric.samples if sample.name in names]
    return [f"{line}\n" for line in _lines(encode, metric)] if metric.samples or not names else []


def _read_plain(path: Path, start: int = 0) -> bytes:
    """The bytes of a file from `start` on.

    Raises:
        OSError, ValueError: when it cannot be read, or is no file at all.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("is no plain file")
        file.seek(start)
        return file.read()


def _read_cells(keys: Path) -> bytes:
    try:
        return _read_plain(keys.with_suffix(slots.CELLS))
    except FileNotFoundError:
        return b""


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


def _encoder(accept: str) -> tuple[Encoder, str]:
    """What an Accept header asks for, of what there is, and its content type."""
    ranges = accept.split(",")
    versions = [VERSION.search(one) for one in ranges]
    known = [one for one, v in zip(ranges, versions, strict=True) if not v or v[1] in SPOKEN]
    return choose_encoder(",".join(known))


class Exposition:
    """Shows the files of all slots, and remembers what it has learnt of them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._files: dict[str, _File] = {}
        self._families: dict[str, _Family] = {}
        self._rows: dict[bytes, int] = {}  # by line
        # by what stands before and behind the bound in the lines of their buckets
        self._histograms: dict[tuple[bytes, bytes], _Child] = {}
        self._combine = [COMBINE[""]]  # by row
        self._recent: set[int] = set()  # rows of mode mostrecent
        self._asked: dict[int, tuple[tuple[int, int], list[Any]]] = {}  # by slot

    def scrape(self, accept: str = "", names: Names = ()) -> tuple[bytes, str]:
        """All metrics in the format that the Accept header asks for, and its content type.

        It reads every process's files: call it in a thread.

        Args:
            names: those of the samples to show; empty for all.
        """
        began = time.thread_time()
        encode, content_type = _encoder(accept)
        breath = _Breath()
        with self._lock:
            try:
                pids, numbers = self._read(breath)
            except OSError as error:
                slots.lose(error)
                pids, numbers = {}, [None] * len(self._combine)
            opened = content_type.startswith("application/openmetrics-text")
            answers = self._answers(pids)
            exemplars = self._exemplars(answers) if opened else {}
            lines = list(self._write(numbers, content_type, encode, names, exemplars, breath))
            for metric in self._collected(answers):
                try:
                    lines += _shown(encode, metric, names)
                except (ValueError, TypeError) as error:
                    slots.lose(f"{metric.name} cannot be shown: {error}", DAMAGED)
        for metric in kernel.collect(pids):
            lines += _shown(encode, metric, names)
        spent = Metric("metrics_scrape_seconds", "CPU time that this scrape took.", "gauge")
        spent.add_sample(spent.name, {}, time.thread_time() - began)
        lines += _shown(encode, spent, names)
        if opened:
            lines.append("# EOF\n")
        return "".join(lines).encode(), content_type

    def _answers(self, pids: dict[int, int]) -> dict[int, list[Any]]:
        """What processes have answered, by slot: families of collectors, and exemplars."""
        known, self._asked = self._asked, {}
        for slot in pids:
            path = slots.folder() / f"{slots.GAUGES}_{slot}{slots.ASKED}"
            try:
                status = path.stat()
                version = status.st_ino, status.st_mtime_ns
                if slot not in known or known[slot][0] != version:
                    families, exemplars = json.loads(_read_plain(path) or b"[[], []]")
                    known[slot] = version, [families, exemplars]
                self._asked[slot] = known[slot]
            except FileNotFoundError:
                continue  # most have none
            except (OSError, ValueError, TypeError) as error:
                slots.lose(f"{path}: {error}", DAMAGED)
        return {slot: answer for slot, (_, answer) in self._asked.items()}

    def _collected(self, answers: dict[int, list[Any]]) -> Iterable[Metric]:
        found: dict[str, Metric] = {}
        for slot, (families, _) in answers.items():
            for name, text, typ, samples in families:
                if name in self._families or name in kernel.NAMES:
                    slots.lose(f"a collector's {name} has the name of another metric", "rename it")
                    continue
                metric = found.setdefault(name, Metric(name, text, typ))
                for sample, labels, value, when in samples:
                    metric.add_sample(sample, {**labels, "worker": str(slot)}, value, when)
        return found.values()

    def _exemplars(self, answers: dict[int, list[Any]]) -> dict[int, str]:
        """The latest of each row, as it stands behind the number."""
        latest: dict[int, tuple[float, str]] = {}
        for _, exemplars in answers.values():
            for key, labels, value, when in exemplars:
                row = self._rows.get(key.encode(), CORRUPT)
                if row != CORRUPT and when > latest.get(row, (0.0, ""))[0]:
                    one = Metric("x", "", "counter")
                    one.add_sample("x_total", {}, 0.0, None, Exemplar(labels, value, when))
                    line = openmetrics(_One(one)).decode().splitlines()[-2]
                    latest[row] = when, line.removeprefix("x_total 0.0")
        return {row: text for row, (_, text) in latest.items()}

    def _read(self, breath: _Breath) -> tuple[dict[int, int], Numbers]:
        found = []
        for path in slots.folder().iterdir():
            if match := slots.FILE(path.name):
                found.append(match)
            elif path.suffix == slots.STOCK:
                slots.lose(f"a child process counts in {path} and not here", IMPORT)
                path.unlink(missing_ok=True)
        pids = slots.held({int(match[2]) for match in found})
        known, self._files = self._files, {}
        numbers: Numbers = [None] * len(self._combine)
        newest: dict[int, float] = {}
        combine = self._combine
        for match in found:
            name, kind, slot, suffix = match[0], match[1], int(match[2]), match[3]
            if suffix != slots.KEYS or (kind == slots.GAUGES and slot not in pids):
                continue
            path = slots.folder() / name
            try:
                file = self._learn(path, known.get(name), slot, breath)
                data = _read_cells(path) if file.rows else b""
            except FileNotFoundError:
                continue  # removed in this very moment
            except (OSError, ValueError) as error:
                slots.lose(f"{path}: {error}", DAMAGED)
                self._files |= {name: known[name]} if name in known else {}
                continue
            self._files[name] = file
            cells = array("d", data[: len(data) // 8 * 8])
            if len(cells) < len(file.rows) and kind == slots.COUNTS:
                slots.lose(f"{path.with_suffix(slots.CELLS)} has been cut or deleted", DAMAGED)
            numbers += [None] * (len(self._combine) - len(numbers))
            pairs: Iterable[tuple[int, float]] = zip(file.rows, cells, strict=False)
            if values.GONE in data:
                pairs = ((row, cell) for row, cell in pairs if not values.is_gone(cell))
            for row, value in pairs:
                before = numbers[row]
                numbers[row] = value if before is None else combine[row](before, value)
            for row, place in file.recent.items():
                when = file.times.get(row, len(cells))
                if max(place, when) < len(cells) and cells[when] > newest.get(row, 0.0):
                    numbers[row], newest[row] = cells[place], cells[when]
            breath.take()
        for name in known.keys() - self._files.keys():
            if name.startswith(slots.COUNTS):
                slots.lose(f"{slots.folder() / name} has been deleted", DAMAGED)
        return pids, numbers

    def _learn(self, path: Path, file: _File | None, slot: int, breath: _Breath) -> _File:
        """What the lines of a key file are.

        Raises:
            OSError, ValueError: when it cannot be read, or is no longer what it was.
        """
        status = path.stat()
        if file is not None and file.inode == status.st_ino and status.st_size < file.size:
            file.size = sys.maxsize  # for good: a line's place says nothing of its number's now
            raise ValueError("has been cut")
        if file is None or status.st_ino != file.inode:
            file = _File(status.st_ino)
        if status.st_size > file.size:
            whole, newline, _ = _read_plain(path, file.size).rpartition(b"\n")  # or half a line
            lines = whole.split(b"\n") if newline else []
            for start in range(0, len(lines), 500):
                some = lines[start : start + 500]
                rows = [
                    self._row(line, slot) if row is None else row
                    for line, row in zip(some, map(self._rows.get, some), strict=True)
                ]
                if CORRUPT in rows:
                    slots.lose(f"{path} has lines that make no sense", DAMAGED)
                if self._recent:
                    for place, row in enumerate(rows, len(file.rows)):
                        if row < 0:
                            file.times[-row] = place
                        elif row in self._recent:
                            file.recent[row] = place
                    rows = [CORRUPT if r < 0 or r in self._recent else r for r in rows]
                file.rows += rows
                breath.take()
            file.size += len(whole) + len(newline)
        return file

    def _row(self, line: bytes, slot: int) -> int:
        """The row of a line that was not met before; less than 0 for the time of that row."""
        # most lines are buckets, and those of one histogram differ in nothing but their bounds
        start, _, end = line.partition(BEFORE_BOUND)
        written, _, end = end.partition(b'"')
        try:
            if child := self._histograms.get((start, end)):
                self._rows[line] = row = self._add(child, "", {}, written.decode(), COMBINE[""])
                return row
            (typ, mode, name, sample, labels, text), _ = DECODE(line.decode())
            "".join((sample, *labels, *labels.values())).encode()  # all of them are text
            if name not in self._families:
                self._families[name] = _Family(Metric(name, values.storable(text), typ))
            combine = COMBINE["mostrecent" if mode == values.TIME else mode]
            if mode == "all":
                labels["worker"] = str(slot)
            bound = labels.pop("le", None) if typ == "histogram" else None
            float(bound or 0)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return CORRUPT
        children, key = self._families[name].children, frozenset(labels.items())
        child = children[key] = children.get(key) or _Child()
        row = self._add(child, sample, labels, bound, combine)
        if bound is not None:
            self._histograms[start, end] = child
        if mode in ("mostrecent", values.TIME):
            self._recent.add(row)
        if mode == values.TIME:
            row = -row
        if mode != "all":  # then the line is that of every slot
            self._rows[line] = row
        return row

    def _add(
        self,
        child: _Child,
        sample: str,
        labels: dict[str, str],
        bound: str | None,
        combine: Callable[[float, float], float],
    ) -> int:
        new = len(self._combine)
        row = child.row(sample, labels, bound, new)
        if row == new:
            self._combine.append(combine)
        return row

    def _write(
        self,
        numbers: Numbers,
        form: str,
        encode: Encoder,
        names: Names,
        notes: dict[int, str],
        breath: _Breath,
    ) -> Iterator[str]:
        for family in self._families.values():
            try:
                yield from list(self._family(family, numbers, form, encode, names, notes, breath))
            except (ValueError, TypeError, IndexError) as error:  # lines that do not fit together
                slots.lose(f"{family.metric.name} cannot be shown: {error}", DAMAGED)

    def _family(
        self,
        family: _Family,
        numbers: Numbers,
        form: str,
        encode: Encoder,
        names: Names,
        notes: dict[int, str],
        breath: _Breath,
    ) -> Iterator[str]:
        self._prepare(family, form, encode, breath)
        shown = False
        for child in family.children.values():
            for line in child.lines(numbers, form, names, notes):
                if not shown:
                    yield family.heads[form]
                    shown = True
                yield line
            breath.take()

    def _prepare(self, family: _Family, form: str, encode: Encoder, breath: _Breath) -> None:
        """Make all that stands before its numbers, as far as it is new."""
        if form not in family.heads:
            head = _lines(encode, family.metric)
            family.heads[form] = "".join(f"{line}\n" for line in head)
        new = [child for child in family.children.values() if child.is_new(form)]
        for start in range(0, len(new), AT_ONCE):
            one = Metric(family.metric.name, "", family.metric.type)
            some = [(child, child.samples(one.name)) for child in new[start : start + AT_ONCE]]
            one.samples = [sample for _, samples in some for sample in samples]
            lines = [line for line in _lines(encode, one) if line[0] != "#"]
            pairs = iter(list(zip(lines, one.samples, strict=True)))
            for child, samples in some:
                child.learn(form, islice(pairs, len(samples)))
            breath.take()


scrape = Exposition().scrape
