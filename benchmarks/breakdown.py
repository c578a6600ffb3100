"""Where the CPU time of a request goes, by sampling a worker under load: make bench NAME=breakdown

Each sample counts for the innermost frame that belongs to one of the parts below. py-spy takes them
and comes by uv; figures are shares, so a busy machine does them little harm.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from telemetry import LOAD, free_port, server

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime"))
from overlay import PACKAGE

PY_SPY = "py-spy@0.4.2"
SECONDS = int(os.environ.get("SECONDS", "10"))
KERNEL = r"^(__)?(libc_)?(send|recv|read|write|writev|poll|ioctl)\w* \("
WAITS = r"(nanosleep|epoll_\w*wait) \("  # which py-spy takes for work
# a part: what is in the innermost frame of it, as "function (file:line)"
PARTS = {
    "the socket and the loop (kernel, libuv, uvloop)": rf"{KERNEL}|uvloop|libuv|\buv_",
    "the edge: id, count, head of the response": r"runtime/http/(edge|bounds|body|problem)",
    "recording: histogram, sums": r"runtime/(http/recording|metrics)",
    "the access line": r"runtime/(logs|output)",
    "the handler, with its JSON": rf"{PACKAGE}/(views|app|runtime/http/typed)|json/|msgspec",
    "aiohttp, multidict, yarl": r"aiohttp|multidict|yarl|propcache|frozenlist",
    "asyncio: tasks, contexts": r"asyncio|_asyncio|_weakrefset|contextvars",
}


def shares(raw: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, number = line.rpartition(" ")
        if re.search(WAITS, stack.rpartition(";")[2]):
            continue
        for frame in reversed(stack.split(";")):
            part = next((name for name, has in PARTS.items() if re.search(has, frame)), None)
            if part is not None:
                found[part] += int(number)
                break
        else:
            found["the interpreter itself"] += int(number)
    return found


def main() -> None:
    port = free_port()
    settings = {"PORT": str(port), "ADMIN_PORT": str(free_port()), "WEB_CONCURRENCY": "1"}
    settings |= {"HOST": "127.0.0.1", "LOG_FORMAT": "json", "LAME_DUCK": "0"}
    uv = Path(sys.executable).with_name("uv")
    with (
        tempfile.NamedTemporaryFile("w", suffix=".lua") as script,
        tempfile.NamedTemporaryFile("r") as raw,
        server(port, PACKAGE, "web", **settings) as service,
    ):
        script.write(LOAD)
        script.flush()
        service.turn(script.name, 1)
        pid = service.process.pid
        (worker,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        record = [uv, "tool", "run", PY_SPY, "record", "--native", "--rate", "250"]
        record += ["--pid", worker, "--duration", str(SECONDS), "--format", "raw", "-o", raw.name]
        sampler = subprocess.Popen(record, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        cost = service.turn(script.name, SECONDS + 2)
        if sampler.wait():
            sys.exit("py-spy could not sample the worker: it needs ptrace")
        found = shares(raw.read())
    total = found.total()
    lines = ["| part of a request | share of its CPU |", "|---|---|"]
    lines += [f"| {part} | {number / total:.0%} |" for part, number in found.most_common()]
    table = "\n".join(lines)
    print(f"{cost:.0f} us of CPU a request, py-spy's pauses included; {total} samples\n{table}")
    build = Path(__file__).parents[1] / "build"
    build.mkdir(exist_ok=True)
    (build / "breakdown.json").write_text(json.dumps({"text": table}))


if __name__ == "__main__":
    main()
