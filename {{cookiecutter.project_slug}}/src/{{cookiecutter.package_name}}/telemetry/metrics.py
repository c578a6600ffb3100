"""Every metric of the service, defined once, and the one place that records a request.

Import it after slots.install(): a metric made before counts in this process alone.
"""

from bisect import bisect_left
from functools import cache
from time import perf_counter

from aiohttp import hdrs, web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.web_request import BaseRequest
from aiohttp.web_urldispatcher import AbstractRoute, UrlMappingMatchInfo
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.utils import floatToGoString

from . import logs, values

REQUESTS = Counter("http_requests", "Requests answered.", ["method", "route", "status"])
REQUEST_SECONDS = Histogram(
    "http_request_duration_seconds",
    "Time from the last header of a request to the end of its response.",
    ["method", "route"],
)
IN_PROGRESS = Gauge(
    "http_requests_in_progress", "Requests being handled.", multiprocess_mode="livesum"
)
LAME_DUCK = Gauge(
    "lame_duck",
    "1 while the service still serves but is about to end.",
    multiprocess_mode="livemax",
)
INFO = Gauge(
    "service_info",
    "1, labelled with what runs.",
    ["service", "version"],
    multiprocess_mode="livemax",
)

WORKERS = Gauge(
    "workers", "Web workers wanted, and serving.", ["state"], multiprocess_mode="livesum"
)
WORKER_BOOTS = Counter("worker_boots", "Web workers that came to serve.")
WORKER_EXITS = Counter(
    "worker_exits",
    "Web workers that ended, by reason; detail is the signal or the exit code.",
    ["reason", "detail"],
)

WORKER_INFO = Gauge(
    "worker_info",
    "1, labelled with a slot and what the process in it does.",
    ["worker", "role"],
    multiprocess_mode="livemax",
)
CONNECTIONS = Gauge(
    "worker_connections", "Open connections.", ["worker"], multiprocess_mode="livemax"
)
LOOP_LAG = Gauge(
    "event_loop_lag_seconds",
    "The longest that the event loop was late within the last half a minute to minute.",
    ["worker"],
    multiprocess_mode="livemax",
)
LOOP_SEEN = Gauge(
    "event_loop_last_turn_timestamp_seconds",
    "When the event loop last came round, as Unix time: long ago while it is blocked.",
    ["worker"],
    multiprocess_mode="livemax",
)
LOOP_BUSY = Counter(
    "event_loop_busy_seconds", "Time that the event loop was at work or blocked.", ["worker"]
)
GC_RUNS = Counter(
    "worker_gc_collections", "Runs of the garbage collector.", ["worker", "generation"]
)

COMPUTE_TASKS = Counter("compute_tasks", "Tasks run, by how they ended.", ["task", "outcome"])
COMPUTE_TASK_SECONDS = Histogram(
    "compute_task_seconds", "Time that a compute worker spent on a task.", ["task"]
)
COMPUTE_QUEUE_SECONDS = Histogram(
    "compute_queue_seconds", "Time that a task waited for a free compute worker."
)
COMPUTE_REJECTED = Counter("compute_rejected", "Tasks refused because the queue was full.")
COMPUTE_WORKERS = Gauge(
    "compute_workers",
    "Compute workers wanted, and serving.",
    ["state"],
    multiprocess_mode="livesum",
)
COMPUTE_WORKER_EXITS = Counter(
    "compute_worker_exits",
    "Compute workers that ended, by reason; detail is the signal or the exit code.",
    ["reason", "detail"],
)

UNMATCHED = "unmatched"
OTHER_METHOD = "other"
CLIENT_GONE = 499  # as nginx has it


BOUNDS = Histogram.DEFAULT_BUCKETS


class Series:
    """The numbers of one method and route: where they are, so that adding to them is cheap."""

    __slots__ = ("_buckets", "_labels", "_statuses", "_sum")

    def __init__(self, method: str, route: str) -> None:
        REQUEST_SECONDS.labels(method, route)
        name = "http_request_duration_seconds"
        self._labels = method, route
        self._statuses: dict[int, tuple[memoryview[float], int]] = {}
        self._sum = values.place(f"{name}_sum", method, route)
        self._buckets = [
            values.place(f"{name}_bucket", method, route, floatToGoString(bound))
            for bound in BOUNDS
        ]

    def count(self, status: int) -> None:
        try:
            cells, index = self._statuses[status]
        except KeyError:
            labels = *self._labels, str(status)
            REQUESTS.labels(*labels)
            cells, index = self._statuses[status] = values.place("http_requests_total", *labels)
        cells[index] += 1

    def observe(self, seconds: float) -> None:
        cells, index = self._buckets[bisect_left(BOUNDS, seconds)]
        cells[index] += 1
        cells, index = self._sum
        cells[index] += seconds


_by_route: dict[AbstractRoute, Series] = {}  # of the routes that have one method
_by_labels = cache(Series)


def _series(request: BaseRequest) -> Series:
    """Those of a request: as many as there are routes and methods, whatever clients ask for."""
    match: UrlMappingMatchInfo | None = getattr(request, "_match_info", None)
    route = None if match is None else match.route  # a request that could not be parsed has none
    if route is not None and (known := _by_route.get(route)):
        return known
    method = request.method if request.method in hdrs.METH_ALL else OTHER_METHOD
    if route is None or route.resource is None:
        return _by_labels(method, UNMATCHED)
    series = _by_labels(method, route.resource.canonical)
    if route.method == method:
        _by_route[route] = series
    return series


def count(record: logs.Record, request: BaseRequest, status: int) -> None:
    """Count a request by the status that it gets.

    Call it before the response is written: so a client that has an answer is counted, even when
    the worker is killed in the very next moment.
    """
    record.status = status
    record.series = series = _series(request)
    series.count(status)


def finish(record: logs.Record, request: BaseRequest, size: int) -> None:
    """Observe how long a request took and write its access-log line; size: that of the body."""
    seconds = perf_counter() - record.start
    record.series.observe(seconds)
    if logs.access_log:
        logs.access(request, record, seconds, size)


class Recorder(AbstractAccessLogger):
    """aiohttp calls it for every response that it has written, those without a handler included."""

    def log(self, request: BaseRequest, response: web.StreamResponse, time: float) -> None:
        record = logs.current.get()
        if not record.status:  # no handler, as the request could not be parsed
            count(record, request, response.status)
        # not `time`: uvloop's clock stands still while a request is handled without waiting
        finish(record, request, response.body_length)
