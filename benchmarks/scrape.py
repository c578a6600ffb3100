"""What a scrape of 16 processes with 100 routes each costs: make bench NAME=scrape

Its CPU time, the first one and the least of 20, beside that of prometheus_client's own collector,
which is the same each time; and how late it makes an event loop beside it, in turns with the same
loop and no scrape.
"""

import asyncio
import gc
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import prometheus_client
import prometheus_client.values
from prometheus_client.multiprocess import MultiProcessCollector

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime"))
from overlay import PACKAGE

PROCESSES, ROUTES, TURNS = 16, 100, 29
LOOK = 0.0005  # seconds

values: Any = import_module(f"{PACKAGE}.runtime.metrics.values")
exposition: Any = import_module(f"{PACKAGE}.runtime.metrics.exposition")


def count_and_wait(ready: int) -> None:
    count(prometheus_client.CollectorRegistry())
    prometheus_client.values.ValueClass = prometheus_client.values.MultiProcessValue()
    count(prometheus_client.CollectorRegistry())
    os.write(ready, b".")
    signal.pause()


def count(registry: prometheus_client.CollectorRegistry) -> None:
    made = prometheus_client.Counter("made", "Made.", ["route"], registry=registry)
    times = prometheus_client.Histogram("seconds", "Times.", ["route"], registry=registry)
    for route in range(ROUTES):
        made.labels(str(route)).inc()
        times.labels(str(route)).observe(route)


async def latest(work: Callable[[], object]) -> float:
    """The longest that the loop was late, in seconds, while a thread worked."""
    late = [0.0]

    async def watch() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(LOOK)
            late.append(time.perf_counter() - began - LOOK)

    watching = asyncio.create_task(watch())
    await asyncio.to_thread(work)
    watching.cancel()
    return max(late)


def main() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        (Path(folder) / "ours").mkdir()
        values.install(Path(folder) / "ours")
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        done, ready = os.pipe()
        pids = []
        for _ in range(PROCESSES):
            pids.append(os.fork())
            if pids[-1] == 0:
                count_and_wait(ready)
        for _ in pids:
            os.read(done, 1)
        try:
            measure(exposition.Exposition(), folder)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def measure(scraped: Any, folder: str) -> None:
    def scrape() -> float:
        began = time.thread_time()
        scraped.scrape("")
        return time.thread_time() - began

    def scrape_stock() -> float:
        began = time.thread_time()
        registry = prometheus_client.CollectorRegistry()
        MultiProcessCollector(registry, folder)
        prometheus_client.generate_latest(registry)
        return time.thread_time() - began

    # touches what this process shares with the others since the fork, as a worker long has
    gc.collect()
    costs = [scrape() for _ in range(20)]
    stock = min(scrape_stock() for _ in range(5))
    print(f"CPU time: {costs[0] * 1000:.1f} ms at first, then {min(costs) * 1000:.1f} ms")
    print(
        f"  prometheus_client's own collector: {stock * 1000:.1f} ms, so {costs[0] / stock:.2f} and"
        f" {min(costs) / stock:.2f} times that"
    )
    wall = min(costs) * 1.2
    beside = [
        (asyncio.run(latest(scrape)), asyncio.run(latest(lambda: time.sleep(wall))))
        for _ in range(TURNS)
    ]
    with_scrape, without = zip(*beside, strict=True)
    print(f"a loop beside it is late by {median(with_scrape) * 1000:.1f} ms in the median,")
    print(f"  by {median(without) * 1000:.1f} ms beside nothing")


if __name__ == "__main__":
    main()
