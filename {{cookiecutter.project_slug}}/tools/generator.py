"""Asks the service as fast as it answers: some connections, on each one request at a time.

Locust is for what users do; what it needs of CPU for a request is more than a worker does. This
plays the requests that Locust made, at a fraction of that. `tune.py` starts as many as needed.
"""

import argparse
import asyncio
import json
import math
import sys
import time
from collections import Counter
from itertools import cycle
from typing import Any, cast

import httptools
import uvloop

FINENESS = 50  # latencies are kept to 2 %


def bytes_of(request: dict[str, Any], host: str) -> bytes:
    body: bytes = request["body"].encode("latin-1")
    path = "/" + request["url"].partition("://")[2].partition("/")[2]
    lines = [f"{request['method']} {path} HTTP/1.1", f"Host: {host}"]
    lines += [f"{key}: {value}" for key, value in request["headers"].items()]
    if body or request["method"] not in ("GET", "DELETE"):
        lines.append(f"Content-Length: {len(body)}")
    head = "\r\n".join([*lines, "", ""])
    return head.encode("latin-1") + body


class Generator:
    def __init__(self, requests: list[dict[str, Any]], port: int) -> None:
        self.port = port
        self.requests = cycle((bytes_of(r, f"127.0.0.1:{port}"), r["status"]) for r in requests)
        self.connecting: set[asyncio.Task[None]] = set()
        self.stopping = False
        self.forget()

    def connect(self) -> None:
        task = asyncio.get_running_loop().create_task(self.connected())
        self.connecting.add(task)
        task.add_done_callback(self.connecting.discard)

    async def connected(self) -> None:
        loop = asyncio.get_running_loop()
        while not self.stopping:
            try:
                await loop.create_connection(lambda: Connection(self), "127.0.0.1", self.port)
            except OSError:
                self.unlike["not connected"] += 1
                await asyncio.sleep(0.1)
            else:
                return

    def forget(self) -> None:
        self.latencies: Counter[int] = Counter()
        self.unlike: Counter[str] = Counter()  # answers that Locust got others in place of


class Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.expected = 0
        self.waits = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.ask()

    def ask(self) -> None:
        request, self.expected = next(self.generator.requests)
        self.parser = httptools.HttpResponseParser(self)
        self.waits = True
        self.begin = time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        took = time.perf_counter() - self.begin
        generator = self.generator
        self.waits = False
        generator.latencies[round(FINENESS * math.log(took))] += 1
        status = self.parser.get_status_code()
        if status != self.expected:
            generator.unlike[str(status)] += 1
        if generator.stopping:
            self.transport.close()
        elif self.parser.should_keep_alive():
            self.ask()
        else:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        generator = self.generator
        if self.waits and not generator.stopping:
            generator.unlike["connection lost"] += 1
        if not generator.stopping:
            generator.connect()


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--warm-up", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args()
    generator = Generator(json.load(sys.stdin), given.port)
    for _ in range(given.connections):
        generator.connect()
    await asyncio.sleep(given.warm_up)
    print("measuring", flush=True)
    generator.forget()
    begin, cpu = time.perf_counter(), time.process_time()
    await asyncio.sleep(given.seconds)
    took, cpu = time.perf_counter() - begin, time.process_time() - cpu
    generator.stopping = True
    result = {
        "seconds": took,
        "cpu": cpu / took,
        "latencies": generator.latencies,
        "unlike": generator.unlike,
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
