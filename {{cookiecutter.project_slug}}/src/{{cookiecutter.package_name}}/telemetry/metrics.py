"""Every metric of the service, defined once, and the one place that records a request.

Import it after slots.install(): a metric made before counts in this process alone.
"""

from asyncio import get_running_loop
from collections.abc import Callable

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

_recorders: dict[tuple[str, str, int], tuple[Callable[[], None], Callable[[float], None]]] = {}


def route_of(request: BaseRequest) -> str:
    """The pattern that matched, so that the number of label values stays that of the routes."""
    if isinstance(request, web.Request):  # a request that could not be parsed is none
        resource = request.match_info.route.resource
        if resource is not None:
            return resource.canonical
    return UNMATCHED


class Recorder(AbstractAccessLogger):
    """Counts a request and writes its access-log line.

    aiohttp calls it for every response it finished, those without a handler included, and has
    measured the time already.
    """

    def log(self, request: BaseRequest, response: web.StreamResponse, time: float) -> None:
        method = request.method if request.method in hdrs.METH_ALL else OTHER_METHOD
        key = (method, route_of(request), response.status)
        try:
            count, observe = _recorders[key]
        except KeyError:
            count = REQUESTS.labels(key[0], key[1], str(key[2])).inc
            observe = REQUEST_SECONDS.labels(key[0], key[1]).observe
            _recorders[key] = count, observe
        count()
        observe(time)
        if logs.access_log:
            logs.access(get_running_loop(), request, response, time)
