"""What metrics, the JSON access log and request ids cost, measured here: make bench NAME=telemetry

The service and a bare aiohttp Application with the same two routes, on gunicorn with uvloop and as
many workers, are loaded in turns by wrk. What counts is the CPU time of all their processes for a
request, and the median of the turns' ratios: what else this machine does meets both alike.
"""

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from aiohttp import web

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime"))
from overlay import CODE, PACKAGE

os.environ["PYTHONPATH"] = str(CODE)

ROUNDS = int(os.environ.get("ROUNDS", "9"))
TURN = 2  # seconds
WORKERS = "1"  # and the other CPU is wrk's
CONNECTIONS = "32"
TARGET = 1.25
TICKS = os.sysconf("SC_CLK_TCK")

LOAD = """
local paths, n = {"/", "/greet/you"}, 0
request = function() n = n + 1; return wrk.format("GET", paths[n % 2 + 1]) end
"""


async def bare() -> web.Application:
    """The same answers from an Application with nothing around it."""

    async def index(request: web.Request) -> web.Response:
        return web.json_response({"service": "bare", "version": "0.1.0", "worker": os.getpid()})

    async def greet(request: web.Request) -> web.Response:
        return web.json_response({"hello": request.match_info["name"]})

    app = web.Application()
    app.add_routes([web.get("/", index), web.get("/greet/{name}", greet)])
    return app


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def cpu_seconds(pid: int) -> float:
    """What a process and all below it have used."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return (int(stat[11]) + int(stat[12])) / TICKS + sum(cpu_seconds(int(p)) for p in below)


class Server:
    """A running server, which remembers what a request cost it in each turn."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.url = f"http://127.0.0.1:{port}/"
        self.process = process
        self.costs: list[float] = []

    def turn(self, script: str, seconds: int) -> float:
        """Microseconds of CPU for a request."""
        before = cpu_seconds(self.process.pid)
        wrk = ["wrk", "-t1", "-c", CONNECTIONS, "-d", f"{seconds}s", "-s", script, self.url]
        said = subprocess.run(wrk, capture_output=True, text=True, check=True).stdout
        found = re.search(r"(\d+) requests in", said)
        if found is None or "Non-2xx" in said:
            sys.exit(f"wrk {self.url} went wrong:\n{said}")
        return (cpu_seconds(self.process.pid) - before) / int(found[1]) * 1e6


@contextmanager
def server(port: int, *command: str, **env: str) -> Iterator[Server]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], env=os.environ | env, stdout=log, stderr=log
        )
        try:
            while socket.socket().connect_ex(("127.0.0.1", port)):
                if process.poll() is not None:
                    log.seek(0)
                    sys.exit(f"{command} did not start:\n{log.read().decode()}")
                time.sleep(0.05)
            yield Server(port, process)
        finally:
            process.terminate()
            process.wait()


def main() -> None:
    first, second = free_port(), free_port()
    gunicorn = ["gunicorn", f"{Path(__file__).stem}:bare", "--bind", f"127.0.0.1:{first}"]
    gunicorn += ["--pythonpath", str(Path(__file__).parent), "--workers", WORKERS]
    gunicorn += ["--worker-class", "aiohttp.GunicornUVLoopWebWorker", "--keep-alive", "75"]
    settings = {"PORT": str(second), "ADMIN_PORT": str(free_port()), "WEB_CONCURRENCY": WORKERS}
    settings |= {"HOST": "127.0.0.1", "LOG_FORMAT": "json", "LAME_DUCK": "0"}
    with (
        tempfile.NamedTemporaryFile("w", suffix=".lua") as script,
        server(first, *gunicorn) as plain,
        server(second, PACKAGE, "web", **settings) as service,
    ):
        script.write(LOAD)
        script.flush()
        for one in (plain, service):
            one.turn(script.name, 1)
        for turn in range(ROUNDS):
            for one in (plain, service) if turn % 2 else (service, plain):
                one.costs.append(one.turn(script.name, TURN))
    ratios = [b / a for a, b in zip(plain.costs, service.costs, strict=True)]
    print(f"bare aiohttp       {median(plain.costs):5.1f} us of CPU a request")
    print(f"metrics, log, ids  {median(service.costs):5.1f} us")
    print(f"ratio              {median(ratios):5.2f}    (target: at most {TARGET})")
    print(f"                   {min(ratios):5.2f} to {max(ratios):.2f} in {ROUNDS} turns")


if __name__ == "__main__":
    main()
