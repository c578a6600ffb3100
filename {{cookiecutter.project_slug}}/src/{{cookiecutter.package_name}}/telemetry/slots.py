"""A leased number per process, so that a worker's successor goes on counting in the same files.

prometheus_client names the files of a process after its PID, and a scrape reads those of every
process that ever lived: 1,000 dead workers make 1.8 s and 168 MB of it. Here the name is a *slot*,
the lowest number that no living process holds. Holding slot k is a POSIX lock on byte k of one
file: the kernel drops it however the process ends, and a fork does not inherit it. Closing any
descriptor of the file would drop it too, therefore the file is opened once and never closed.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import values
from prometheus_client.multiprocess import mark_process_dead

LOCK_FILE = "slots.lock"
MAX_SLOTS = 4096

_folder: Path | None = None
_lock_fd = -1
_slot: int | None = None


def _forget() -> None:
    global _slot
    _slot = None


os.register_at_fork(after_in_child=_forget)


@contextmanager
def _gate() -> Iterator[None]:
    """One process at a time looks for free slots; otherwise looking would make them seem taken."""
    fcntl.lockf(_lock_fd, fcntl.LOCK_EX, 1, MAX_SLOTS)
    try:
        yield
    finally:
        fcntl.lockf(_lock_fd, fcntl.LOCK_UN, 1, MAX_SLOTS)


def _lock(start: int, length: int = 1) -> bool:
    try:
        fcntl.lockf(_lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def _unlock(start: int, length: int = 1) -> None:
    fcntl.lockf(_lock_fd, fcntl.LOCK_UN, length, start)


def install(folder: Path) -> None:
    """Count in `folder` from now on; call it once, before the first metric is made.

    Files that an earlier run left there are removed, unless a living process (another container
    of the pod) counts in the same folder: then those files go on being counted in.

    Raises:
        OSError: when the folder cannot be written.
    """
    global _folder, _lock_fd
    _lock_fd = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    _folder = folder
    with _gate():
        if _lock(0, MAX_SLOTS):
            for file in folder.glob("*_*.db"):
                file.unlink()
            _unlock(0, MAX_SLOTS)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    # every metric looks this class up when it is made
    values.ValueClass = values.MultiProcessValue(slot)


def slot() -> int:
    """This process's slot, leased at the first call.

    Raises:
        RuntimeError: when all slots are taken.
    """
    global _slot
    if _slot is None:
        with _gate():
            _slot = next((k for k in range(MAX_SLOTS) if _lock(k)), None)
        if _slot is None:
            raise RuntimeError(f"more than {MAX_SLOTS} processes count in {_folder}")
        mark_process_dead(_slot, str(_folder))  # what the slot's last holder showed of itself
    return _slot


def bury() -> None:
    """Remove what the dead show of themselves: the live gauges of slots that nobody holds."""
    assert _folder is not None
    shown = {int(file.stem.rpartition("_")[2]) for file in _folder.glob("gauge_live*_*.db")}
    with _gate():
        for k in shown - {_slot}:
            if _lock(k):
                mark_process_dead(k, str(_folder))
                _unlock(k)


def remove_if_last() -> None:
    """Leave, and remove the folder if nobody else counts in it."""
    global _slot
    assert _folder is not None
    with _gate():
        if _slot is not None:
            _unlock(_slot)
            _slot = None
        if _lock(0, MAX_SLOTS):
            shutil.rmtree(_folder, ignore_errors=True)
