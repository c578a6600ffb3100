"""What CPU and memory this container was given, and how many workers that makes.

Both versions of cgroups are read every time, at every level from our own group up to the root, and
the tightest value counts: a pod's limit may stand above the container's. A path in
/proc/self/cgroup that is not mounted here (cgroup v1 without a namespace) only means missing files.
"""

import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .. import preload
from ..settings import Settings

ROOT = Path("/")
MEMORY_SHARE = 0.8
IDLE_SHARE = 0.5  # of WORKER_MEMORY, which a worker needs without any request
BUFFERS = 2**17  # bytes that a request needs besides its body
LEAST_CONCURRENCY = 16
UNLIMITED = 2**60  # cgroup v1 says "no limit" with a number near 2**63


class Count(NamedTuple):
    """A number of workers and, in words, why it is that."""

    number: int
    reason: str


def _files(controller: str, v2: str, v1: str, root: Path) -> Iterator[Path]:
    """Every file, existing or not, that may hold a value of `controller`, most specific first."""
    base = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    places = [(base, "/", v2), (base / controller, "/", v1)]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            places.append((base, path, v2))
        elif controller in controllers.split(","):
            places += [(base / controllers, path, v1), (base / controller, path, v1)]
    for top, path, name in places:
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            yield top.joinpath(*parts[:depth]) / name


def _read(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def cpu_quota(root: Path = ROOT) -> float | None:
    """CPUs that the cgroups allow, or None where they set no bound."""
    quotas = []
    for path in _files("cpu", "cpu.max", "cpu.cfs_quota_us", root):
        values = _read(path)
        if path.name == "cpu.cfs_quota_us":
            values += _read(path.with_name("cpu.cfs_period_us"))
        try:
            quota, period = map(float, values)
        except ValueError:  # missing, or "max 100000"
            continue
        if quota > 0 and period > 0:  # v1 says "no quota" with -1
            quotas.append(quota / period)
    return min(quotas, default=None)


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes that the cgroups allow, or None where they set no bound."""
    files = _files("memory", "memory.max", "memory.limit_in_bytes", root)
    values = [int(value) for path in files for value in _read(path) if value.isdigit()]
    return min((value for value in values if value < UNLIMITED), default=None)


def oom_kills(root: Path = ROOT) -> int:
    """How many processes of our cgroups the kernel has killed for want of memory so far."""
    kills = 0
    for path in _files("memory", "memory.events", "memory.oom_control", root):
        values = _read(path)
        if "oom_kill" in values:
            kills = max(kills, int(values[values.index("oom_kill") + 1]))
    return kills


def _by_cpu(settings: Settings, root: Path) -> Count:
    quota = cpu_quota(root)
    if quota is not None:
        return Count(math.ceil(quota), f"the CPU quota is {quota:g}")
    cgroups_seen = any(path.exists() for path in _files("cpu", "cpu.max", "cpu.shares", root))
    if settings.cpu_limit and not cgroups_seen:
        return Count(
            math.ceil(settings.cpu_limit / 1000), f"CPU_LIMIT is {settings.cpu_limit / 1000:g}"
        )
    if settings.cpu_request:
        request = settings.cpu_request / 1000
        return Count(
            min(math.ceil(request), 4), f"no CPU quota, and CPU_REQUEST is {request:g} (at most 4)"
        )
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
        return Count(cpus, f"no CPU quota, and this process may use {cpus} CPUs")
    cpus = os.cpu_count() or 1
    return Count(cpus, f"this machine, which is no Linux, has {cpus} CPUs")


def _within_memory(count: Count, settings: Settings, root: Path, pools: int) -> Count:
    limit = memory_limit(root) or settings.memory_limit
    if limit is None:
        return count
    shared = preload.loaded.memory
    fit = max(int((limit * MEMORY_SHARE - shared) / pools / settings.worker_memory), 1)
    if count.number <= fit:
        return count
    return Count(
        fit,
        f"{count.reason}, but {MEMORY_SHARE:.0%} of the memory limit of {limit / 2**20:.0f} MiB"
        + (f", less {shared / 2**20:.0f} MiB that is preloaded," if shared else "")
        + (f" and shared by {pools} pools" if pools > 1 else "")
        + f" holds {fit} of WORKER_MEMORY={settings.worker_memory / 2**20:.0f} MiB",
    )


def web_workers(settings: Settings, root: Path = ROOT, pools: int = 1) -> Count:
    """The number of web workers; a fixed WEB_CONCURRENCY is never overruled.

    Args:
        pools: how many there are within the same memory limit.
    """
    if settings.web_concurrency:
        return Count(settings.web_concurrency, f"WEB_CONCURRENCY is {settings.web_concurrency}")
    return _within_memory(_by_cpu(settings, root), settings, root, pools)


def concurrency(settings: Settings, root: Path = ROOT, pools: int = 1) -> Count:
    """How many requests a web worker may have at work: as many bodies as its memory holds.

    Args:
        pools: how many there are within the same memory limit.
    """
    if settings.max_concurrency:
        return Count(settings.max_concurrency, f"MAX_CONCURRENCY is {settings.max_concurrency}")
    workers = web_workers(settings, root, pools).number
    memory = memory_limit(root) or settings.memory_limit
    reason = "the memory limit"
    if memory is None:
        memory, reason = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "this machine"
    share = (memory * MEMORY_SHARE - preload.loaded.memory) / pools / workers
    room = share - settings.worker_memory * IDLE_SHARE
    number = min(max(int(room / (settings.max_body + BUFFERS)), LEAST_CONCURRENCY), 10**6)
    return Count(
        number,
        f"a worker's {share / 2**20:.0f} MiB of {reason} hold the bodies of {number} requests of "
        f"MAX_BODY={settings.max_body / 2**20:g} MiB",
    )


def compute_workers(settings: Settings, root: Path = ROOT, pools: int = 1) -> Count:
    """The number of compute workers; a fixed COMPUTE_CONCURRENCY is never overruled."""
    if settings.compute_concurrency:
        return Count(
            settings.compute_concurrency, f"COMPUTE_CONCURRENCY is {settings.compute_concurrency}"
        )
    return _within_memory(_by_cpu(settings, root), settings, root, pools)


def open_files() -> Count:
    """How many files a process may open once `raise_open_files` was called; 0 for any number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return Count(0 if soft == hard else soft, "the hard limit is none")
    raised = "" if soft == hard else f", to which the soft one of {soft} is raised"
    return Count(hard, f"that is the hard limit{raised}")


def raise_open_files() -> None:
    """Allow each process from now on as many open files as it may allow itself."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
