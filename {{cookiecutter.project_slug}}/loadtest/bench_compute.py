"""What CPU-heavy work does to the rest of the service, measured here: make bench-compute

The same light requests go to the same service at a fixed rate, in turns without and with a compute
pool that is kept busy. A latency counts from the moment at which the request was due.
"""

import asyncio
import gc
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import aiohttp
import uvloop

PACKAGE = next((Path(__file__).parents[1] / "src").glob("*/__main__.py")).parent.name
client: Any = import_module(f"{PACKAGE}.compute.client")
primes: Any = import_module(f"{PACKAGE}.tasks").primes

ROUNDS = int(os.environ.get("ROUNDS", "5"))  # of two turns each
TURN = 4.0  # seconds
RATE = 150  # light requests a second
HEAVY = 0.020  # seconds of CPU that a heavy task takes


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def service(folder: str) -> Iterator[str]:
    """`serve` with its defaults, which come from the CPU given."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    os.environ["COMPUTE_URL"] = f"unix:{folder}/compute.sock"
    env = os.environ | {"PORT": str(port), "ADMIN_PORT": str(free_port()), "LAME_DUCK": "0"}
    env |= {"HOST": "127.0.0.1", "LOG_LEVEL": "error", "ACCESS_LOG": "false"}
    process = subprocess.Popen([sys.executable, "-m", PACKAGE, "serve"], env=env)
    try:
        yield url
    finally:
        process.terminate()
        process.wait()


async def timed(call: Awaitable[object]) -> float:
    began = time.perf_counter()
    await call
    return time.perf_counter() - began


async def fetch(session: aiohttp.ClientSession, path: str) -> None:
    async with session.get(path) as response:
        response.raise_for_status()
        await response.read()


async def light_turn(session: aiohttp.ClientSession) -> list[float]:
    async def one(due: float) -> float:
        await asyncio.sleep(due - time.perf_counter())
        await fetch(session, "/")
        return time.perf_counter() - due

    begin = time.perf_counter() + 0.1
    return await asyncio.gather(*[one(begin + i / RATE) for i in range(int(TURN * RATE))])


@contextmanager
def saturated(session: aiohttp.ClientSession, limit: int, done: list[float]) -> Iterator[None]:
    """More heavy tasks at a time than there can be workers for."""

    async def again() -> None:
        while True:
            done.append(await timed(fetch(session, f"/primes/{limit}")))

    callers = [asyncio.create_task(again()) for _ in range(4 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for caller in callers:
            caller.cancel()


def heavy_limit() -> int:
    """The limit up to which counting primes takes HEAVY seconds here."""
    limit = 1_000_000
    spent = []
    for _ in range(15):
        began = time.process_time()
        primes(limit)
        spent.append(time.process_time() - began)
    return round(limit * HEAVY / min(spent))


async def until_up(call: Callable[[], Awaitable[object]]) -> None:
    for _ in range(200):
        with suppress(aiohttp.ClientError, client.ComputeError):
            await call()
            return
        await asyncio.sleep(0.05)
    sys.exit("the service does not answer; its own lines above say why")


def p99(values: list[float]) -> float:
    return quantiles(values, n=100)[98]


def row(what: str, measured: str, wanted: str, passed: bool) -> bool:
    print(f"{what:<46} {measured:>22}   {wanted:<14} {'ok' if passed else 'MISSED'}")
    return passed


async def measure(url: str) -> bool:
    limit = heavy_limit()
    idle: list[float] = []
    busy: list[float] = []
    heavy: list[float] = []
    context = client.compute_ctx(aiohttp.web.Application())
    await anext(context)
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:
        await until_up(lambda: fetch(session, "/"))
        await until_up(lambda: client.run(primes, 10))
        added = [await timed(client.run(primes, 10)) for _ in range(500)]

        long = asyncio.create_task(timed(client.run(primes, 25 * limit)))
        await asyncio.sleep(0.05)
        short = [await timed(client.run(primes, 10)) for _ in range(20)]
        overtaken = not long.done()
        long_took = await long

        for _ in range(ROUNDS):
            idle += await light_turn(session)
            with saturated(session, limit, heavy):
                await asyncio.sleep(0.3)
                busy += await light_turn(session)
            await asyncio.sleep(0.5)
    await anext(context, None)

    ms = 1000
    ratio = p99(busy) / p99(idle)
    print(f"heavy tasks: {len(heavy)}, {len(heavy) / ROUNDS / (TURN + 0.4):.0f} a second\n")
    passed = [
        row(
            "light p99, pool idle / saturated",
            f"{p99(idle) * ms:.2f} / {p99(busy) * ms:.2f} ms",
            "<= 1.5 times",
            ratio <= 1.5,
        ),
        row(
            "light p50, pool idle / saturated",
            f"{median(idle) * ms:.2f} / {median(busy) * ms:.2f} ms",
            "",
            True,
        ),
        row(
            "time that the pool adds to a task, p50 / p99",
            f"{median(added) * ms:.2f} / {p99(added) * ms:.2f} ms",
            "p50 <= 1 ms",
            median(added) <= 0.001,
        ),
        row(
            f"a short task beside one of {long_took:.2f} s, slowest",
            f"{max(short) * ms:.2f} ms",
            "<= 50 ms",
            overtaken and max(short) <= 0.05,
        ),
    ]
    return all(passed)


if __name__ == "__main__":
    gc.disable()
    with tempfile.TemporaryDirectory() as folder, service(folder) as url:
        met = uvloop.run(measure(url))
    sys.exit(not met)
