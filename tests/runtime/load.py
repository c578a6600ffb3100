"""A load of bare HTTP that forgives nothing: no retry, every answer counted."""

import asyncio
import re
from collections import Counter
from dataclasses import dataclass, field

LENGTH = re.compile(rb"content-length: (\d+)", re.I)
WORKER = re.compile(rb'"worker": (\d+)')


@dataclass
class Result:
    """What came of the requests: answers by status, and what went wrong."""

    answers: Counter[int] = field(default_factory=Counter)
    workers: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class Load:
    """Clients that send one request after the other until they are told to stop."""

    def __init__(
        self, port: int, path: str = "/", *, keep_alive: bool = True, host: str = "127.0.0.1"
    ) -> None:
        self.result = Result()
        self._host, self._port = host, port
        self._keep_alive = keep_alive
        connection = "keep-alive" if keep_alive else "close"
        self._request = f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: {connection}\r\n\r\n"
        self._stop = asyncio.Event()
        self._clients: list[asyncio.Task[None]] = []

    def start(self, clients: int) -> None:
        self._clients = [asyncio.create_task(self._client()) for _ in range(clients)]

    async def stop(self) -> Result:
        self._stop.set()
        await asyncio.gather(*self._clients)
        return self.result

    async def _client(self) -> None:
        while not self._stop.is_set():
            try:
                reader, writer = await asyncio.open_connection(self._host, self._port)
            except OSError as error:
                self.result.failures.append(f"connect: {error!r}")
                await asyncio.sleep(0.01)
                continue
            try:
                while await self._ask(reader, writer) and not self._stop.is_set():
                    pass
            except (OSError, EOFError) as error:
                self.result.failures.append(f"request: {error!r}")
            finally:
                writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Send a request; whether the connection may be used for another."""
        writer.write(self._request.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        self.result.answers[int(head[9:12])] += 1
        if worker := WORKER.search(body):
            self.result.workers[int(worker[1])] += 1
        return self._keep_alive and b"connection: close" not in head.lower()
