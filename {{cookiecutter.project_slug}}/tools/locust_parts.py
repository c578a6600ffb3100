"""Loaded by Locust beside the locustfile: a progress line, and a list of the requests made."""

import json
import os
import sys
import time
from typing import Any

import gevent
from locust import events, stats
from locust.env import Environment

LENGTH = float(os.environ["LOAD_SECONDS"])
RECORD = os.environ.get("LOAD_RECORD")
NOT_REPLAYED = {"host", "connection", "content-length", "transfer-encoding", "user-agent"}

stats.HISTORY_STATS_INTERVAL_SEC = 1  # points in the report's charts; Locust's default is 5

requests: list[dict[str, Any]] = []


def progress(environment: Environment) -> None:
    begin = time.monotonic()
    before = 0
    while True:
        gevent.sleep(1)
        total = environment.stats.total
        done, before = total.num_requests - before, total.num_requests
        now = min(time.monotonic() - begin, LENGTH)
        p50, p99 = (total.get_current_response_time_percentile(share) or 0 for share in (0.5, 0.99))
        line = (
            f"{now:3.0f} of {LENGTH:.0f} s: {environment.runner.user_count} users, "
            f"{done:,} requests/s, p50 {p50:.0f} ms, p99 {p99:.0f} ms, "
            f"{total.num_failures:,} failed"
        )
        again = sys.stderr.isatty()  # in the same line
        print(f"\r{line:<78}" if again else line, end="" if again else "\n", file=sys.stderr)
        sys.stderr.flush()


def at_start(environment: Environment, **_: Any) -> None:
    if RECORD:
        environment.events.request.add_listener(record)
    else:
        gevent.spawn(progress, environment)


def record(response: Any, **_: Any) -> None:
    """Both clients of Locust keep the request with the response, by different names."""
    request = getattr(response, "request", None)
    if request is None:
        return
    body = getattr(request, "payload", None) or getattr(request, "body", None) or b""
    requests.append(
        {
            "method": request.method,
            "url": request.url,
            "status": response.status_code,
            "headers": {k: v for k, v in request.headers.items() if k.lower() not in NOT_REPLAYED},
            "body": (body if isinstance(body, str) else bytes(body).decode("latin-1")),
        }
    )


def at_end(**_: Any) -> None:
    if RECORD:
        with open(RECORD, "w") as file:  # noqa: PTH123
            json.dump(requests, file)
    elif sys.stderr.isatty():
        print(file=sys.stderr)


events.init.add_listener(at_start)
events.quitting.add_listener(at_end)
