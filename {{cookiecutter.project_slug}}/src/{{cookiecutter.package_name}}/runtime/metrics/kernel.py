"""What the kernel knows of each process that counts, read when it is asked for."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from . import slots

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
PROC = Path("/proc")
NAMES = (  # of the samples here, and of the scrape's own
    "process_cpu_seconds",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_open_fds",
    "process_start_time_seconds",
    "metrics_degraded",
    "metrics_folder_size_bytes",
    "metrics_folder_free_bytes",
    "metrics_scrape_seconds",
)


def collect(pids: dict[int, int]) -> Iterator[Metric]:
    """Samples of every process, labelled with its slot, and of the folder they share.

    A process of another container is out of sight.
    """
    worker = ["worker"]
    families: list[Metric] = [
        CounterMetricFamily("process_cpu_seconds", "CPU time used.", labels=worker),
        GaugeMetricFamily("process_resident_memory_bytes", "Memory held.", labels=worker),
        GaugeMetricFamily("process_open_fds", "Open file descriptors.", labels=worker),
        GaugeMetricFamily("process_start_time_seconds", "Start, as Unix time.", labels=worker),
    ]
    for slot, pid in sorted(pids.items()):
        try:
            found = _process(pid)
        except OSError:
            continue  # it has just ended
        for family, value in zip(families, found, strict=True):
            suffix = "_total" if family.type == "counter" else ""
            family.add_sample(family.name + suffix, {"worker": str(slot)}, value)
    yield from families
    yield GaugeMetricFamily(
        "metrics_degraded",
        "1 once a process counts where no scrape can see it.",
        value=slots.losing(),
    )
    try:
        disk = os.statvfs(slots.folder())
    except OSError:
        return
    yield GaugeMetricFamily(
        "metrics_folder_size_bytes", "Room for metrics.", value=disk.f_blocks * disk.f_frsize
    )
    yield GaugeMetricFamily(
        "metrics_folder_free_bytes", "Room left for metrics.", value=disk.f_bavail * disk.f_frsize
    )


@cache
def _boot_time() -> float:
    try:
        lines = (PROC / "stat").read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) for line in lines if line.startswith("btime")), 0.0)


def _process(pid: int) -> tuple[float, float, float, float]:
    if not pid:
        raise ProcessLookupError
    stat = (PROC / f"{pid}/stat").read_text().rpartition(")")[2].split()
    fds = PROC / f"{pid}/fd"
    return (
        (int(stat[11]) + int(stat[12])) / TICKS,
        int(stat[21]) * PAGE,
        # its size is the answer since Linux 6.2
        fds.stat().st_size or len(list(fds.iterdir())),
        _boot_time() + int(stat[19]) / TICKS,
    )
