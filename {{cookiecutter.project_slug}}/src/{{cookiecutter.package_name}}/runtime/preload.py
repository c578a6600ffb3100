"""What is loaded once, before there are workers, so that all of them share its memory.

It is loaded in the management process and inherited by the fork. SIGHUP brings new code to the
workers, but not to what is preloaded nor to the user's modules that it needed: they stay as they
are, so that its classes are the same in all workers.
"""

import gc
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from aiohttp import web

from .parts import Parts

PRELOADED: web.AppKey[Any] = web.AppKey("preloaded", object)
CODE = (ModuleType, FunctionType, type)  # which hold all of the interpreter

log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """What `preload()` returned, and what it took."""

    value: Any = None
    seconds: float = 0.0
    memory: int = 0  # bytes by which the management process grew
    modules: frozenset[str] = frozenset()  # the user's that it needed
    newest: float = 0.0  # when the last of these was changed, as Unix time


loaded = Loaded()


def preloaded() -> Any:
    """What `preload()` returned, in every process of the service."""
    return loaded.value


def load(parts: Parts) -> Loaded:
    """Call the user's `preload()`; it may raise anything."""
    global loaded
    before, threads, sockets = _resident(), _threads(), _sockets()
    known, began = parts.own_modules(), time.monotonic()
    preload = parts.load_preload()
    if preload is None:
        return loaded
    value = preload()
    gc.collect()
    _make_immortal(value)
    gc.freeze()  # a collector that touched it would copy it, page by page, into every worker
    modules = parts.own_modules() - known
    loaded = Loaded(
        value,
        time.monotonic() - began,
        max(_resident() - before, 0),
        frozenset(modules),
        _newest(modules),
    )
    if started := _threads() - threads:
        log.warning("preload() started threads, which no worker will have: %s", ", ".join(started))
    if opened := _sockets() - sockets:
        log.warning("preload() opened %d sockets, which all workers would share", len(opened))
    return loaded


def changed() -> bool:
    """Whether the code that preloaded is not the code of now, which only a restart renews."""
    return bool(loaded.modules) and _newest(loaded.modules) > loaded.newest


def leave_when_told() -> None:
    """Loading may take minutes, and process 1 ignores what it has no handler for."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})


def _make_immortal(value: Any) -> None:
    """End the counting of references to it and all that it holds, which nobody will free.

    A count that changes copies its page into the worker that reads the object. Python 3.12 and
    newer have objects without one, such as None, but no call to make them: it is written as None
    has it, and not where it is kept in another way, as it is without a GIL.
    """
    from ctypes import c_uint32  # takes 10 ms, which a start without a model need not wait for

    immortal = c_uint32.from_address(id(None)).value
    if not 2**31 < immortal == sys.getrefcount(None):
        return
    found = [[value]]
    while found:
        reached, found = gc.get_referents(*found), []
        for one in reached:
            if sys.getrefcount(one) < immortal and not issubclass(type(one), CODE):
                c_uint32.from_address(id(one)).value = immortal
                found.append(one)


def _newest(modules: set[str] | frozenset[str]) -> float:
    files = [getattr(sys.modules.get(name), "__file__", None) for name in modules]
    return max((Path(f).stat().st_mtime for f in files if f and Path(f).exists()), default=0.0)


def _resident() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _threads() -> set[str]:
    names = {thread.name for thread in threading.enumerate()}
    try:
        return names | {f"native thread {task.name}" for task in Path("/proc/self/task").iterdir()}
    except OSError:
        return names


def _sockets() -> set[str]:
    try:
        targets = {os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()}
    except OSError:
        return set()
    return {target for target in targets if "/socket:" in target}
