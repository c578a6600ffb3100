"""A leased number per process, so that a worker's successor goes on counting in the same files.

prometheus_client names the files of a process after its PID, and a scrape reads those of every
process that ever lived: 1,000 dead workers make 1.8 s and 168 MB of it. Here the name is a *slot*,
the lowest number that no living process holds. Holding slot k is a POSIX lock on byte k of one
file: the kernel drops it however the process ends, and a fork does not inherit it. Closing any
descriptor of the file would drop it too, therefore the file is opened once and never closed.
"""

import errno
import fcntl
import logging
import mmap
import os
import re
import shutil
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

LOCK_FILE = "slots.lock"
MAX_SLOTS = 4096
LEADER = MAX_SLOTS + 1  # the byte that the one process holds that leads the others
JUST_MADE = 60.0  # seconds
COUNTS = "counts"  # a slot's files: what its next holder goes on with,
LAST = "last"  # what stays until there is a next holder,
GAUGES = "gauges"  # and what ends with its holder
KEYS, CELLS, ASKED = ".keys", ".cells", ".asked"
FILE = re.compile(rf"({COUNTS}|{LAST}|{GAUGES})_(\d+)({KEYS}|{CELLS}|{ASKED})").fullmatch
STOCK = ".db"  # prometheus_client's own files, of a child process that knows nothing of ours
LOST = "degraded"  # a file that is there once a process counts where no scrape sees it
ROOM = "PROMETHEUS_MULTIPROC_DIR must have room, and stay"

_folder = Path()
_lock_fd = -1
_slot: int | None = None
_sign = 0  # the inode of the file where we hold our slot too, since the first was removed
_lost = mmap.mmap(-1, 1)  # shared with all forks, for where there is no room for LOST


def _forget() -> None:
    global _slot, _sign
    _slot, _sign = None, 0


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
    """Lease slots in `folder` from now on.

    Files that an earlier run left there are removed, unless a living process (another container
    of the pod) counts in the same folder: then those files go on being counted in.

    Raises:
        OSError: when the folder cannot be written.
    """
    global _folder, _lock_fd, _slot
    fd = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    if installed():  # as the child of a process that counts
        os.close(_lock_fd)
    _folder, _lock_fd, _slot = folder, fd, None
    with _gate():
        if _lock(0, MAX_SLOTS):
            for file in folder.iterdir():
                if FILE(file.name) or file.name == LOST or file.suffix == STOCK:
                    file.unlink()
            _unlock(0, MAX_SLOTS)


def remove_dead(parent: Path, prefix: str) -> None:
    """Remove the folders of runs that were killed as a whole: nobody holds a slot in them."""
    for path in parent.glob(f"{prefix}*/{LOCK_FILE}"):
        with suppress(OSError):  # somebody lives there, or it is not ours
            if time.time() - path.stat().st_mtime < JUST_MADE:
                continue  # its run may not have leased a slot yet
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.parent)
            finally:
                os.close(fd)


def join(folder: Path) -> None:
    """Lease slots in the folder where a parent of this process leases its own.

    Raises:
        OSError: when it does so no more.
    """
    global _folder, _lock_fd
    _lock_fd = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC)
    _folder = folder


def installed() -> bool:
    """Whether there is a folder to count in."""
    return _lock_fd >= 0


def lead() -> bool:
    """Whether this process leads, from now on until it ends or follows; one does at a time."""
    return _lock(LEADER)


def follow() -> None:
    """Let another process lead."""
    _unlock(LEADER)


def folder() -> Path:
    """Where this process counts."""
    return _folder


def slot() -> int:
    """This process's slot, leased at the first call.

    Raises:
        OSError: when there are no slots, or all are taken.
    """
    global _slot
    if _slot is None:
        with _gate():
            _slot = next((k for k in range(MAX_SLOTS) if _lock(k)), None)
            if _slot is None:
                raise OSError(errno.EUSERS, f"more than {MAX_SLOTS} processes count", str(_folder))
            for kind in (LAST, GAUGES):  # what the slot's last holder showed of itself
                for suffix in (KEYS, CELLS, ASKED):
                    (_folder / f"{kind}_{_slot}{suffix}").unlink(missing_ok=True)
    return _slot


def label() -> str:
    """This process as the value of a label: its slot, as a PID would be a new series every time."""
    try:
        return str(slot())
    except OSError:
        return "none"


def held(slots: Iterable[int]) -> dict[int, int]:
    """Which of these slots living processes hold, and their PIDs (0 for one out of sight)."""
    with _gate():
        found = {}
        for k in slots:
            if k == _slot:
                found[k] = os.getpid()
            elif _lock(k):
                _unlock(k)
            else:
                found[k] = _holder(k)
        return found


def _holder(k: int) -> int:
    pid = 0
    if sys.platform == "linux":
        lock = "hhqqi0q"  # struct flock; the kernel answers 0 for a process of another container
        asked = struct.pack(lock, fcntl.F_WRLCK, os.SEEK_SET, k, 1, 0)
        pid = int(struct.unpack(lock, fcntl.fcntl(_lock_fd, fcntl.F_GETLK, asked))[4])
    return pid


def lose(why: object, remedy: str = ROOM) -> None:
    """Say once, whichever process is the first to find out, that a scrape does not show all."""
    if losing():
        return
    _lost[0] = 1
    with suppress(OSError):
        (_folder / LOST).touch()  # for processes that are no forks of ours
    log.error("metrics are incomplete from now on, requests are not affected: %s; %s", why, remedy)


def recover(how: str) -> None:
    """Say that a scrape shows all again; whoever finds that it does not says so again."""
    with suppress(OSError):
        (_folder / LOST).unlink(missing_ok=True)
    if _lost[0]:
        _lost[0] = 0
        log.error("metrics are complete again: %s", how)


def restore() -> None:
    """Make the folder and the file of locks anew, where somebody has removed them.

    Slots are still leased in the file that was removed, which is there for as long as its
    processes are; the new one shows other runs that somebody lives here.

    Raises:
        OSError: when that cannot be done.
    """
    global _sign
    _folder.mkdir(parents=True, exist_ok=True)
    path = _folder / LOCK_FILE
    if path.exists() and path.stat().st_ino in (os.fstat(_lock_fd).st_ino, _sign):
        return
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)  # never closed: see above
    _sign = os.fstat(fd).st_ino
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot())


def losing() -> bool:
    """Whether any process has counts that a scrape does not show."""
    return bool(_lost[0]) or (installed() and (_folder / LOST).exists())


def remove_if_last() -> None:
    """Leave, and remove the folder if nobody else counts in it."""
    global _slot
    with _gate():
        if _slot is not None:
            _unlock(_slot)
            _slot = None
        if _lock(0, MAX_SLOTS):
            shutil.rmtree(_folder, ignore_errors=True)
