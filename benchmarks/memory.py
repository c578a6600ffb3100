"""What a model costs in memory, by where it is loaded: make bench NAME=memory

Megabytes (PSS: what n processes share counts an n-th for each) of the whole process tree, with a
model of Python objects, an array or a mapped file, loaded in app.py, by preload(), or not at all;
with 1, 2 and 4 web workers and as many compute workers; after the first request, after REQUESTS,
after SIGHUP and after every worker was recycled.
"""

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime"))
from overlay import CODE, PACKAGE

REQUESTS = int(os.environ.get("REQUESTS", "100000"))
WORKERS = [int(n) for n in os.environ.get("WORKERS", "1 2 4").split()]
MODELS = {
    "objects": "[{'id': n, 'name': f'item {n}', 'score': n / 7} for n in range(300_000)]",
    "array": "array('d', bytes(100 << 20))",
    "mapped file": "mapped()",
}
MODEL = """
import mmap
from array import array
from pathlib import Path


def mapped():
    with Path(__file__).with_suffix(".bin").open("rb") as file:
        found = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    found.read()
    return found


def load():
    return {model}


def touch(model, n):
    return str(model[n * 7919 % len(model)])
"""
PRELOAD = "from .model import load as preload\n"
USE = """

from . import model as its_module
{where}

@routes.get("/touch/{{n}}")
async def touch(request):
    n = int(request.match_info["n"])
    return web.Response(text=its_module.touch(MODEL, n))
"""
PLACES = {"in app.py": "MODEL = its_module.load()", "preloaded": "MODEL = preloaded()"}
ROWS = [
    ("", ""),
    ("objects", "in app.py"),
    ("objects", "preloaded"),
    ("array", "in app.py"),
    ("array", "preloaded"),
    ("mapped file", "in app.py"),  # the same by either
]
LOAD = """
local n = 0
request = function() n = n + 1; return wrk.format("GET", "/touch/" .. n) end
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def tree(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(p for child in children for p in tree(int(child)))]


def megabytes(pid: int) -> float:
    total = 0
    for one in tree(pid):
        lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1000


def get(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def settle(pid: int, admin: int, before: set[int]) -> None:
    """Until all workers that were there before are gone, and their successors serve."""
    limit = time.monotonic() + 120
    while time.monotonic() < limit:
        # the arbiters stay
        stayed = {p for p in before & set(tree(pid)) if len(tree(p)) == 1}
        if not stayed and get(admin, "/readyz") == 200:
            return
        time.sleep(0.1)
    raise TimeoutError


def measure(model: str, place: str, workers: int) -> list[float]:
    folder = Path(tempfile.mkdtemp())
    shutil.copytree(CODE / PACKAGE, folder / PACKAGE)
    if model:
        (folder / PACKAGE / "model.py").write_text(MODEL.format(model=MODELS[model]))
        if model == "mapped file":
            (folder / PACKAGE / "model.bin").write_bytes(b"x" * (100 << 20))
        with (folder / PACKAGE / "views.py").open("a") as views:
            where = "from .runtime import preloaded\n\n" + PLACES[place]
            views.write(USE.format(where=where))
        if place == "preloaded":
            (folder / PACKAGE / "preload.py").write_text(PRELOAD)
        else:  # a compute worker that uses the model loads it too
            with (folder / PACKAGE / "tasks.py").open("a") as tasks:
                tasks.write("\n\nfrom . import model as its_module\n\n" + PLACES[place] + "\n")
    port, admin = free_port(), free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(folder),
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "ADMIN_PORT": str(admin),
        "ACCESS_LOG": "false",
        "LAME_DUCK": "0",
        "WEB_CONCURRENCY": str(workers),
        "COMPUTE_CONCURRENCY": str(workers),
    }
    path = "/touch/1" if model else "/"
    found = []
    process = subprocess.Popen(
        [sys.executable, "-m", PACKAGE], env=environment, stdout=subprocess.DEVNULL
    )
    try:
        while get(admin, "/readyz") != 200 or get(port, path) != 200:
            time.sleep(0.1)
        time.sleep(2)
        found.append(megabytes(process.pid))
        with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
            script.write(LOAD if model else "")
            script.flush()
            done = 0
            while done < REQUESTS:
                wrk = ["wrk", "-c32", "-t1", "-d2", "-s", script.name, f"http://127.0.0.1:{port}/"]
                output = subprocess.run(wrk, capture_output=True, text=True, check=True).stdout
                done += int(output.partition(" requests in")[0].split()[-1])
        found.append(megabytes(process.pid))
        before = set(tree(process.pid)[1:])
        process.send_signal(signal.SIGHUP)
        settle(process.pid, admin, before)
        time.sleep(2)
        found.append(megabytes(process.pid))
        for worker in tree(process.pid)[1:]:
            if len(tree(worker)) == 1:
                os.kill(worker, signal.SIGTERM)
                settle(process.pid, admin, {worker})
        time.sleep(2)
        found.append(megabytes(process.pid))
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(folder)
    return found


def main() -> None:
    print(f"| workers | model | loaded | first | {REQUESTS:,} requests | SIGHUP | recycled |")
    print("|---|---|---|---|---|---|---|")
    for workers in WORKERS:
        for model, place in ROWS:
            row = measure(model, place, workers)
            cells = " | ".join(f"{value:.0f}" for value in row)
            print(f"| {workers} + {workers} | {model or 'none'} | {place} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
