"""A client that sends what no library would."""

import http.client
import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from conftest import Service, descendants

TICKS = os.sysconf("SC_CLK_TCK")


class Wire:
    """One connection."""

    def __init__(self, port: int, timeout: float = 60) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self, method: str, path: str, **headers: str) -> None:
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send("\r\n".join([f"{method} {path} HTTP/1.1", "Host: a", *lines, "", ""]).encode())

    def answer(self) -> "Answer":
        response = http.client.HTTPResponse(self.socket)
        response.begin()
        return Answer(response)

    def until_closed(self) -> bytes:
        """All that comes until the other side ends it, whichever way."""
        said = b""
        with suppress(ConnectionError):
            while data := self.socket.recv(2**16):
                said += data
        return said


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.closes = response.will_close
        self.body = response.read()

    def json(self) -> Any:
        return json.loads(self.body)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def cpu_seconds(service: Service) -> float:
    """What its processes have used, without those that are gone."""
    total = 0.0
    for pid in descendants(service.process.pid):
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(stat[11]) + int(stat[12])) / TICKS
    return total
