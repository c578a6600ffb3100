"""Makes the pictures of README from a real run: a terminal session, the processes, the pages.

    python scripts/pictures.py PROJECT FOLDER

PROJECT is a generated project with its .venv, as `make pictures` makes it.
"""

import html
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from urllib.error import URLError

from demo import get
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

WIDTH = 96  # columns of the terminal
SETTINGS = {
    "HOST": "127.0.0.1",
    "ADMIN_HOST": "127.0.0.1",
    "WEB_CONCURRENCY": "3",
    "COMPUTE_CONCURRENCY": "2",
    "LOG_FORMAT": "console",
    "ACCESS_LOG": "false",
    "LAME_DUCK": "0",
    "API_DOCS": "true",
}
SESSION = [
    "my-service check | head -6",
    "for n in 1 2 3 4 5; do curl -s localhost:8080/; echo; done",
    "curl -s localhost:8080/primes/1000000; echo     # computed in another process",
    "curl -s localhost:8081/metrics | grep '^http_requests_total'",
    "kill -9 $(curl -s localhost:8080/ | grep -oE '[0-9]+' | tail -1); sleep 1  # a worker",
    "curl -s localhost:8081/metrics | grep -E '^(http_requests|worker_exits)_total.* [1-9]'",
]
# rich's own has a font that comes from elsewhere
SVG = """<svg class="rich-terminal" viewBox="0 0 {width} HEIGHT" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px;
}}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="HEIGHT" />
</clipPath>
{lines}
</defs>
<rect fill="#272822" x="1" y="1" width="{terminal_width}" height="HEIGHT" rx="8"/>
<g transform="translate({terminal_x}, 12)" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
PAGES = {"live": "http://localhost:8081/", "docs": "http://localhost:8080/docs"}
SIZES = ["1280x860", "390x844"]  # of a desktop and of a phone


def wait_until_ready(service: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + 60
    while True:
        try:
            get("http://127.0.0.1:8081/readyz")
        except URLError:
            if service.poll() is not None or time.monotonic() > limit:
                sys.exit("the service does not start; are the ports 8080 and 8081 free?")
            time.sleep(0.1)
        else:
            return


def ask(done: Event) -> None:
    """Keep the service at work."""
    while not done.wait(0.005):
        get("http://127.0.0.1:8080/greet/you")
        get("http://127.0.0.1:8080/primes/200000")


def session(project: Path) -> str:
    """What a terminal shows of SESSION, as an SVG."""
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    path = f"{project.absolute() / '.venv' / 'bin'}:{os.environ['PATH']}"
    for command in SESSION:
        done = subprocess.run(
            ["bash", "-c", command],
            env=os.environ | SETTINGS | {"PATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        console.print(Text.assemble(("$ ", "green"), (command, "bold")))
        if done.stdout:
            console.print(Text(done.stdout.rstrip("\n")))
    svg = console.export_svg(title="", theme=MONOKAI, code_format=SVG, unique_id="session")
    last = max(float(y) for y in re.findall(r'<text [^>]* y="([0-9.]+)"', svg))
    return svg.replace("HEIGHT", f"{last + 40:.0f}")


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def own_memory(pid: int) -> float:
    """Megabytes that a process shares with no other."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(kb) for kb in re.findall(r"Private_\w+: +(\d+)", rollup)) / 1000


def processes(arbiter: int) -> str:
    """The tree of processes, as an SVG."""
    compute = next(pid for pid in children(arbiter) if children(pid))
    workers = [pid for pid in children(arbiter) if pid != compute]
    tasks = children(compute)
    boxes, lines = [], []
    top = (200 * (len(workers) + 2) + 100) // 2

    def box(x: int, y: int, title: str, pid: int, what: str, kind: str = "") -> None:
        boxes.append(
            f'<g transform="translate({x},{y})">'
            f'<rect class="box {kind}" width="180" height="74" rx="6"/>'
            f'<text x="90" y="24" class="title">{html.escape(title)}</text>'
            f'<text x="90" y="44">{html.escape(what)}</text>'
            f'<text x="90" y="62" class="dim">PID {pid}, {own_memory(pid):.0f} MB of its own</text>'
            "</g>"
        )

    def line(x1: int, y1: int, x2: int, y2: int) -> None:
        lines.append(f'<path d="M{x1} {y1} L{x2} {y2}" marker-end="url(#tip)"/>')

    box(top - 90, 20, "management process", arbiter, "restarts, resizes, drains", "first")
    for number, pid in enumerate(workers):
        x = 20 + 200 * number
        box(x, 170, "web worker", pid, "event loop, Application")
        line(top, 94, x + 90, 168)
        line(x + 90, 318, x + 90, 246)
    x = 20 + 200 * len(workers) + 120
    box(x, 170, "compute pool", compute, "queue, deadlines", "first")
    line(top, 94, x + 90, 168)
    for number, pid in enumerate(tasks):
        side = x - 100 + 200 * number
        box(side, 320, "compute worker", pid, "plain functions")
        line(x + 90, 244, side + 90, 318)
    right = 200 * len(workers)
    line(right, 207, x - 2, 207)
    wide = 200 * len(workers) - 20
    boxes.append(
        f'<rect class="socket" x="20" y="320" width="{wide}" height="34" rx="6"/>'
        f'<text x="{20 + wide / 2}" y="342">:8080 clients, :8081 Prometheus and probes</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {x + 300} 410">\n<style>\n'
        "text { font: 13px system-ui, sans-serif; text-anchor: middle; fill: #24292f }\n"
        ".title { font-weight: 600 } .dim { fill: #57606a; font-size: 11px }\n"
        ".box { fill: #f6f8fa; stroke: #8c959f } .first { fill: #ddf4ff; stroke: #0969da }\n"
        ".socket { fill: #dafbe1; stroke: #1a7f37 } path { stroke: #8c959f; fill: none }\n"
        '</style>\n<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8" /></marker></defs>\n'
        '<rect width="100%" height="100%" rx="8" style="fill: #fff"/>\n'
        + "\n".join(lines + boxes)
        + "\n</svg>\n"
    )


def photograph(project: Path, url: str, file: Path) -> None:
    python, script = project / ".venv" / "bin" / "python", Path(__file__).with_name("photograph.py")
    subprocess.run([python, script, url, file, *SIZES], check=True, timeout=180)


def main() -> None:
    project, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    command = project / ".venv" / "bin" / project.name
    with (project / "pictures.log").open("wb") as log:
        service = subprocess.Popen(
            [command], env=os.environ | SETTINGS, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_until_ready(service)
        (folder / "session.svg").write_text(session(project))
        wait_until_ready(service)
        (folder / "processes.svg").write_text(processes(service.pid))
        with ThreadPoolExecutor(1) as busy:
            some = busy.submit(ask, done := Event())
            for name, url in PAGES.items():
                photograph(project, url, folder / f"{name}-{{}}.png")
            done.set()
            some.result()
        print(json.dumps(sorted(file.name for file in folder.iterdir())))
    finally:
        service.terminate()
        service.wait()


if __name__ == "__main__":
    main()
