"""What prometheus_client does in one process only: done over all, or refused where it is defined.

The one place that changes classes of prometheus_client, and that uses what is private of it.
"""

import gc
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Enum,
    Gauge,
    Histogram,
    Info,
    Summary,
    metrics,
    multiprocess,
)
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from . import asked, exposition, kernel, values

RUNTIME = __package__.rpartition(".")[0]
SUFFIXES = {
    "counter": ("", "_total", "_created"),
    "summary": ("", "_sum", "_count", "_created"),
    "histogram": ("", "_bucket", "_sum", "_count", "_created"),
    "info": ("", "_info"),
}
EARLIER = "a module that was imported before this package"

# of every name of a sample: where its metric is defined, and whether that is in the runtime
_places: dict[str, tuple[str, bool]] = dict.fromkeys(
    kernel.NAMES, (f"{RUNTIME}.metrics.kernel", True)
)

_define, _set_info = MetricWrapperBase.__init__, Info.info
_make_enum, _set_state, _set_function = Enum.__init__, Enum.state, Gauge.set_function


def _place() -> tuple[str, bool]:
    """Where the metric that is being made is defined, and whether that is in the runtime."""
    frame = sys._getframe(1)
    while (name := frame.f_globals.get("__name__", "")) == __name__ or name.startswith(
        "prometheus_client"
    ):
        assert frame.f_back is not None
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}", name.startswith(f"{RUNTIME}.")


def _check(metric: MetricWrapperBase, name: str, labels: Sequence[str]) -> None:
    """Refuse what could not be told apart in a scrape.

    Raises:
        ValueError: when it is the name of a metric of the runtime's, or a label is one of ours.
    """
    place, ours = _place()
    kind = str(metric._type)
    for suffix in SUFFIXES.get(kind, ("",)):
        other, others = _places.get(name + suffix, (place, ours))
        if others != ours:
            mine, its = (place, other) if others else (other, place)
            raise ValueError(
                f"{name}: the metric of {mine} has the name of one of the runtime's, {its}; "
                "give it another name"
            )
    mode = getattr(metric, "_multiprocess_mode", "liveall" if kind == "stateset" else "")
    if mode in ("all", "liveall") and "worker" in labels:
        raise ValueError(
            f"{name}: the label worker is added to each series here, which has one of that name; "
            "rename it" + (", or give livesum, livemax or livemin" if kind == "gauge" else "")
        )
    for suffix in SUFFIXES.get(kind, ("",)):
        _places.setdefault(name + suffix, (place, ours))


def _defined(
    self: MetricWrapperBase,
    name: str,
    documentation: str,
    labelnames: Iterable[str] = (),
    namespace: str = "",
    subsystem: str = "",
    unit: str = "",
    registry: CollectorRegistry | None = REGISTRY,
    _labelvalues: Sequence[str] | None = None,
) -> None:
    labelnames = tuple(labelnames)
    if not _labelvalues:
        full = metrics._build_full_name(self._type, name, namespace, subsystem, unit)
        _check(self, full, labelnames)
    _define(
        self, name, documentation, labelnames, namespace, subsystem, unit, registry, _labelvalues
    )


def _show_info(self: Any) -> None:
    """The labels of all processes, each once."""
    names, labels = (*self._labelnames, *self._value), (*self._labelvalues, *self._value.values())
    shown = values.Value(
        self._type,
        self._name,
        f"{self._name}_info",
        names,
        [str(label) for label in labels],
        self._documentation,
        multiprocess_mode="livemax",
    )
    if before := vars(self).get("_shown"):
        before.forget()
    shown.set(1.0)
    self._shown = shown


def _info(self: Info, val: dict[str, str]) -> None:
    _set_info(self, val)
    _show_info(self)


def _show_enum(self: Any) -> None:
    """The state of each process, labelled `worker`."""
    if "_shown" not in vars(self):
        self._shown = [
            values.Value(
                self._type,
                self._name,
                self._name,
                (*self._labelnames, self._name),
                (*self._labelvalues, state),
                self._documentation,
                multiprocess_mode="liveall",
            )
            for state in self._states
        ]
    for number, value in enumerate(self._shown):
        value.set(float(number == self._value))


