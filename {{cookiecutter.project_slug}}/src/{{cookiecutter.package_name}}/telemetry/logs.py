"""Logs on standard output: JSON or console lines, each with the id of the request it belongs to.

Access lines are gathered and written a few at a time, at the latest after FLUSH_AFTER and at exit.
A write has at most PIPE_BUF bytes: the kernel keeps such writes whole when workers share a pipe.
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
from itertools import count

from aiohttp.web_request import BaseRequest

FLUSH_AFTER = 0.2
WELL_FORMED_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}").fullmatch


class Record:
    """The request that a task works for."""

    __slots__ = ("id", "start", "status")

    def __init__(self, request_id: str) -> None:
        self.id = request_id
        self.start = time.perf_counter()
        self.status = 0  # not counted yet


current: ContextVar[Record] = ContextVar("current")
access_log = False

_json = True
_pending: list[str] = []
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
    return f"{_id_prefix}-{next(_ids):x}"


def _after_fork() -> None:
    global _id_prefix
    _id_prefix = ""
    _pending.clear()  # the parent's, which it writes itself


os.register_at_fork(after_in_child=_after_fork)


def _timestamp(seconds: float) -> str:
    clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{clock}.{int(seconds * 1000) % 1000:03d}Z"


class JSONFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        if request_id := current_id():
            line["request_id"] = request_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class ConsoleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        flush()  # so that a handler's lines stay in order with the access lines
        request_id = current_id()
        return super().format(record) + (f" [{request_id}]" if request_id else "")


def setup(level: str, log_format: str, *, access: bool) -> None:
    """Send every logger's lines of `level` and above to standard output.

    Args:
        log_format: "json" or "console".
        access: whether a line is written for each request.
    """
    global access_log, _json
    access_log, _json = access, log_format == "json"
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        JSONFormatter()
        if _json
        else ConsoleFormatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def access(request: BaseRequest, record: Record, seconds: float, size: int) -> None:
    """Write the access-log line of a finished request soon.

    Args:
        seconds: what it took.
        size: bytes of the response's body.
    """
    now = _timestamp(time.time())
    if _json:
        _pending.append(
            f'{{"time":"{now}","level":"info","logger":"access","process":{os.getpid()},'
            f'"request_id":"{record.id}","method":{json.dumps(request.method)},'
            f'"path":{json.dumps(request.rel_url.raw_path)},"status":{record.status},'
            f'"duration_ms":{seconds * 1000:.3f},"bytes":{size},'
            f'"remote":{json.dumps(request.remote)},'
            f'"user_agent":{json.dumps(request.headers.get("User-Agent", ""))}}}\n'
        )
    else:
        _pending.append(
            f"{now} {os.getpid()} {request.remote} {request.method} {request.rel_url.raw_path} "
            f"{record.status} {seconds * 1000:.1f} ms [{record.id}]\n"
        )
    if len(_pending) == 1:
        asyncio.get_running_loop().call_later(FLUSH_AFTER, flush)


def flush() -> None:
    """Write the access lines gathered so far."""
    chunk = b""
    for line in _pending:
        data = line.encode("utf-8", "backslashreplace")
        if len(chunk) + len(data) > select.PIPE_BUF:
            _write(chunk)
            chunk = b""
        chunk += data
    _pending.clear()
    _write(chunk)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]


atexit.register(flush)
