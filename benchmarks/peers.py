"""This service beside what one would use instead: make bench NAME=peers

Two routes that answer with JSON, one worker each, at three levels: bare; metrics that can be summed
over workers; metrics, a JSON access log and request ids, as the docs of each recommend them (full)
and as well as can be done by hand in public ways (tuned). What counts is the CPU time of all their
processes for a request at 32 connections, beside that of this service, which serves all the time
and is loaded in turns with each of them; latency is that at a fixed rate. What was measured is kept
in build/peers.json, and each call adds ROUNDS, each in another order; the command ends with
docs/performance.md, written anew. ONLY=starlette,flask tries a part of them.
"""

import asyncio
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import aiohttp
import uvloop

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime"))
from overlay import CODE, PACKAGE

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).with_name("peers")
KEPT = ROOT / "build" / "peers.json"
ROUNDS = int(os.environ.get("ROUNDS", "1"))
ONLY = os.environ.get("ONLY", "")
TURNS, TURN, WARM_UP = 5, 1, 1  # how many; seconds
RATE, PACED = 1000, 1  # requests a second, seconds
CONNECTIONS = 32
TICKS = os.sysconf("SC_CLK_TCK")
LOAD = """
local paths, n = {"/", "/greet/you"}, 0
request = function() n = n + 1; return wrk.format("GET", paths[n % 2 + 1]) end
"""
LOG_FORMAT = '{"time":"%(t)s","method":"%(m)s","path":"%(U)s","status":%(s)s,"seconds":%(L)s}'
GRANIAN_FORMAT = (
    '{"time":"[%(time)s]","method":"%(method)s","path":"%(path)s","status":%(status)d,'
    '"ms":%(dt_ms).3f}'
)
LEVELS = {
    "ours": ["full"],
    "aiohttp": ["bare", "metrics", "full"],
    "starlette": ["bare", "metrics", "full", "tuned"],
    "fastapi": ["bare", "metrics", "full", "tuned"],
    "litestar": ["bare", "metrics", "full", "tuned"],
    "blacksheep": ["bare", "metrics", "full", "tuned"],
    "sanic": ["bare", "metrics", "full"],
    "robyn": ["bare", "metrics", "full"],
    "flask": ["bare", "metrics", "full"],
}
APART = ("sanic", "robyn")  # they want other versions of what the others have


class Measured(NamedTuple):
    cost: float  # microseconds of CPU for a request
    ratios: list[float]  # of it to ours in the turn before
    throughput: float
    p50: float  # milliseconds, at RATE
    p99: float
    start: float  # seconds from the command to the first answer
    pss: float  # MiB


def environment(name: str) -> Path:
    """The folder of commands of an environment that holds the peers, made on first use."""
    folder = ROOT / "build" / name
    pins = HERE / f"{name.replace('peers', 'requirements')}.txt"
    mark = folder / "installed"
    if not mark.exists() or mark.read_text() != pins.read_text():
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "-q", "--clear", "-p", sys.executable, folder], check=True)
        install = [*uv, "pip", "install", "-q", "-p", folder / "bin/python", "--require-hashes"]
        subprocess.run([*install, "--compile-bytecode", "-r", pins], check=True)
        mark.write_text(pins.read_text())
    return folder / "bin"


