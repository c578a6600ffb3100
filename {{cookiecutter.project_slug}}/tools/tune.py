"""make tune: how many workers, on which loop? Each is started and loaded in turn, and watched."""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from subprocess import PIPE
from typing import Any

import psutil

from . import report
from .advice import AT_ITS_LIMIT, Advice, Point, advise
from .load import locust
from .service import ROOT, Service, Values, running

LOOPS = ("uvloop", "asyncio")
RECORD = 4  # seconds in which Locust shows what to ask
WARM_UP = 1
AROUND = 3  # seconds that a run takes besides: start, warm-up, end
LEAST = 2  # seconds that a run measures, at least
MOST_ROUNDS = 5
CLIENTS = 64


def cpus_here() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def numbers(most: int) -> list[int]:
    """All up to four, then in steps of a half."""
    steps = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    return sorted({n for n in steps if n < most} | {most})


def recorded(cpus: str, image: str) -> list[dict[str, Any]]:
    """The requests that the locustfile makes."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file, running(cpus, image) as service:
        command = locust(service.url, 20, RECORD, LOAD_RECORD=file.name)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        text = Path(file.name).read_text()
    if not text or not (requests := json.loads(text)):
        sys.exit(f"loadtest/locustfile.py asked nothing; Locust said:\n{done.stderr}{done.stdout}")
    failed = [r for r in requests if not 0 < r["status"] < 500]
    if len(failed) > len(requests) / 100:
        worst = failed[0]
        sys.exit(
            f"{len(failed)} of {len(requests)} requests failed without any load, such as"
            f" {worst['method']} {worst['url']}: status {worst['status']}. make load shows more."
        )
    return [r for r in requests if r["status"] and r["method"] != "HEAD"]


def delta(before: Values, after: Values, metric: str) -> dict[str, float]:
    return {w: value - before[metric].get(w, 0) for w, value in after[metric].items()}


def one_run(
    service: Service, loop: str, workers: int, requests: str, seconds: float, generators: int
) -> Point:
    command = [sys.executable, "-m", "tools.generator"]
    command += ["--port", str(service.port), "--connections", str(CLIENTS // generators)]
    command += ["--warm-up", str(WARM_UP), "--seconds", str(seconds)]
    started = [
        subprocess.Popen(command, cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True)
        for _ in range(generators)
    ]
    try:
        for one in started:
            assert one.stdin
            one.stdin.write(requests)
            one.stdin.close()
        for one in started:
            assert one.stdout
            one.stdout.readline()  # measuring
        psutil.cpu_percent()
        before, begin = service.scrape(), time.monotonic()
        lag = memory = 0.0
        while time.monotonic() < begin + seconds - 0.5:
            time.sleep(0.4)
            lag = max(lag, *service.scrape()["event_loop_lag_seconds"].values())
        after, took = service.scrape(), time.monotonic() - begin
        machine = psutil.cpu_percent() / 100
        memory = service.memory()
        results = [json.loads(one.stdout.read()) for one in started if one.stdout]
    finally:
        for one in started:
            one.kill()
            one.wait()
    latencies = Counter[int]()
    for result in results:
        latencies.update({int(key): count for key, count in result["latencies"].items()})
    done = sum(latencies.values())
    spent = delta(before, after, "process_cpu_seconds_total")
    cpu = {worker: seconds / took for worker, seconds in spent.items()}
    taken = [
        count
        for worker, count in delta(before, after, "worker_requests_total").items()
        if service.roles.get(worker) == "web"
    ]
    throughput = sum(sum(r["latencies"].values()) / r["seconds"] for r in results)
    return Point(
        loop,
        workers,
        throughput,
        throughput,
        throughput,
        percentile(latencies, 0.50),
        percentile(latencies, 0.99),
        sum(used for worker, used in cpu.items() if service.is_web(worker)),
        sum(used for worker, used in cpu.items() if not service.is_web(worker)),
        memory,
        lag,
        max(taken) * len(taken) / sum(taken) if sum(taken) else 1.0,
        sum(sum(r["unlike"].values()) for r in results) / max(1, done),
        max(r["cpu"] for r in results),
        machine,
    )


def percentile(latencies: Counter[int], share: float) -> float:
    """Seconds; the generator keeps them by 50 ln(seconds)."""
    left = share * sum(latencies.values())
    for key in sorted(latencies):
        left -= latencies[key]
        if left <= 0:
            return math.exp(key / 50)
    return 0.0


def middle(runs: list[Point]) -> Point:
    """One point of several runs."""
    names = [name for name in Point.__dataclass_fields__ if name not in ("loop", "workers")]
    values = {name: median(getattr(run, name) for run in runs) for name in names}
    values["least"] = min(run.throughput for run in runs)
    values["most"] = max(run.throughput for run in runs)
    return Point(runs[0].loop, runs[0].workers, **values)


def turns(kinds: list[tuple[str, int]], rounds: int) -> Iterator[tuple[str, int]]:
    """Each round begins with another one, so that what the machine does meets them all."""
    for turn in range(rounds):
        first = turn * len(kinds) // rounds
        yield from kinds[first:] + kinds[:first]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cpus", default="")
    parser.add_argument("--image", default="")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=180)
    given = parser.parse_args()
    begin = time.monotonic()
    cpus = float(given.cpus) if given.cpus else float(cpus_here())
    most = given.workers or math.ceil(cpus) + 1
    kinds = [(loop, workers) for workers in numbers(most) for loop in LOOPS]
    generators = max(1, cpus_here() // 4)
    where = f"{given.cpus} of {cpus_here()}" if given.cpus else str(cpus_here())
    print(f"Watching what loadtest/locustfile.py asks, with {where} CPUs ...", flush=True)
    requests = recorded(given.cpus, given.image)
    left = given.seconds - (time.monotonic() - begin)
    rounds = max(1, min(MOST_ROUNDS, int(left / len(kinds) / (AROUND + LEAST * 1.5))))
    length = max(LEAST, min(10, left / rounds / len(kinds) - AROUND))
    runs: dict[tuple[str, int], list[Point]] = {}
    text = json.dumps(requests)
    for number, (loop, workers) in enumerate(turns(kinds, rounds)):
        if time.monotonic() - begin > given.seconds - AROUND - LEAST and runs:
            break
        settings = {"WEB_CONCURRENCY": str(workers), "EVENT_LOOP": loop}
        with running(given.cpus, given.image, **settings) as service:
            point = one_run(service, loop, workers, text, length, generators)
        runs.setdefault((loop, workers), []).append(point)
        gone = time.monotonic() - begin
        print(
            f"{gone:4.0f} of {given.seconds:.0f} s, run {number + 1} of {len(kinds) * rounds}:"
            f" {workers} on {loop:7} {point.throughput:7,.0f} requests/s,"
            f" p99 {point.p99 * 1e3:5.1f} ms, {point.cpu:.2f} CPUs,"
            f" generator {point.generator:.0%}",
            flush=True,
        )
    points = [middle(several) for several in runs.values()]
    advice = advise(points, cpus)
    report.write(ROOT, points, advice, cpus, conditions(given, requests, runs, length, points))
    show(advice)


def conditions(
    given: argparse.Namespace,
    requests: list[dict[str, Any]],
    runs: dict[tuple[str, int], list[Point]],
    length: float,
    points: list[Point],
) -> list[str]:
    paths = Counter(f"{r['method']} {path_of(r['url'])}" for r in requests)
    most = ", ".join(f"{path} ({n / len(requests):.0%})" for path, n in paths.most_common(6))
    turns_each = sorted({len(several) for several in runs.values()})
    generator = max(point.generator for point in points)
    return [
        f"{time.strftime('%Y-%m-%d %H:%M')}, {platform.system()} {platform.machine()},"
        f" {cpus_here()} CPUs, Python {platform.python_version()}",
        f"The service ran in a container with {given.cpus} CPUs."
        if given.cpus
        else "The service ran on this machine, beside the load generator.",
        f"Runs of {length:.1f} s, {' or '.join(map(str, turns_each))} of each kind in rotating"
        " order; shown are the medians, and for requests a second the least and the most.",
        f"{CLIENTS} clients, each of which asks again as soon as it is answered: so p99 is that of"
        " a service at its limit, good for comparing, and worse than users see below it.",
        f"Asked was what Locust asked from loadtest/locustfile.py: {most}.",
        f"The load generator used {generator:.0%} of a CPU at most; from {AT_ITS_LIMIT:.0%} on its"
        " figures would say nothing about the service.",
        f"Of this machine's CPUs, {max(p.machine for p in points):.0%} were in use at most.",
    ]


def path_of(url: str) -> str:
    return "/" + url.partition("://")[2].partition("/")[2]


def show(advice: Advice) -> None:
    print(f"\n{advice.title}. {advice.reason}\n")
    for where, what in advice.lines.items():
        print(f"{where}:", *(f"    {line}" for line in what.splitlines()), sep="\n")
    print(f"\nReport: {ROOT / 'tune-report.html'}")


if __name__ == "__main__":
    main()
