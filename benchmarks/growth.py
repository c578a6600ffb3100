"""How the service grows with workers and connections: make bench NAME=growth

CPU a request with more workers and more connections; then, with connections that are open and idle,
how long it takes to accept them all, to be scraped, and to drain; then what pods of so many CPUs
give, each in a cgroup with its quota, which takes root. Kept in build/growth.json, and written into
docs/performance.md.
"""

import asyncio
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple
from urllib.request import urlopen

import uvloop
from peers import (
    HERE,
    KEPT,
    LOAD,
    ROOT,
    cpu_seconds,
    environment,
    free_port,
    machine,
    server,
    tree,
    wrk,
)

ROUNDS = int(os.environ.get("ROUNDS", "1"))
TURN, LONG_TURN = 2, 10  # seconds; the latter from 1,000 connections on
WORKERS = (1, 2, 4, 8)
PODS = [(1, 0.25), (2, 0.25), (4, 0.25), (1, 0.5), (2, 0.5)]  # how many, and the CPUs of each
CONNECTIONS = (1, 10, 100, 1000, 10000)
HELD = [(1, 10), (2, 10), (2, 1000), (2, 10000), (4, 1000), (16, 1000), (64, 1000)]
MOST = {"MAX_CONNECTIONS": "20000", "MAX_CONCURRENCY": "20000", "BACKLOG": "4096"}


class Load(NamedTuple):
    cost: float  # microseconds
    throughput: float
    p99: str


def load(workers: int, connections: int, script: str) -> Load:
    settings = {"WEB_CONCURRENCY": str(workers), **MOST}
    with server("ours", "full", **settings) as (port, pid, _):
        words = ["wrk", "-t1", "-c", str(connections), "--latency", "-s", script, "--timeout", "10"]
        words += [f"http://127.0.0.1:{port}/"]
        subprocess.run([*words, "-d1s"], capture_output=True, check=True)
        pids = tree(pid)
        before = cpu_seconds(pids)
        seconds = TURN if connections < 1000 else LONG_TURN
        said = subprocess.run([*words, f"-d{seconds}s"], capture_output=True, text=True, check=True)
        spent = cpu_seconds(pids) - before
    found = re.search(r"(\d+) requests in ([\d.]+)s", said.stdout)
    late = re.search(r"99% +(\S+)", said.stdout)
    if found is None or late is None or "Non-2xx" in said.stdout:
        sys.exit(f"wrk went wrong:\n{said.stdout}")
    if found[1] == "0":
        sys.exit(f"nothing was answered at {connections} connections:\n{said.stdout}")
    return Load(spent / int(found[1]) * 1e6, int(found[1]) / float(found[2]), late[1])


class Held(NamedTuple):
    accept: float  # seconds until each of the connections had an answer
    scrape: float  # seconds
    drain: float  # seconds from SIGTERM to the end


async def hold(port: int, admin: int, pid: int, connections: int) -> Held:
    async def connect() -> asyncio.StreamWriter:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        return writer

    def scrape() -> float:
        begin = time.perf_counter()
        urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=60).read()
        return time.perf_counter() - begin

    def end() -> float:
        begin = time.perf_counter()
        os.kill(pid, signal.SIGTERM)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return time.perf_counter() - begin

    begin = time.perf_counter()
    writers = await asyncio.gather(*(connect() for _ in range(connections)))
    accept = time.perf_counter() - begin
    scrapes = [await asyncio.to_thread(scrape) for _ in range(5)]
    drain = await asyncio.to_thread(end)
    for writer in writers:
        writer.close()
    return Held(accept, median(scrapes), drain)


def held(workers: int, connections: int) -> Held:
    admin = free_port()
    settings = {"WEB_CONCURRENCY": str(workers), "ADMIN_PORT": str(admin), **MOST}
    with server("ours", "full", **settings) as (port, pid, _):
        ready = f"http://127.0.0.1:{admin}/metrics"
        while f'workers{{state="live"}} {workers}.0' not in urlopen(ready).read().decode():
            time.sleep(0.1)
        return uvloop.run(hold(port, admin, pid, connections))


