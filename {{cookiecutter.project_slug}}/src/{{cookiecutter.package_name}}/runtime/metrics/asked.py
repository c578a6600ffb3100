"""What a process has to be asked for: the user's own collectors and functions, and exemplars.

A thread asks once a second, so that a collector that waits holds up no loop, and leaves the
answers in a file of the process's slot, which any worker shows.
"""

import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from threading import Thread
from typing import Any

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    REGISTRY,
    Gauge,
)
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from . import slots, values

TICK = 1.0  # seconds
# a scrape shows what they tell of this process for every one of them
STOCK = (GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR)

log = logging.getLogger(__name__)

functions: dict[Gauge, Callable[[], float]] = {}  # that gauges take their values from
_thread: Thread | None = None
_failing: set[object] = set()
_written = ""


def _after_fork() -> None:
    global _thread, _written
    _thread, _written = None, ""


os.register_at_fork(after_in_child=_after_fork)


def collectors() -> list[Collector]:
    """Those of the user's and of libraries that are no metrics themselves."""
    found = list(REGISTRY._collector_to_names)
    return [c for c in found if c not in STOCK and not isinstance(c, MetricWrapperBase)]


def wanted() -> bool:
    """Whether there is anything to ask."""
    return bool(functions or collectors())


def start() -> None:
    """Ask once a second from now on, until this process ends."""
    global _thread
    if _thread is None:
        _thread = Thread(target=_run, name="asked", daemon=True)
        _thread.start()


def _run() -> None:
    # they are for the main thread, whose waiting they would not end from here
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True:
        with suppress(RuntimeError):  # changed while it was read
            ask()
        time.sleep(TICK)


def ask() -> None:
    """Ask now."""
    global _written
    for gauge, function in list(functions.items()):
        try:
            gauge.set(float(function()))
        except Exception:
            gauge._value.forget()
            _say(function)
        else:
            _failing.discard(function)
    families = [family for collector in collectors() for family in _families(collector)]
    exemplars = [
        [key.decode(), one.labels, one.value, one.timestamp]
        for key, one in values.exemplars.copy().items()
    ]
    text = json.dumps([families, exemplars]) if families or exemplars else ""
    if text != _written:
        _write(text)
        _written = text


def _families(collector: Collector) -> Iterator[list[Any]]:
    """A collector's answer, nothing where it has none."""
    try:
        answer = [
            [
                metric.name,
                values.storable(metric.documentation),
                metric.type,
                [_sample(metric.name, *sample[:4]) for sample in metric.samples],
            ]
            for metric in collector.collect()
        ]
    except Exception:
        _say(collector)
        return
    _failing.discard(collector)
    yield from answer


def _sample(metric: str, name: str, labels: dict[str, str], value: float, when: Any) -> list[Any]:
    if "worker" in labels:
        raise ValueError(f"{metric}: a label worker is added to each series here; rename yours")
    its = {label: values.storable(str(text)) for label, text in labels.items()}
    return [name, its, float(value), None if when is None else float(when)]


def _say(failing: object) -> None:
    """Once, until it works again."""
    if failing not in _failing:
        _failing.add(failing)
        log.exception("not in /metrics for now, as it failed: %r", failing)


def _write(text: str) -> None:
    try:
        path = slots.folder() / f"{slots.GAUGES}_{slots.slot()}{slots.ASKED}"
        fresh = path.with_suffix(f"{slots.ASKED}~")
        fresh.write_text(text)
        fresh.replace(path)
    except OSError as error:
        slots.lose(error)
