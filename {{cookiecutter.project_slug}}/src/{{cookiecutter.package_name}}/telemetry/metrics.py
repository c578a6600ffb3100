"""Every metric of the service, defined once, and the one place that records a request.

Import it after slots.install(): a metric made before counts in this process alone.
"""

from collections.abc import Callable
from time import perf_counter

from aiohttp import hdrs, web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.web_request import BaseRequest
from prometheus_client import Counter, Gauge, Histogram

from . import logs

REQUESTS = Counter("http_requests", "Requests answered.", ["method", "route", "status"])
REQUEST_SECONDS = Histogram(
    "http_request_duration_seconds",
    "Time from the last header of a request to the end of its response.",
    ["method", "route"],
)
IN_PROGRESS = Gauge(
    "http_requests_in_progress", "Requests being handled.", multiprocess_mode="livesum"
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

_counts: dict[tuple[str, str, int], Callable[[], None]] = {}
_observers: dict[tuple[str, str], Callable[[float], None]] = {}


def _labels(request: BaseRequest) -> tuple[str, str]:
    """Method and route; the number of their values stays that of the routes there are."""
    method = request.method if request.method in hdrs.METH_ALL else OTHER_METHOD
    if isinstance(request, web.Request):  # a request that could not be parsed is none
        resource = request.match_info.route.resource
        if resource is not None:
            return method, resource.canonical
    return method, UNMATCHED


def count(request: BaseRequest, status: int) -> None:
    """Count a request by the status that it gets.

    Call it before the response is written: so a client that has an answer is counted, even when
    the worker is killed in the very next moment.
    """
    logs.current.get().status = status
    key = (*_labels(request), status)
    try:
        _counts[key]()
    except KeyError:
        _counts[key] = REQUESTS.labels(key[0], key[1], str(status)).inc
        _counts[key]()


def finish(request: BaseRequest, response: web.StreamResponse | None) -> None:
    """Observe how long a request took and write its access-log line."""
    record = logs.current.get()
    seconds = perf_counter() - record.start
    key = _labels(request)
    try:
        _observers[key](seconds)
    except KeyError:
        _observers[key] = REQUEST_SECONDS.labels(*key).observe
        _observers[key](seconds)
    if logs.access_log:
        logs.access(request, record, seconds, response.body_length if response else 0)


class Recorder(AbstractAccessLogger):
    """aiohttp calls it for every response that it has written, those without a handler included."""

    def log(self, request: BaseRequest, response: web.StreamResponse, time: float) -> None:
        if not logs.current.get().status:  # no handler, as the request could not be parsed
            count(request, response.status)
        # not `time`: uvloop's clock stands still while a request is handled without waiting
        finish(request, response)