def command(stack: str, level: str, port: int) -> tuple[list[str], dict[str, str]]:
    """How its docs start one worker, and the environment beside LEVEL."""
    if stack == "ours":
        settings = {"PORT": str(port), "ADMIN_PORT": str(free_port()), "WEB_CONCURRENCY": "1"}
        settings |= {"HOST": "127.0.0.1", "ADMIN_HOST": "127.0.0.1", "LOG_FORMAT": "json"}
        settings |= {"LAME_DUCK": "0", "PYTHONPATH": str(CODE)}
        return [sys.executable, "-m", PACKAGE, "web"], settings
    programs = environment("peers-apart" if stack in APART else "peers")
    app = f"{stack}_app:app"
    logs = level == "full"
    gunicorn = [f"{programs}/gunicorn", app, "--bind", f"127.0.0.1:{port}", "--workers", "1"]
    uvicorn = [f"{programs}/uvicorn", app, "--host", "127.0.0.1", "--port", str(port)]
    granian = [f"{programs}/granian", app, "--interface", "asgi", "--port", str(port)]
    granian += ["--host", "127.0.0.1", "--loop", "uvloop", "--no-ws"]
    match stack:
        case "aiohttp":
            gunicorn += ["--worker-class", "aiohttp.GunicornUVLoopWebWorker", "--keep-alive", "75"]
            return gunicorn, {}
        case "flask":
            gunicorn += ["--worker-class", "gthread", "--threads", "4", "--keep-alive", "75"]
            if logs:
                gunicorn += ["--access-logfile", "-", "--access-logformat", LOG_FORMAT]
            return gunicorn, {}
        case "starlette" | "fastapi":
            if logs:
                return [*uvicorn, "--log-config", str(HERE / "uvicorn_log.json")], {}
            return [*uvicorn, "--no-access-log", "--log-level", "warning"], {}
        case "litestar" | "blacksheep":
            if logs:
                granian += ["--access-log", "--access-log-fmt", GRANIAN_FORMAT]
            return granian, {}
        case "sanic":
            sanic = [f"{programs}/sanic", app, "--host", "127.0.0.1", "--port", str(port)]
            sanic += ["--workers", "1", "--no-motd"]
            return [*sanic, "--access-logs" if logs else "--no-access-logs"], {}
        case _:
            return [f"{programs}/python", f"{stack}_app.py", "--log-level", "WARN"], {
                "PORT": str(port)
            }


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in (thread / "children").read_text().split():
            found += tree(int(child))
    return found


