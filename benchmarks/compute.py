"""What CPU-heavy work does to the rest of the service, measured here: make bench NAME=compute

The same light requests go to the same service at a fixed rate, in turns without and with a compute
pool that is kept busy. A latency counts from the moment at which the request was due; a p99 is the
median of those of the turns, so that one bad second of this machine decides nothing.
"""

import asyncio
import gc
import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing import Process
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import aiohttp
import uvloop
from aiohttp import web

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime"))
from overlay import CODE, PACKAGE

os.environ["PYTHONPATH"] = str(CODE)

Settings: Any = import_module(f"{PACKAGE}.runtime.settings").Settings
client: Any = import_module(f"{PACKAGE}.runtime.compute.client")
primes: Any = import_module(f"{PACKAGE}.tasks").primes

ROUNDS = int(os.environ.get("ROUNDS", "15"))  # of two turns each
TURN = 3.0  # seconds
RATE = 200  # light requests a second
HEAVY = 0.020  # seconds that a heavy task takes on a CPU of its own
MS = 1000


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def service(folder: str, port: int) -> Iterator[None]:
    """`serve` with its defaults, which come from the CPU given."""
    os.environ["COMPUTE_URL"] = f"unix:{folder}/compute.sock"
    env = os.environ | {"PORT": str(port), "ADMIN_PORT": str(free_port()), "LAME_DUCK": "0"}
    env |= {"HOST": "127.0.0.1", "LOG_LEVEL": "error", "ACCESS_LOG": "false"}
    process = subprocess.Popen([sys.executable, "-m", PACKAGE, "serve"], env=env)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def light_turn(port: int) -> list[float]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    latencies = []
    begin = time.perf_counter() + 0.1
    for i in range(int(TURN * RATE)):
        due = begin + i / RATE
        time.sleep(max(due - time.perf_counter(), 0))
        connection.request("GET", "/")
        connection.getresponse().read()
        latencies.append(time.perf_counter() - due)
    connection.close()
    return latencies


def saturate(port: int, limit: int) -> None:
    """Ask for more heavy tasks at a time than there are workers, without an end."""

    async def again(session: aiohttp.ClientSession) -> None:
        while True:
            async with session.get(f"/primes/{limit}") as response:
                await response.read()

    async def many() -> None:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            await asyncio.gather(*[again(session) for _ in range(4 * (os.cpu_count() or 1))])

    asyncio.run(many())


def heavy_limit() -> int:
    """The limit up to which counting primes takes HEAVY seconds here."""
    limit = 1_000_000
    spent = []
    for _ in range(15):
        began = time.process_time()
        primes(limit)
        spent.append(time.process_time() - began)
    return round(limit * HEAVY / min(spent))


def p99(values: list[float]) -> float:
    return quantiles(values, n=100)[98]


def row(what: str, measured: str, wanted: str = "", passed: bool = True) -> bool:
    print(f"{what:<46} {measured:>18}   {wanted:<12}   {'ok' if passed else 'MISSED'}")
    return passed


def be_elsewhere() -> None:
    """Run before all others, as a client on a machine of its own would; children do not inherit it.

    Otherwise half of what is measured is how long this process itself waits for a CPU.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except (AttributeError, PermissionError):
        print("no real-time priority here: the latencies contain waits of the client; try as root")


def light_beside_heavy(port: int, limit: int) -> bool:
    be_elsewhere()
    idle, busy = [], []
    for _ in range(ROUNDS):
        idle.append(light_turn(port))
        heavy = Process(target=saturate, args=(port, limit))
        heavy.start()
        time.sleep(1)
        busy.append(light_turn(port))
        heavy.terminate()
        heavy.join()
        time.sleep(0.5)
    before, during = median(map(p99, idle)), median(map(p99, busy))
    p50 = [median(map(median, turns)) * MS for turns in (idle, busy)]
    row("light p50, pool idle / saturated", "{:.2f} / {:.2f} ms".format(*p50))
    return row(
        "light p99, pool idle / saturated",
        f"{before * MS:.2f} / {during * MS:.2f} ms",
        "<= 1.5 times",
        during <= 1.5 * before,
    )


async def timed(call: Awaitable[object]) -> float:
    began = time.perf_counter()
    await call
    return time.perf_counter() - began


async def calls(limit: int) -> bool:
    context = client.context(Settings.from_env())(web.Application())
    await anext(context)
    added = [await timed(client.run(primes, 10)) for _ in range(500)]
    long = asyncio.create_task(timed(client.run(primes, 25 * limit)))
    await asyncio.sleep(0.05)
    short = [await timed(client.run(primes, 10)) for _ in range(20)]
    overtaken = not long.done()
    seconds = await long
    await anext(context, None)
    return row(
        "time that the pool adds to a task, p50 / p99",
        f"{median(added) * MS:.2f} / {p99(added) * MS:.2f} ms",
        "p50 <= 1 ms",
        median(added) <= 0.001,
    ) & row(
        f"a short task beside one of {seconds:.1f} s, slowest",
        f"{max(short) * MS:.2f} ms",
        "<= 50 ms",
        overtaken and max(short) <= 0.05,
    )


def until_up(port: int) -> None:
    for _ in range(200):
        with suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/primes/10")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.05)
    sys.exit("the service does not answer; its own lines above say why")


def main() -> None:
    gc.disable()
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, service(folder, port):
        until_up(port)
        limit = heavy_limit()
        met = uvloop.run(calls(limit)) & light_beside_heavy(port, limit)
    sys.exit(not met)


if __name__ == "__main__":
    main()
