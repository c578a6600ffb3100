"""What 2,000 slow clients cost everybody else, measured here: make bench NAME=slow_clients

Two workers, with the time-outs that they have by default, are asked 200 times a second by eight
keep-alive clients, in turns: alone, and with 2,000 slow clients open: bodies that stall, heads and
bodies that come byte by byte, readers that do not read, connections without a request. Who is
closed comes again. What counts is the median of the turns' ratios of the p99.

Then what ten scrapes a second cost: the CPU time of all workers with them and without.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from statistics import median, quantiles
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime"))
from conftest import Service
from overlay import CODE
from wire import cpu_seconds

ROUNDS = int(os.environ.get("ROUNDS", "3"))
TURN = 4  # seconds
CLIENTS, EVERY = 8, 0.04  # seconds between two requests of a client
SLOW = 2000
SETTLE = 2  # seconds, as thousands of connections at a time are another matter
KINDS = {  # what a client sends, and what it adds each second
    "bodies that stall": (
        b"POST /body/read HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\na",
        b"",
    ),
    "bodies, byte by byte": (
        b"POST /body/read HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n",
        b"x",
    ),
    "heads, byte by byte": (b"GET / HTTP/1.1\r\nX: ", b"x"),
    "idle": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b""),
    "silent": (b"", b""),
}
NOT_READING = b"GET /body/answer/4194304 HTTP/1.1\r\nHost: a\r\n\r\n"
NOT_READERS = 50


class SlowClient(asyncio.Protocol):
    def __init__(self, sent: bytes, more: bytes, *, reads: bool = True) -> None:
        self._sent, self._more, self._reads = sent, more, reads
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(self._sent)
        if not self._reads:
            transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    async def go_on(self, port: int) -> None:
        if self._transport is not None:
            self._transport.write(self._more)
            return
        with suppress(OSError):
            await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", port)


async def be_slow(port: int) -> None:
    kinds = [*KINDS.values()] * (SLOW // len(KINDS))
    clients = [SlowClient(*kind) for kind in kinds[NOT_READERS:]]
    clients += [SlowClient(NOT_READING, b"", reads=False) for _ in range(NOT_READERS)]
    for number, one in enumerate(cycle(clients)):  # each has its turn once a second
        await one.go_on(port)
        if number % 20 == 0:
            await asyncio.sleep(20 / SLOW)


async def client(port: int, found: list[float], end: float) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    due = time.perf_counter()
    while due < end:
        await asyncio.sleep(due - time.perf_counter())
        writer.write(b"GET /greet/you HTTP/1.1\r\nHost: a\r\n\r\n")
        await reader.readuntil(b"}")
        found.append(time.perf_counter() - due)  # a late one makes those behind it late
        due += EVERY
    writer.close()


async def p99(port: int) -> float:
    """Of the seconds that requests take, from the moment that they were due."""
    found: list[float] = []
    end = time.perf_counter() + TURN
    await asyncio.gather(*(client(port, found, end) for _ in range(CLIENTS)))
    return quantiles(found, n=100)[-1]


def probe(service: Service) -> float:
    """Seconds that the slowest of some probes takes."""
    slowest = 0.0
    for _ in range(10):
        began = time.perf_counter()
        assert service.get("/readyz", admin=True).status == 200
        slowest = max(slowest, time.perf_counter() - began)
    return slowest


def scrapes(service: Service) -> float:
    """CPU seconds a second of all workers for ten scrapes a second."""
    used = []
    for every in (0.1, 0.0):
        before, began = cpu_seconds(service), time.perf_counter()
        while (now := time.perf_counter()) < began + TURN:
            if every:
                service.scrape()
            time.sleep(max(now + (every or 0.1) - time.perf_counter(), 0))
        used.append((cpu_seconds(service) - before) / TURN)
    return used[0] - used[1]


def measure(loop: str, folder: Path) -> None:
    service = Service(folder, CODE, "web", {"EVENT_LOOP": loop, "GRACEFUL_TIMEOUT": "20"})
    calm, busy, probes = [], [], []
    try:
        service.wait_until_live()
        cost = median(scrapes(service) for _ in range(ROUNDS))
        for _ in range(ROUNDS):
            calm.append(asyncio.run(p99(service.port)))
            slow = subprocess.Popen([sys.executable, __file__, str(service.port)])
            try:
                while service.total("worker_connections") < SLOW * 0.95:
                    time.sleep(0.1)
                time.sleep(SETTLE)
                busy.append(asyncio.run(p99(service.port)))
                probes.append(probe(service))
            finally:
                slow.kill()
                slow.wait()
            while service.total("worker_connections") > SLOW / 100:
                time.sleep(0.1)
        slow = subprocess.Popen([sys.executable, __file__, str(service.port)])
        while service.total("worker_connections") < SLOW * 0.95:
            time.sleep(0.1)
        began = time.perf_counter()
        code = service.stop()
        drained = time.perf_counter() - began
        slow.kill()
        slow.wait()
    finally:
        service.kill()
    ratio = median(b / a for a, b in zip(calm, busy, strict=True))
    print(
        f"| {loop} | {median(calm) * 1000:.1f} ms | {median(busy) * 1000:.1f} ms | {ratio:.2f} "
        f"| {max(probes) * 1000:.0f} ms | {drained:.1f} s, exit code {code} | {cost:.1%} |"
    )


def main() -> None:
    print("| loop | p99 calm | with 2,000 | ratio | slowest probe | drain of 20 s | 10 scrapes/s |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for loop in ("uvloop", "asyncio"):
            measure(loop, Path(folder))


if __name__ == "__main__":
    if sys.argv[1:]:
        asyncio.run(be_slow(int(sys.argv[1])))
    else:
        main()
