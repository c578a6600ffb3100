"""Whether we could listen where the settings say, and if not, why: before anything starts.

gunicorn tries for five seconds, and says so in nine lines that name no setting.
"""

import errno
import os
import socket
import stat
import sys
from contextlib import suppress
from pathlib import Path

from ..settings import Settings

SHOWN = 80  # characters of another process's command


def problems(settings: Settings, command: str) -> list[str]:
    """What keeps `command` from listening: a line for each of its ports and its socket."""
    url = settings.compute_url or ""
    found = []
    if command in ("serve", "web") or (command == "compute" and not url.startswith("unix:")):
        found.append(_port("", settings.host, settings.port))
    if command != "compute" or not url.startswith("unix:"):
        found.append(_port("ADMIN_", settings.admin_host, settings.admin_port))
    if command in ("serve", "compute") and url.startswith("unix:"):
        found.append(_socket(Path(url.removeprefix("unix:"))))
    return [problem for problem in found if problem]


def _port(prefix: str, host: str, port: int) -> str:
    """As gunicorn does it: what it could not have either is a problem."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            sock.listen()
    except OSError as error:
        match error.errno:
            case errno.EADDRINUSE:
                return (
                    f"{prefix}PORT={port}: {_holder(port)} listens there already; "
                    "end it, or give another port"
                )
            case errno.EADDRNOTAVAIL:
                return (
                    f"{prefix}HOST={host!r}: is no address of this machine; "
                    "give one of its own, or 0.0.0.0 or :: for all of them"
                )
            case errno.EACCES | errno.EPERM:
                return (
                    f"{prefix}PORT={port}: this user may not listen there; "
                    "give a port from 1024 on, or the process the capability NET_BIND_SERVICE"
                )
            case errno.EAFNOSUPPORT:
                return f"{prefix}HOST={host!r}: this machine has no IPv6; give 0.0.0.0"
        return f"{prefix}HOST={host!r}, {prefix}PORT={port}: cannot listen there: {error.strerror}"
    return ""


def _socket(path: Path) -> str:
    name = f"COMPUTE_URL={f'unix:{path}'!r}"
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return f"{name}: {path.parent} is no folder that can be written; make or mount it"
    try:
        if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
            return f"{name}: is there and no socket; remove it, or give another path"
        if listener := _listener(path):
            return f"{name}: {listener} listens there already; end it, or give another path"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
        path.unlink()
    except OSError as error:
        return f"{name}: there can be no socket: {error.strerror}; give another path"
    return ""


def _listener(path: Path) -> str:
    """Who listens on a unix socket; empty where one that is dead has left it."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        try:
            sock.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return ""
        except BlockingIOError:  # its queue is full
            return "another process"
        pid = 0
        if sys.platform == "linux":
            pid = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED)
        return _process(pid)


def _holder(port: int) -> str:
    """Who listens on a TCP port, as far as the kernel tells this user."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                _, local, _, state, *_, inode = line.split()[:10]
                if state == "0A" and local.endswith(f":{port:04X}"):
                    sockets.add(f"socket:[{inode}]")
    processes = Path("/proc").glob("[0-9]*") if sockets else ()
    for pid in sorted(int(process.name) for process in processes):
        with suppress(OSError):
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                if str(fd.readlink()) in sockets:
                    return _process(pid)
    return "another process"


def _process(pid: int) -> str:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        return f"{' '.join(words).strip():.{SHOWN}} (process {pid})"
    return "another process"
