"""What a call of a task costs, and 10 MB there and back: make bench NAME=payload

The CPU of a small call is that of all processes; BEFORE=/path/of/another/generated/project, with
its .venv, is measured in turns with it. The 10 MB are compared, in turns, with a plain socket over
which they are sent and received both ways.
"""

import asyncio
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

TURNS = int(os.environ.get("TURNS", "15"))
CALLS = 400  # of a small task in a turn
SIZE = 10_000_000  # bytes
RUNTIME_TESTS = Path(__file__).parents[1] / "tests" / "runtime"


def own_cpu(pid: int) -> float:
    """Seconds of CPU of this process."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def cpu(pid: int) -> float:
    """The same with those below it."""
    below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own_cpu(pid) + sum(map(cpu, map(int, below)))


# --- a pool and its client, in the environment of a project


def serve(with_payloads: bool) -> None:
    """Do on standard input's demand what it names, and print what it took."""
    sys.path.insert(0, str(RUNTIME_TESTS))
    overlay = import_module("overlay")
    code, package = overlay.CODE, overlay.PACKAGE
    if with_payloads:
        with (code / package / "tasks.py").open("a") as file:
            file.write("\n\nfrom . import payload_tasks\n")
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"PYTHONPATH": str(code), "COMPUTE_URL": f"unix:{folder}/compute.sock"}
        os.environ |= {"COMPUTE_CONCURRENCY": "1", "COMPUTE_MAX_TASKS": "0", "LOG_LEVEL": "error"}
        process = subprocess.Popen([sys.executable, "-m", package, "compute"])
        try:
            import_module("uvloop").run(answer(package, with_payloads))
        finally:
            process.terminate()
            process.wait()


async def answer(package: str, with_payloads: bool) -> None:
    client: Any = import_module(f"{package}.runtime.compute.client")
    settings: Any = import_module(f"{package}.runtime.settings").Settings.from_env()
    tasks: Any = import_module(f"{package}.tasks")
    context = client.context(settings)(None)
    await anext(context)
    while True:
        try:
            await client.run(tasks.primes, 10)
            break
        except client.PoolDownError:
            await asyncio.sleep(0.05)
    data = os.urandom(SIZE)

    async def small() -> float:
        began = cpu(os.getpid())
        for _ in range(CALLS):
            assert await client.run(tasks.primes, 10) == 4
        return (cpu(os.getpid()) - began) / CALLS

    async def large() -> tuple[float, float]:
        began, spent = time.perf_counter(), cpu(os.getpid())
        back = await client.run(tasks.payload_tasks.echo, data)
        took = time.perf_counter() - began, cpu(os.getpid()) - spent
        assert back == data
        return took

    turns: dict[str, Callable[[], Awaitable[object]]] = {"small": small, "large": large}
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(await turns[line.strip()]()), flush=True)
    await anext(context, None)


class Project:
    """A child process that runs `serve`."""

    def __init__(self, path: Path, *, payloads: bool) -> None:
        command = [path / ".venv/bin/python", __file__, "payloads" if payloads else "small"]
        env = os.environ | {"PROJECT": str(path)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True)
        self.read()

    def read(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def measure(self, what: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self.read()


# --- the plain socket


def receive(sock: socket.socket) -> bytearray:
    data = bytearray(SIZE)
    view, got = memoryview(data), 0
    while got < SIZE:
        got += sock.recv_into(view[got:])
    return data


def echo(listener: socket.socket) -> None:
    os.nice(10)  # as tasks have it
    while True:
        caller = listener.accept()[0]
        with caller:
            caller.sendall(receive(caller))


def plain(path: str, data: bytes, other: int) -> tuple[float, float]:
    began, spent = time.perf_counter(), own_cpu(os.getpid()) + own_cpu(other)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.sendall(data)
        back = receive(sock)
    took = time.perf_counter() - began, own_cpu(os.getpid()) + own_cpu(other) - spent
    assert back == data
    return took


def main() -> None:
    now = Project(Path(os.environ["PROJECT"]).resolve(), payloads=True)
    before = Project(Path(b), payloads=False) if (b := os.environ.get("BEFORE")) else None
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = f"{folder}/plain.sock"
        listener.bind(path)
        listener.listen()
        echoing = multiprocessing.get_context("fork").Process(target=echo, args=(listener,))
        echoing.start()
        data = os.urandom(SIZE)
        small, earlier, sockets, large = [], [], [], []
        for _ in range(TURNS):
            small.append(now.measure("small"))
            if before:
                earlier.append(before.measure("small"))
            for _ in range(3):
                sockets.append(plain(path, data, echoing.pid or 0))
                large.append(now.measure("large"))
        echoing.kill()
    print(f"a small call: {median(small) * 1e6:.0f} us of CPU in all processes")
    if before:
        ratio = median(a / b for a, b in zip(small, earlier, strict=True))
        print(f"  before: {median(earlier) * 1e6:.0f} us; now / before: {ratio:.2f}")
    missed = False
    for what, kind in enumerate(("of the clock", "of CPU in all processes")):
        pairs = [(there[what], here[what]) for there, here in zip(large, sockets, strict=True)]
        ratio = median(a / b for a, b in pairs)
        missed |= ratio > 3
        print(
            f"10 MB there and back, {kind}: {median(a for a, _ in pairs) * 1e3:.1f} ms, over a "
            f"plain socket {median(b for _, b in pairs) * 1e3:.1f} ms: {ratio:.2f} times (<= 3)"
        )
    sys.exit(missed)


if __name__ == "__main__":
    if sys.argv[1:]:
        serve(sys.argv[1] == "payloads")
    else:
        main()