def cpu_seconds(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(stat[11]) + int(stat[12])
    return total / TICKS


def pss(pids: list[int]) -> float:
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    found = [re.search(r"^Pss: +(\d+)", text, re.M) for text in texts]
    return sum(int(match[1]) for match in found if match) / 1024


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
            return b" 200 " in sock.recv(100)
    except OSError:
        return False


@contextmanager
def server(stack: str, level: str, **more: str) -> Iterator[tuple[int, int, float]]:
    """Its port, its process, and how long it took to answer."""
    port = free_port()
    words, settings = command(stack, level, port)
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as folder:
        own = {"LEVEL": level} | ({"PROMETHEUS_MULTIPROC_DIR": folder} if level != "bare" else {})
        own |= {"PYTHONPATH": str(HERE), **settings} if stack != "ours" else settings
        own |= more
        # a start that compiles what it imports is not what users have
        env = {name: os.environ[name] for name in os.environ.keys() - {"PYTHONDONTWRITEBYTECODE"}}
        begin = time.perf_counter()
        process = subprocess.Popen(
            words, env=env | own, cwd=HERE, stdout=log, stderr=log, process_group=0
        )
        try:
            while not answers(port):
                if process.poll() is not None or time.perf_counter() > begin + 60:
                    log.seek(0)
                    sys.exit(f"{stack} {level} did not start:\n{log.read().decode()[-3000:]}")
                time.sleep(0.005)
            yield port, process.pid, time.perf_counter() - begin
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def wrk(port: int, seconds: int, script: str) -> int:
    """Requests that were answered."""
    words = ["wrk", "-t1", "-c", str(CONNECTIONS), "-d", f"{seconds}s", "-s", script]
    said = subprocess.run(
        [*words, f"http://127.0.0.1:{port}/"], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"(\d+) requests in", said)
    if found is None or "Non-2xx" in said:
        sys.exit(f"wrk went wrong:\n{said}")
    return int(found[1])


async def paced(port: int) -> list[float]:
    """Milliseconds of each request at a fixed rate, from when it was due: nothing waits unseen."""
    took: list[float] = []
    connector = aiohttp.TCPConnector(limit=CONNECTIONS)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector) as session:

        async def ask(due: float, path: str) -> None:
            async with session.get(path) as response:
                await response.read()
            took.append((time.perf_counter() - due) * 1e3)

        begin = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(RATE * PACED):
                due = begin + number / RATE
                if (left := due - time.perf_counter()) > 0:
                    await asyncio.sleep(left)
                group.create_task(ask(due, ("/", "/greet/you")[number % 2]))
    return sorted(took[RATE // 10 :])


def cost(port: int, pid: int, script: str) -> tuple[float, float]:
    """Microseconds of CPU for a request, and requests a second."""
    pids = tree(pid)
    before, begin = cpu_seconds(pids), time.perf_counter()
    done = wrk(port, TURN, script)
    took, spent = time.perf_counter() - begin, cpu_seconds(pids) - before
    return spent / done * 1e6, done / took


def measure(stack: str, level: str, script: str, ours: tuple[int, int]) -> Measured:
    with server(stack, level) as (port, pid, start):
        wrk(port, WARM_UP, script)
        costs, rates, ratios = [], [], []
        for _ in range(TURNS):
            reference, _ = cost(*ours, script)
            its_cost, rate = cost(port, pid, script)
            costs.append(its_cost)
            rates.append(rate)
            ratios.append(its_cost / reference)
        memory = pss(tree(pid))
        times = uvloop.run(paced(port))
    p50, p99 = (times[int(len(times) * share)] for share in (0.50, 0.99))
    return Measured(median(costs), ratios, median(rates), p50, p99, start, memory)


def versions() -> dict[str, str]:
    ask = (
        "import importlib.metadata as m, json, sys;"
        "print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    )
    found: dict[str, str] = {}
    listed = ["aiohttp", "starlette", "fastapi", "uvicorn", "litestar", "blacksheep", "granian"]
    listed += ["flask", "gunicorn", "uvloop", "prometheus-client", "msgspec"]
    for name, packages in (("peers", listed), ("peers-apart", ["sanic", "robyn"])):
        python = [environment(name) / "python", "-c", ask, *packages]
        found |= json.loads(subprocess.check_output(python))
    return found


def machine() -> str:
    text = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", text, re.M)
    cpus = len(os.sched_getaffinity(0))
    return (
        f"{cpus} shared CPUs ({model[1] if model else platform.machine()}),"
        f" Linux {platform.release().split('-')[0]}, CPython {platform.python_version()}"
    )


def load() -> dict[str, Any]:
    """What was measured of the same code."""
    if KEPT.exists():
        kept: dict[str, Any] = json.loads(KEPT.read_text())
        return kept
    return {"machine": machine(), "versions": versions(), "rounds": []}


def main() -> None:
    subjects = [f"{stack} {level}" for stack, levels in LEVELS.items() for level in levels]
    if ONLY:
        subjects = [s for s in subjects if s.split()[0] in ONLY.split(",")]
    kept = load()
    with (
        tempfile.NamedTemporaryFile("w", suffix=".lua") as script,
        server("ours", "full") as (port, pid, _),
    ):
        script.write(LOAD)
        script.flush()
        wrk(port, WARM_UP, script.name)
        for number in range(ROUNDS):
            found: dict[str, Measured] = {}
            first = len(kept["rounds"]) * 11 % len(subjects)
            kept["rounds"].append(found)
            for subject in subjects[first:] + subjects[:first]:
                stack, level = subject.split()
                found[subject] = measure(stack, level, script.name, (port, pid))
                KEPT.parent.mkdir(exist_ok=True)
                KEPT.write_text(json.dumps(kept))
                values = found[subject]
                print(
                    f"round {number + 1} of {ROUNDS}: {subject:18} {values.cost:6.1f} us,"
                    f" {median(values.ratios):5.2f} of ours,"
                    f" {values.throughput:7,.0f}/s, p99 {values.p99:5.1f} ms,"
                    f" first answer {values.start:4.2f} s, {values.pss:4.0f} MiB",
                    flush=True,
                )
    if not ONLY:
        plot = [environment("peers") / "python", HERE / "document.py", KEPT, ROOT / "docs"]
        subprocess.run(plot, check=True)


if __name__ == "__main__":
    main()
