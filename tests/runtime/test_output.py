"""Whatever becomes of standard output and standard error, requests are answered."""

import asyncio
import fcntl
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from conftest import Service, wait_for
from load import Load

Start = Callable[..., Service]

PAGE = 4096
SAID = re.compile(r"(\d+) log lines were dropped")


class Pipe:
    """A named pipe, read only while somebody wants it."""

    def __init__(self, folder: Path, size: int = 16 * PAGE) -> None:
        self.path = folder / "pipe"
        os.mkfifo(self.path)
        self._reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(self._reader, fcntl.F_SETPIPE_SZ, size)
        self.data = b""

    def read(self) -> list[Any]:
        """All lines that have come so far, which are JSON each."""
        try:
            while more := os.read(self._reader, 1 << 20):
                self.data += more
        except BlockingIOError:
            pass
        whole, _, _ = self.data.rpartition(b"\n")
        return [json.loads(line) for line in whole.splitlines() if line]

    def close(self) -> None:
        os.close(self._reader)

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Have it read a few times a second."""
        enough = Event()

        def follow() -> None:
            while not enough.wait(0.05):
                self.read()

        reader = Thread(target=follow)
        reader.start()
        try:
            yield
        finally:
            enough.set()
            reader.join()


def into(words: str) -> list[str]:
    return ["sh", "-c", f'exec "$@" {words}', "-"]


def lines(pipe: Pipe, logger: str, request_id: str = "") -> int:
    return sum(x["logger"] == logger and request_id in x.get("request_id", "") for x in pipe.read())


@pytest.mark.parametrize("both", [False, True], ids=["stdout", "stdout and stderr"])
def test_a_reader_that_stopped_holds_nobody_up(
    start: Start, tmp_path: Path, loop: str, both: bool
) -> None:
    pipe = Pipe(tmp_path)
    words = f">{pipe.path} 2>&1" if both else f">{pipe.path}"
    service = start("serve", through=into(words), EVENT_LOOP=loop)
    for _ in range(500):  # more than the pipe holds
        assert service.get("/probe/log").status == 200
    wait_for(lambda: service.total("log_lines_dropped_total") > 0)
    assert service.get("/readyz", admin=True).status == 200
    wait_for(lambda: service.get("/primes/100").json()["count"] == 25)
    old = set(service.workers())
    os.kill(max(old), signal.SIGKILL)
    wait_for(lambda: service.live() == 2 and set(service.workers()) != old, 30)
    if not both:
        word = "standard output: nobody reads it"
        assert service.log.read_text().count(word) == 1

    with pipe.followed():
        for turn in ("meanwhile", "after"):
            for _ in range(100):
                service.get("/probe/log", {"X-Request-ID": turn})
            wait_for(lambda turn=turn: lines(pipe, "access", turn) == 100, 30)  # type: ignore[misc]
    assert lines(pipe, "probe", "after") == 100
    lost = service.total("log_lines_dropped_total")
    assert 700 - lines(pipe, "probe") <= lost
    # whoever was killed has not said it
    assert 0 < sum(int(n) for n in SAID.findall(pipe.data.decode())) <= lost

    for _ in range(100):
        service.get("/probe/log")
    assert service.stop() == 0
    pipe.close()


def test_no_access_line_is_lost_while_the_reader_keeps_up(
    start: Start, tmp_path: Path, loop: str
) -> None:
    pipe = Pipe(tmp_path)
    service = start(through=into(f">{pipe.path}"), EVENT_LOOP=loop)

    async def load() -> int:
        clients = Load(service.port)
        clients.start(16)
        await asyncio.sleep(3)
        result = await clients.stop()
        assert not result.failures
        return result.answers[200]

    with pipe.followed():
        answered = asyncio.run(load())
    assert service.total("log_lines_dropped_total") == 0
    wait_for(lambda: sum(x["logger"] == "access" for x in pipe.read()) == answered, 30)
    assert service.stop() == 0
    pipe.close()


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (">&-", "standard output: Bad file descriptor"),
        (">/dev/full", "standard output: No space left on device"),
        (">{pipe}", "standard output: Broken pipe"),
        ("2>&-", ""),
        ("2>/dev/full", ""),
        (">&- 2>&-", ""),
        (">/dev/full 2>&1", ""),
        (">{pipe} 2>&1", ""),
    ],
)
def test_output_that_goes_nowhere_is_said_once(
    start: Start, tmp_path: Path, words: str, word: str
) -> None:
    pipe = Pipe(tmp_path)
    service = start(
        "serve", through=into(words.format(pipe=pipe.path)), wait=False, WORKER_TIMEOUT="2"
    )
    wait_for(lambda: service.live() == 2, 30)
    pipe.close()
    for _ in range(20):
        assert service.get("/").status == 200
        assert service.get("/probe/log").status == 200
        assert service.get("/probe/error").status == 500
    wait_for(lambda: service.get("/primes/100").json().get("count") == 25)
    if not words.startswith("2>"):
        wait_for(lambda: service.total("log_lines_dropped_total") >= 20)
    said = service.log.read_text()
    assert said.count("standard output: ") == bool(word), said
    assert word in said
    assert "Traceback" not in said or words.startswith("2>")
    assert len(said.splitlines()) < 5 or words.startswith("2>")
    if "2>&-" in words:
        with pytest.raises(ConnectionError):
            service.get("/probe/block/60")  # its stack goes to standard error
        wait_for(lambda: service.total("worker_exits_total", reason="timeout") == 1)
    assert service.stop() == 0
