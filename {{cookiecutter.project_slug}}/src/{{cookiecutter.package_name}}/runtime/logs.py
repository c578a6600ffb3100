"""Logs on standard output: JSON or console lines, each with the id of the request it belongs to.

Access lines are gathered and written a few at a time, at the latest after FLUSH_AFTER and at exit.
A write has at most PIPE_BUF bytes: the kernel keeps such writes whole when workers share a pipe.
Where there is no room (output.py), up to KEPT of them wait for it.
"""

import asyncio
import atexit
import json
import logging
import os
import re
import secrets
import select
import sys
import time
from contextvars import ContextVar
from functools import lru_cache
from itertools import count
from threading import Lock
from time import perf_counter
from typing import Any

from aiohttp import hdrs
from aiohttp.web_request import BaseRequest

from . import output

FLUSH_AFTER = 0.2  # seconds
RETRY_AFTER = 0.02  # seconds, where there was no room
BATCH = 64  # lines
KEPT = 8192  # lines
WELL_FORMED_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}").fullmatch
# W3C Trace Context: version, trace id, span id, flags; what a later version adds comes after them
TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"
).fullmatch


ALWAYS_THERE = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class Record:
    """The request that a task works for."""

    __slots__ = ("aborted", "id", "series", "start", "status", "trace_id")

    def __init__(self, request_id: str, traceparent: str | None = None) -> None:
        self.id = request_id
        self.trace_id = ""
        if traceparent and (found := TRACEPARENT(traceparent)):
            self.trace_id = found[1]
        self.start = perf_counter()
        self.status = 0  # nothing sent yet
        self.aborted = ""  # by whom
        self.series: Any = None  # where it is counted


current: ContextVar[Record] = ContextVar("current")
access_log = False

_json = True
_colours = False
_pending: list[tuple[float, Record, str, str, float, int, str | None, str]] = []
_timer = False  # whether it will be written soon
_waiting = False  # whether it waits for room
_flushing = Lock()
_clock = 0, ""  # the millisecond that was written last
_pid = str(os.getpid())
_ids = count(1)
_id_prefix = ""


def current_id() -> str:
    """The id of the request at work, or an empty text."""
    record = current.get(None)
    return record.id if record else ""


def new_id() -> str:
    """A short id, unique over processes and restarts; much cheaper than a uuid4."""
    global _id_prefix
    if not _id_prefix:
        _id_prefix = secrets.token_hex(5)
    return f"{_id_prefix}-{next(_ids)}"


def _after_fork() -> None:
    global _id_prefix, _pid, _timer, _waiting, _flushing
    _id_prefix, _pid, _timer, _waiting, _flushing = "", str(os.getpid()), False, False, Lock()
    _pending.clear()  # the parent's, which it writes itself


os.register_at_fork(after_in_child=_after_fork)


