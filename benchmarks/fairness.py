"""How evenly workers share connections, and what it costs, measured here: make bench NAME=fairness

For each event loop, the service and the same service whose loops accept by themselves are asked in
turns: bursts of new keep-alive connections, reconnect storms (all connections are closed and as
many opened, as by a proxy that reloads), new connections beside a blocked worker, and as many
connections of one request each as can be had. Shares are those of the busiest worker over the fair
one, the median and the worst of all turns; rates are compared by the median of the turns' ratios.
"""

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime"))
from conftest import Service, copy_code
from overlay import CODE, PACKAGE

ROUNDS = int(os.environ.get("ROUNDS", "5"))
WORKERS = 4
SIZES = (8, 64, 256)
TURN = 2  # seconds
BY_ITSELF = '''

class _ByItself(Acceptor):
    """What asyncio and uvloop do with a listening socket."""

    def start(self) -> None:
        serve = self._loop.create_server(self._make, sock=self._listener, backlog=2048)
        self._serving = asyncio.ensure_future(serve)

    def stop(self) -> None:
        self._serving.result().close()

    def closed(self) -> None:
        pass


Acceptor = _ByItself
'''

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(port: int) -> Connection:
    return await asyncio.open_connection("127.0.0.1", port)


async def worker(connection: Connection) -> bytes:
    """Who answers on this connection."""
    reader, writer = connection
    writer.write(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    return await reader.readuntil(b"}")


async def share(connections: list[Connection]) -> float:
    workers = Counter([await worker(connection) for connection in connections])
    return max(workers.values()) / (len(connections) / WORKERS)


def close(connections: list[Connection]) -> None:
    for _, writer in connections:
        writer.close()


async def bursts(port: int, size: int) -> tuple[float, float]:
    """The share after a calm burst, and after a storm."""
    calm = list(await asyncio.gather(*(connect(port) for _ in range(size))))
    before = await share(calm)
    close(calm)
    storm = list(await asyncio.gather(*(connect(port) for _ in range(size))))
    after = await share(storm)
    close(storm)
    await asyncio.sleep(0.2)
    return before, after


async def slowest_beside_a_blocked_worker(port: int) -> float:
    """Seconds until the last of 256 new connections was answered."""
    reader, writer = await connect(port)
    writer.write(b"GET /probe/block/2 HTTP/1.1\r\nHost: bench\r\n\r\n")
    await asyncio.sleep(0.3)

    async def answer() -> float:
        began = time.perf_counter()
        connection = await connect(port)
        await worker(connection)
        close([connection])
        return time.perf_counter() - began

    slowest = max(await asyncio.gather(*(answer() for _ in range(256))))
    await reader.readuntil(b"}")
    writer.close()
    await asyncio.sleep(0.2)
    return slowest


def rate(port: int) -> float:
    """Connections of one request each, per second."""
    said = subprocess.check_output(
        [
            "wrk",
            "-t1",
            "-c32",
            f"-d{TURN}s",
            "-H",
            "Connection: close",
            f"http://127.0.0.1:{port}/",
        ],
        text=True,
    )
    found = re.search(r"Requests/sec:\s+([\d.]+)", said)
    assert found, said
    return float(found[1])


def measure(loop: str, folder: Path) -> None:
    plain = copy_code(folder / loop)
    with (plain / PACKAGE / "runtime/process/acceptor.py").open("a") as file:
        file.write(BY_ITSELF)
    env = {"EVENT_LOOP": loop, "WEB_CONCURRENCY": str(WORKERS), "ACCESS_LOG": "false"}
    services = {
        "shared out": Service(folder, CODE, "web", env),
        "by itself": Service(folder, plain, "web", env),
    }
    shares: dict[tuple[str, int, str], list[float]] = {}
    slowest: dict[str, list[float]] = {name: [] for name in services}
    rates: dict[str, list[float]] = {name: [] for name in services}
    try:
        for service in services.values():
            service.wait_until_live()
        for _ in range(ROUNDS):
            for name, service in services.items():
                for size in SIZES:
                    calm, storm = asyncio.run(bursts(service.port, size))
                    shares.setdefault(("calm", size, name), []).append(calm)
                    shares.setdefault(("storm", size, name), []).append(storm)
                slowest[name].append(asyncio.run(slowest_beside_a_blocked_worker(service.port)))
                rates[name].append(rate(service.port))
    finally:
        for service in services.values():
            service.kill()
    print(f"\n{loop}, {WORKERS} workers, {ROUNDS} turns: median (worst)")
    for (kind, size, name), found in shares.items():
        print(f"  {kind:5} {size:3}, {name}: {median(found):.2f} ({max(found):.2f})")
    for name in services:
        print(
            f"  beside a blocked worker, {name}: {median(slowest[name]):.3f} s "
            f"({max(slowest[name]):.3f} s)"
        )
    ours, theirs = rates.values()
    ratio = median(a / b for a, b in zip(ours, theirs, strict=True))
    print(f"  one-request connections: {median(ours):.0f}/s, {ratio:.1%} of the loop's own rate")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for loop in ("uvloop", "asyncio"):
            measure(loop, Path(folder))


if __name__ == "__main__":
    main()
