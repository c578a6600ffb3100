"""What is left of a service at three times its capacity, measured here: make bench NAME=overload

A request waits 50 ms for something else and then holds its worker's loop for 5 ms. Two workers are
asked by closed loops (48 clients, each with one request at a time, which find the peak; then three
times as many) and by an open one (nine tenths of the peak, then three times the peak, whether or
not the others were answered). Goodput is what was answered with 200.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from statistics import quantiles
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime"))
from conftest import Service, copy_code
from overlay import PACKAGE

TURN = int(os.environ.get("TURN", "8"))  # seconds
CLIENTS = 48
PATIENCE = 30.0  # seconds of a client
LIMITS = ("", "32")  # MAX_CONCURRENCY
WORK = """

@routes.get("/probe/work")
async def work(request: web.Request) -> web.Response:
    await asyncio.sleep(0.05)
    time.sleep(0.005)
    return web.json_response({})
"""


class Counts:
    def __init__(self) -> None:
        self.good: list[float] = []  # seconds that each took
        self.refused: list[float] = []
        self.failed = 0

    async def ask(self, port: int) -> bool:
        """One request on a connection of its own; whether it was answered with 200."""
        began = time.perf_counter()
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /probe/work HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                head = await reader.readuntil(b"\r\n")
                writer.close()
        except (OSError, EOFError, TimeoutError):
            self.failed += 1
            return False
        good = b" 200 " in head
        (self.good if good else self.refused).append(time.perf_counter() - began)
        return good


async def closed(port: int, clients: float) -> Counts:
    counts, end = Counts(), time.perf_counter() + TURN

    async def client() -> None:
        while time.perf_counter() < end:
            if not await counts.ask(port):
                await asyncio.sleep(1)  # what Retry-After says

    await asyncio.gather(*(client() for _ in range(int(clients))))
    return counts


async def opened(port: int, rate: float) -> Counts:
    counts, requests = Counts(), []
    began = time.perf_counter()
    for number in range(int(rate * TURN)):
        await asyncio.sleep(max(began + number / rate - time.perf_counter(), 0))
        requests.append(asyncio.create_task(counts.ask(port)))
    await asyncio.gather(*requests)
    return counts


def p99(seconds: list[float]) -> str:
    return f"{quantiles(seconds, n=100)[-1] * 1000:.0f} ms" if len(seconds) > 1 else "-"


def measure(loop: str, limit: str, folder: Path) -> None:
    code = copy_code(folder / f"{loop}{limit}")
    with (code / PACKAGE / "probes.py").open("a") as file:
        file.write(WORK)
    env = {"EVENT_LOOP": loop, "MAX_CONCURRENCY": limit, "ACCESS_LOG": "false"}
    service = Service(folder, code, "web", env)

    def show(name: str, load: Coroutine[Any, Any, Counts]) -> float:
        began = time.perf_counter()
        counts = asyncio.run(load)
        rate = len(counts.good) / (time.perf_counter() - began)
        print(
            f"| {loop} | {limit or 'unset'} | {name} | {rate:.0f}/s | {p99(counts.good)} "
            f"| {len(counts.refused)}, {p99(counts.refused)} | {counts.failed} |",
            flush=True,
        )
        return rate

    try:
        service.wait_until_live()
        peak = show("closed, peak", closed(service.port, CLIENTS))
        show("closed, 3 times", closed(service.port, 3 * CLIENTS))
        show("open, 0.9 times", opened(service.port, 0.9 * peak))
        show("open, 3 times", opened(service.port, 3 * peak))
    finally:
        service.kill()


def main() -> None:
    print("| loop | MAX_CONCURRENCY | load | goodput | its p99 | 503, their p99 | failed |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for loop in ("uvloop", "asyncio"):
            for limit in LIMITS:
                measure(loop, limit, Path(folder))


if __name__ == "__main__":
    main()
