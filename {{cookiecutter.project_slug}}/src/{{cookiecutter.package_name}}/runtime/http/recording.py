"""The one place that records a request: its count, its duration, its line in the access log."""

from bisect import bisect_left
from functools import cache
from time import perf_counter

from aiohttp import hdrs, web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.web_request import BaseRequest
from aiohttp.web_urldispatcher import AbstractRoute, UrlMappingMatchInfo
from prometheus_client import Histogram
from prometheus_client.utils import floatToGoString

from .. import logs
from ..metrics import values
from ..metrics.catalogue import REQUEST_SECONDS, REQUESTS

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