def _enum(self: Any, *its: Any, **more: Any) -> None:
    _make_enum(self, *its, **more)
    if self._is_observable():
        _show_enum(self)


def _state(self: Enum, state: str) -> None:
    _set_state(self, state)
    _show_enum(self)


def _function(self: Any, f: Callable[[], float]) -> None:
    _set_function(self, f)
    self._value.forget()  # until it is asked
    asked.functions[self] = f


def _drop(metric: Any, wanted: dict[str, str]) -> None:
    """Remove the series that have these labels, in all processes."""
    if not metric._labelnames:
        raise ValueError(f"No label names were set when constructing {metric}")
    if _places.get(metric._name, ("", False))[1]:
        raise ValueError(f"{metric._name} is the runtime's: its series stay")
    with metric._lock:
        for labels in list(metric._metrics):
            if wanted.items() <= dict(zip(metric._labelnames, labels, strict=True)).items():
                child = metric._metrics.pop(labels)
                asked.functions.pop(child, None)
    values.remove(metric._name, wanted)


def _remove(self: Any, *labelvalues: Any) -> None:
    if self._labelnames and len(labelvalues) != len(self._labelnames):
        raise ValueError(
            f"Incorrect label count (expected {len(self._labelnames)}, got {labelvalues})"
        )
    _drop(self, dict(zip(self._labelnames, map(str, labelvalues), strict=False)))


def _remove_by_labels(self: Any, labels: dict[str, str]) -> None:
    if not isinstance(labels, dict):
        raise TypeError("labels must be a dict of {label_name: label_value}")
    if unknown := [name for name in labels if name not in self._labelnames]:
        raise ValueError(f"Unknown label names: {unknown}; expected {self._labelnames}")
    if labels:
        _drop(self, {name: str(value) for name, value in labels.items()})


def _clear(self: Any) -> None:
    if self._labelnames:
        _drop(self, {})


def _collect(self: multiprocess.MultiProcessCollector) -> Iterable[Metric]:
    """For an endpoint of the user's: what the admin port shows."""
    return text_string_to_metric_families(exposition.scrape()[0].decode())


def _below(base: type) -> list[type]:
    """A class, and all that are made of it."""
    return [base, *chain.from_iterable(map(_below, base.__subclasses__()))]


def _adopt() -> None:
    """Take over the metrics that libraries made before there was anything of ours."""
    for metric in gc.get_referrers(*_below(MetricWrapperBase)):
        if not issubclass(type(metric), MetricWrapperBase):
            continue
        for suffix in SUFFIXES.get(str(metric._type), ("",)):
            _places.setdefault(metric._name + suffix, (EARLIER, False))
        if not metric._is_observable():
            continue
        match metric:
            case Info():
                _show_info(metric)
            case Enum():
                _show_enum(metric)
            case Gauge():
                before = metric._value.get()
                metric._metric_init()
                if "_child_samples" in vars(metric):
                    metric._value.forget()
                    asked.functions[metric] = partial(_value, metric)
                elif before:
                    metric.set(before)
            case Counter() | Histogram() | Summary():
                old = _numbers(metric)
                metric._metric_init()
                for value, before in zip(_numbers(metric), old, strict=True):
                    value.inc(before.get())


def _value(gauge: Gauge) -> float:
    (sample,) = gauge._child_samples()
    return float(sample.value)


def _numbers(metric: Any) -> list[Any]:
    its = vars(metric)
    single = [its[name] for name in ("_value", "_count", "_sum") if name in its]
    return [*single, *its.get("_buckets", ())]


_changed: Any = MetricWrapperBase  # assigning to what has a type is not what types are for
_changed.__init__ = _defined
_changed.remove, _changed.remove_by_labels, _changed.clear = _remove, _remove_by_labels, _clear
_changed = Info
_changed.info = _info
_changed = Enum
_changed.__init__, _changed.state = _enum, _state
_changed = Gauge
_changed.set_function = _function
_changed = multiprocess.MultiProcessCollector
_changed.collect = _collect
_adopt()
