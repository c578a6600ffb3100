"""What only a worker itself knows of its event loop, noted ten times a second."""

import asyncio
import gc
import time
from collections.abc import Callable
from itertools import count

from . import asked, catalogue, slots, values

TICK = 0.1  # seconds
HEAL = 10  # ticks
WINDOW = 30.0  # seconds; a scrape sees the worst of this window and of the one before


async def watch(connections: Callable[[], int], requests: Callable[[], int]) -> None:
    """Keep the metrics of this worker up to date until cancelled.

    Args:
        connections: how many are open now.
        requests: how many came so far.
    """
    asked.start()
    worker = slots.label()
    catalogue.WORKER_INFO.labels(worker, "web").set(1)
    shown = catalogue.CONNECTIONS.labels(worker)
    came = catalogue.WORKER_REQUESTS.labels(worker)
    counted = 0
    lag = catalogue.LOOP_LAG.labels(worker)
    seen = catalogue.LOOP_SEEN.labels(worker)
    busy = catalogue.LOOP_BUSY.labels(worker)
    generations = [catalogue.GC_RUNS.labels(worker, str(n)) for n in range(len(gc.get_stats()))]
    runs = [0.0] * len(generations)
    worst, worst_before, window = 0.0, 0.0, time.perf_counter()
    before, used = time.perf_counter(), time.thread_time()
    for tick in count():
        if tick % HEAL == 0:
            values.heal()
        shown.set(connections())
        so_far = requests()
        came.inc(so_far - counted)
        counted = so_far
        lag.set(max(worst, worst_before))
        seen.set(time.time())
        for number, (generation, stats) in enumerate(zip(generations, gc.get_stats(), strict=True)):
            if stats["collections"] > runs[number]:
                generation.inc(stats["collections"] - runs[number])
                runs[number] = stats["collections"]
        await asyncio.sleep(TICK)
        now, used_now = time.perf_counter(), time.thread_time()
        late = max(now - before - TICK, 0.0)
        busy.inc(max(late, used_now - used))
        if now - window > WINDOW:
            worst_before, worst, window = worst, 0.0, now
        worst = max(worst, late)
        before, used = now, used_now