@contextmanager
def quota(cpus: float) -> Iterator[Callable[[int], object]]:
    """A cgroup with so much CPU; what is given puts a process into it."""
    v2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    group = Path(tempfile.mkdtemp(prefix="growth-", dir="/sys/fs/cgroup" + "/cpu" * (not v2)))
    try:
        bound = group / ("cpu.max" if v2 else "cpu.cfs_quota_us")
        bound.write_text(f"{cpus * 100_000:.0f}")  # microseconds of the 100 ms that are the default
        yield lambda pid: (group / "cgroup.procs").write_text(str(pid))
    finally:
        group.rmdir()


def pods(number: int, cpus: float, script: str) -> float:
    """Requests a second of so many services with one worker each, asked at the same time."""
    settings = {"WEB_CONCURRENCY": "1", **MOST}
    with ExitStack() as stack:
        ports = []
        for _ in range(number):
            confine = stack.enter_context(quota(cpus))
            port, pid, _ = stack.enter_context(server("ours", "full", **settings))
            for process in tree(pid):
                confine(process)
            ports.append(port)
        threads = stack.enter_context(ThreadPoolExecutor())
        return sum(threads.map(lambda port: wrk(port, 2 * TURN, script), ports)) / (2 * TURN)


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    loads: dict[tuple[int, int], list[Load]] = {}
    kinds = [(n, 32) for n in WORKERS] + [(1, n) for n in CONNECTIONS]
    rests: dict[tuple[int, int], list[Held]] = {}
    rates: dict[tuple[int, float], list[float]] = {}
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(LOAD)
        script.flush()
        for turn in range(ROUNDS):
            for kind in kinds[turn:] + kinds[:turn]:
                loads.setdefault(kind, []).append(load(*kind, script.name))
                print(kind, loads[kind][-1], flush=True)
            for kind in HELD[turn:] + HELD[:turn]:
                rests.setdefault(kind, []).append(held(*kind))
                print(kind, rests[kind][-1], flush=True)
            for pod in PODS if os.geteuid() == 0 else ():
                rates.setdefault(pod, []).append(pods(*pod, script.name))
                print(pod, rates[pod][-1], flush=True)
    KEPT.with_name("growth.json").write_text(json.dumps({"text": text(loads, rests, rates)}))
    if KEPT.exists():
        write = [environment("peers") / "python", HERE / "document.py", KEPT, ROOT / "docs"]
        subprocess.run(write, check=True)


def text(
    loads: dict[tuple[int, int], list[Load]],
    rests: dict[tuple[int, int], list[Held]],
    rates: dict[tuple[int, float], list[float]],
) -> str:
    lines = [f"On {machine()}, of which the load generator needs one; medians; rounds: {ROUNDS}."]
    lines += ["", "| workers | connections | CPU a request, µs | requests/s | p99 |"]
    lines += ["|---|---|---|---|---|"]
    for (workers, connections), runs in loads.items():
        cost = median(run.cost for run in runs)
        rate = median(run.throughput for run in runs)
        lines.append(f"| {workers} | {connections:,} | {cost:.0f} | {rate:,.0f} | {runs[0].p99} |")
    lines += ["", "With connections that are open and idle:", ""]
    lines += [
        "| workers | connections | accept all, s | scrape, ms | drain, s |",
        "|---|---|---|---|---|",
    ]
    for (workers, connections), waits in rests.items():
        accept, scrape, drain = (median(values) for values in zip(*waits, strict=True))
        lines.append(
            f"| {workers} | {connections:,} | {accept:.2f} | {scrape * 1e3:.0f} | {drain:.2f} |"
        )
    cost = median(run.cost for run in loads[1, 32])
    lines += ["", *SATURATION.format(cost=cost).split("\n"), ""]
    lines += ["| pods | CPUs of each | requests/s | by the model | |", "|---|---|---|---|---|"]
    for (number, cpus), found in rates.items():
        rate, model = median(found), number * cpus * 1e6 / cost
        lines.append(f"| {number} | {cpus} | {rate:,.0f} | {model:,.0f} | {rate / model:.0%} |")
    return "\n".join(lines)


SATURATION = """\
A worker's CPU is what saturates first: more connections bring no more requests a second, and each
waits for all the others, so p99 grows with their number. More workers than CPUs add nothing. What
grows with workers is the scrape; with connections, the drain and the time to accept them.

The model: a pod serves CPUs / CPU a request ({cost:.0f} µs) with a worker for each CPU, and K pods
serve K times that. Checked with services that each have one worker and so much CPU, all asked at
once:"""


if __name__ == "__main__":
    main()
