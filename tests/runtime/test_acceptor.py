"""Connections are shared out when a proxy comes back with all of them at once, too."""

import asyncio
import statistics
from collections import Counter
from collections.abc import Callable

from conftest import SOAK, Service

Start = Callable[..., Service]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def test_a_reconnect_storm_is_shared_out(start: Start, loop: str) -> None:
    """As many connections are opened as are closed in the same moment."""
    service = start(EVENT_LOOP=loop, WEB_CONCURRENCY="4", ACCESS_LOG="false")

    async def connect(number: int) -> list[Streams]:
        opening = (asyncio.open_connection("127.0.0.1", service.port) for _ in range(number))
        return list(await asyncio.gather(*opening))

    async def share(connections: list[Streams]) -> float:
        workers: Counter[bytes] = Counter()
        for reader, writer in connections:
            writer.write(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            workers[await reader.readuntil(b"}")] += 1
        return max(workers.values()) / (len(connections) / 4)

    async def storms(size: int) -> list[float]:
        connections, shares = await connect(size), []
        for _ in range(6):
            for _, writer in connections:
                writer.close()
            connections = await connect(size)
            shares.append(await share(connections))
        for _, writer in connections:
            writer.close()
        await asyncio.sleep(0.2)
        return shares

    for size in (8, 64, 256):
        shares = asyncio.run(storms(size))
        # on a busy machine, a worker may be kept from its share for too long in some of them
        assert (statistics.median if SOAK else min)(shares) <= 1.5, (size, shares)