@lru_cache(2)
def _date(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _timestamp(seconds: float) -> str:
    global _clock
    now = int(seconds * 1000)
    if now != _clock[0]:  # many lines have the same
        _clock = now, f"{_date(now // 1000)}.{now % 1000:03d}Z"
    return _clock[1]


@lru_cache(256)
def _quoted(text: str) -> str:
    return json.dumps(text)


class JSONFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        as_it_is = isinstance(record.msg, dict) and not record.args
        line: dict[str, Any] = {
            "time": _timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.msg if as_it_is else record.getMessage(),
            "process": record.process,
        }
        request = current.get(None)
        if request:
            line["request_id"] = request.id
            if request.trace_id:
                line["trace_id"] = request.trace_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        for name in vars(record).keys() - ALWAYS_THERE:  # what was given as extra=
            line[f"extra_{name}" if name in line else name] = vars(record)[name]
        try:
            return json.dumps(line, default=str, allow_nan=False)
        except (TypeError, ValueError):  # no JSON can hold it
            return json.dumps({name: str(value) for name, value in line.items()})


class ConsoleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        flush()  # so that a handler's lines stay in order with the access lines
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line itself; a traceback comes after it."""
        request_id = current_id()
        return (
            f"{_timestamp(record.created)} {record.process} "
            f"{_coloured(record.levelname, record.levelno)} {record.name}: {record.message}"
            + (f" [{request_id}]" if request_id else "")
        )


def _coloured(text: str, level: int) -> str:
    """Text for a terminal: red from `error` on, yellow for a warning."""
    if not _colours or level < logging.WARNING:
        return text
    return f"\x1b[{31 if level >= logging.ERROR else 33}m{text}\x1b[0m"


def setup(level: str, log_format: str, *, access: bool) -> None:
    """Send every logger's lines of `level` and above to standard output.

    Args:
        log_format: "json" or "console".
        access: whether a line is written for each request.
    """
    global access_log, _json, _colours
    access_log, _json = access, log_format == "json"
    _colours = sys.stdout is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    output.take_over()
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JSONFormatter() if _json else ConsoleFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def access(request: BaseRequest, record: Record, seconds: float, size: int) -> None:
    """Write the access-log line of a finished request soon.

    What it is made of is gathered here; many lines made at a time cost half as much.

    Args:
        seconds: what it took.
        size: bytes of the response's body.
    """
    global _timer
    if len(_pending) >= KEPT:
        output.stdout.drop(1)
        return
    _pending.append(
        (
            time.time(),
            record,
            request.method,
            request.rel_url.raw_path,
            seconds,
            size,
            request.remote,
            request.headers.get(hdrs.USER_AGENT, ""),
        )
    )
    if len(_pending) >= BATCH and not _waiting:
        flush()
    if _pending and not _timer:
        _timer = True
        _later()


def _later() -> None:
    asyncio.get_running_loop().call_later(RETRY_AFTER if _waiting else FLUSH_AFTER, _flush_later)


def _flush_later() -> None:
    global _timer
    flush()
    _timer = _waiting
    if _timer:
        _later()


def _json_line(
    now: float,
    record: Record,
    method: str,
    path: str,
    seconds: float,
    size: int,
    remote: str | None,
    agent: str,
) -> str:
    trace = f'"trace_id":"{record.trace_id}",' if record.trace_id else ""
    aborted = f'"aborted":"{record.aborted}",' if record.aborted else ""
    return (
        f'{{"time":"{_timestamp(now)}","level":"info","logger":"access","process":{_pid},'
        f'"request_id":"{record.id}",{trace}"method":"{method}","path":{_quoted(path)},'
        f'"status":{record.status or "null"},{aborted}"duration_us":{int(seconds * 1e6)},'
        f'"bytes":{size},"remote":"{remote or ""}","user_agent":{_quoted(agent)}}}\n'
    )


def _console_line(
    now: float,
    record: Record,
    method: str,
    path: str,
    seconds: float,
    size: int,
    remote: str | None,
    agent: str,
) -> str:
    level = logging.ERROR if record.status >= 500 else logging.WARNING * (record.status >= 400)
    status = _coloured(str(record.status or "-"), level)
    aborted = _coloured(f"aborted by {record.aborted} ", logging.WARNING) if record.aborted else ""
    return (
        f"{_timestamp(now)} {_pid} {remote} {method} {path} {status} {aborted}"
        f"{seconds * 1000:.1f} ms [{record.id}]\n"
    )


def flush(patience: float = 0.0) -> None:
    """Write the access lines gathered so far; those for which there is no room are kept.

    Args:
        patience: seconds to wait for room.
    """
    global _waiting
    line = _json_line if _json else _console_line
    if not _flushing.acquire(blocking=False):
        return  # another thread does it, or this one in what it calls from here
    number = len(_pending)
    done = end = 0
    while done < number:
        data = b""
        while end < number:
            more = line(*_pending[end]).encode("ascii", "backslashreplace")
            if data and len(data) + len(more) > select.PIPE_BUF:
                break
            data += more
            end += 1
        if not output.stdout.send(data, patience):
            break
        done = end
    del _pending[:done]
    _waiting = done < number
    _flushing.release()


def _flush_at_exit() -> None:
    flush(output.PATIENCE)
    if _pending:
        output.stdout.drop(len(_pending))


atexit.register(_flush_at_exit)
