"""What workers cost: proportional memory (PSS) of the process tree, idle and after some requests.

    make bench NAME=memory

"as it is": the arbiter has imported the libraries and frozen its objects; workers import the
application. "application preloaded": the arbiter has imported that too.
"""

import http.client
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime"))
from overlay import CODE, PACKAGE

os.environ["PYTHONPATH"] = str(CODE)


REQUESTS = 2000
VARIANTS = {
    "as it is": "",
    "without gc.freeze": "gc.freeze = lambda: None",
    "application preloaded": """
def start(self, start=launcher.Launcher.start):
    import_module(PACKAGE + ".app")
    start(self)
launcher.Launcher.start = start
""",
}
RUN = """
import gc, sys
from importlib import import_module
PACKAGE = {package!r}
main = import_module(PACKAGE + ".__main__")
values = import_module(PACKAGE + ".runtime.metrics.values")
def patched(*arguments, install=values.install):
    install(*arguments)
    launcher = import_module(PACKAGE + ".runtime.process.arbiter")
    exec({variant!r}, globals() | {{"launcher": launcher, "gc": gc}})
values.install = patched
main.main()
"""


def tree(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(p for child in children for p in tree(int(child)))]


def pss(pid: int) -> int:
    """Kilobytes, where memory that n processes share counts a n-th for each."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def measure(variant: str, workers: int) -> tuple[float, float]:
    """Megabytes of an idle service, and of one that has answered REQUESTS requests."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ["PYTHONPATH"],
        "HOST": "127.0.0.1",
        "PORT": "18480",
        "ADMIN_PORT": "18481",
        "LAME_DUCK": "0",
        "WEB_CONCURRENCY": str(workers),
    }
    code = RUN.format(package=PACKAGE, variant=variant)
    service = subprocess.Popen(
        [sys.executable, "-c", code, "web"], env=environment, stdout=subprocess.DEVNULL
    )
    try:
        time.sleep(3)
        processes = tree(service.pid)
        assert len(processes) == workers + 1, "not all workers are up"
        idle = sum(map(pss, processes)) / 1024
        for _ in range(REQUESTS):
            connection = http.client.HTTPConnection("127.0.0.1", 18480)
            connection.request("GET", "/greet/you")
            connection.getresponse().read()
            connection.close()
        return idle, sum(map(pss, processes)) / 1024
    finally:
        service.terminate()
        service.wait()


if __name__ == "__main__":
    workers = int(sys.argv[1]) if sys.argv[1:] else 4
    print(f"{workers} workers, medians of 3: MB idle, MB after {REQUESTS} requests")
    for name, variant in VARIANTS.items():
        idle, used = map(median, zip(*(measure(variant, workers) for _ in range(3)), strict=True))
        print(f"{name:24}{idle:6.1f}{used:6.1f}")
