"""The one place that records a request: its count, its duration, its line in the access log."""

from bisect import bisect_left
from functools import cache
from time import perf_counter

from aiohttp import hdrs
from aiohttp.web_request import BaseRequest
from aiohttp.web_urldispatcher import AbstractRoute, UrlMappingMatchInfo
from prometheus_client import Histogram
from prometheus_client.utils import floatToGoString

from .. import logs
from ..metrics import values
from ..metrics.catalogue import ABORTED, REQUEST_SECONDS, REQUESTS

UNMATCHED = "unmatched"
OTHER_METHOD = "other"
NONE = "none"  # in the place of a status, where no response was begun


BOUNDS = Histogram.DEFAULT_BUCKETS


class Series:
    """The numbers of one method and route: where they are, so that adding to them is cheap."""

    __slots__ = ("_buckets", "_statuses", "_sum", "labels")

    def __init__(self, method: str, route: str) -> None:
        REQUEST_SECONDS.labels(method, route)
        name = "http_request_duration_seconds"
        self.labels = method, route
        self._statuses: dict[int | str, values.Place] = {}
        self._sum = values.place(f"{name}_sum", method, route)
        self._buckets = [
            values.place(f"{name}_bucket", method, route, floatToGoString(bound))
            for bound in BOUNDS
        ]

    def count(self, status: int | str) -> None:
        try:
            place = self._statuses[status]
        except KeyError:
            labels = *self.labels, str(status)
            REQUESTS.labels(*labels)
            place = self._statuses[status] = values.place("http_requests_total", *labels)
        place.cells[place.index] += 1

    def observe(self, seconds: float) -> None:
        place = self._buckets[bisect_left(BOUNDS, seconds)]
        place.cells[place.index] += 1
        place = self._sum
        place.cells[place.index] += seconds


_by_route: dict[AbstractRoute, Series] = {}  # of the routes that have one method
_by_labels = cache(Series)


def series(request: BaseRequest) -> Series:
    """Where a request is counted: as many as there are routes and methods, whatever is asked."""
    match: UrlMappingMatchInfo | None = getattr(request, "_match_info", None)
    route = None if match is None else match.route  # a request that could not be parsed has none
    if route is not None and (known := _by_route.get(route)):
        return known
    method = request.method if request.method in hdrs.METH_ALL else OTHER_METHOD
    if route is None or route.resource is None:
        return _by_labels(method, UNMATCHED)
    found = _by_labels(method, route.resource.canonical)
    if route.method == method:
        _by_route[route] = found
    return found


def count(record: logs.Record, status: int) -> None:
    """Count a request by the status that it gets, in the moment before it is written."""
    record.status = status
    record.series.count(status)


def finish(record: logs.Record, request: BaseRequest, size: int) -> None:
    """Observe how long a request took and write its access-log line; size: that of the body."""
    seconds = perf_counter() - record.start
    if not record.status:
        record.series = series(request)
        record.series.count(NONE)
    if record.aborted:
        ABORTED.labels(*record.series.labels, record.status or NONE, record.aborted).inc()
    record.series.observe(seconds)
    if logs.access_log:
        logs.access(request, record, seconds, size)
