"""`dev`: what is saved runs at once, what is broken does not, and breakpoint() has the terminal."""

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import Service, children, copy_code, free_port, running, wait_for
from overlay import PACKAGE

Start = Callable[..., Service]

APP = """
import asyncio, os
from aiohttp import web
from .runtime import compute
from .tasks import add

routes = web.RouteTableDef()

@routes.get("/")
async def index(request):
    return web.json_response({"version": VERSION, "sum": await compute.run(add, 1, 2)})

@routes.get("/settings")
async def settings(request):
    debug = asyncio.get_running_loop().get_debug()
    return web.json_response({"debug": debug, "own": os.environ.get("OWN", "")})

@routes.get("/stop")
async def stop(request):
    found = 41
    breakpoint()
    return web.json_response({"found": found, "patience": os.environ["WORKER_TIMEOUT"]})

async def create_app():
    app = web.Application()
    app.add_routes(routes)
    return app
"""
TASKS = """
from .runtime import task

@task
def add(a: int, b: int) -> int:
    return a + b
"""


def take_the_terminal() -> None:
    """As the first in a session to open it."""
    os.close(os.open(os.ttyname(0), os.O_RDWR))


class Dev:
    """`python -m PACKAGE dev` on a terminal, with an application that a test changes."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.code = copy_code(folder / "code")
        self.app = self.code / PACKAGE / "app.py"
        self.tasks = self.code / PACKAGE / "tasks.py"
        self.tasks.write_text(TASKS)
        self.save("VERSION = 1\n")
        self.port, self.admin_port = free_port(), free_port()
        self.terminal, theirs = pty.openpty()
        own = {"PORT": str(self.port), "ADMIN_PORT": str(self.admin_port)}
        self.process = subprocess.Popen(
            ["sh", "-c", '"$@"; exit', "a shell", sys.executable, "-m", PACKAGE, "dev"],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(self.code), **own, **env},
            cwd=folder,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=take_the_terminal,
        )
        os.close(theirs)
        os.set_blocking(self.terminal, False)
        self.shown = ""
        (self.pid,) = wait_for(lambda: children(self.process.pid))
        self.service = Service.__new__(Service)
        self.service.port, self.service.admin_port = self.port, self.admin_port
        self.service.process = self.process

    def save(self, first: str) -> None:
        self.app.write_text(first + APP)

    def says(self, pattern: str) -> re.Match[str] | None:
        """Whether the terminal has shown it so far."""
        try:
            while more := os.read(self.terminal, 65536):
                self.shown += more.decode(errors="replace")
        except OSError:
            pass
        return re.search(pattern, self.shown)

    def version(self) -> object:
        try:
            return self.service.get("/").json()["version"]
        except (OSError, ValueError, KeyError):
            return None

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        try:
            self.process.wait(30)
        finally:
            self.service.kill()
            os.close(self.terminal)


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Callable[..., Dev]]:
    started: list[Dev] = []

    def run(**env: str) -> Dev:
        started.append(Dev(tmp_path, **env))
        wait_for(lambda: started[-1].version() or started[-1].process.poll() is not None)
        assert started[-1].version() == 1, started[-1].says("") and started[-1].shown
        return started[-1]

    yield run
    for one in started:
        one.end()


def test_what_is_saved_runs(dev: Callable[..., Dev], loop: str) -> None:
    one = dev(EVENT_LOOP=loop)
    assert one.says("Service: http://localhost:")
    assert one.service.total("workers", state="live") == 1
    one.save("VERSION = 2\n")
    wait_for(lambda: one.version() == 2)
    one.save("VERSION = 3\n")
    wait_for(lambda: one.version() == 3)
    assert one.service.get("/settings").json() == {"debug": False, "own": ""}
    assert one.service.get("/docs").status == 200


def test_what_is_broken_does_not_and_is_said_once_and_in_short(dev: Callable[..., Dev]) -> None:
    one = dev()
    one.save("VERSION = (\n")
    wait_for(lambda: one.says("SyntaxError"))
    assert one.version() == 1
    assert one.says("\x1b\\[31mERROR\x1b\\[0m .*cannot reload, the old version goes on")
    said = one.shown[one.shown.index("cannot reload") :]
    assert len(said.splitlines()) <= 6, said
    assert "app.py" in said
    one.save("VERSION = 2\n")
    wait_for(lambda: one.version() == 2)
    assert one.shown.count("SyntaxError") == 1

    one.save("VERSION = nowhere\n")  # what only the import finds
    wait_for(lambda: one.says("NameError") and one.says("trying again in 30"))
    assert one.version() == 2
    said = one.shown[one.shown.index("Traceback") :]
    assert "runtime" not in said.partition("NameError")[0], said
    one.save("VERSION = 3\n")
    wait_for(lambda: one.version() == 3)
    assert one.says("")
    assert one.shown.count("NameError") == 1


def test_a_breakpoint_has_the_terminal_for_as_long_as_one_likes(
    dev: Callable[..., Dev], loop: str
) -> None:
    one = dev(EVENT_LOOP=loop)
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(one.service.get, "/stop")
        wait_for(lambda: one.says(r"\(Pdb\)"))
        os.write(one.terminal, b"found + 58\n")
        wait_for(lambda: one.says(r"\b99\b"))
        os.write(one.terminal, b"found = 7\nc\n")
        assert asking.result().json() == {"found": 7, "patience": "86400"}
    assert one.service.total("worker_exits_total") == 0


def test_the_environment_then_dotenv_then_what_suits(
    dev: Callable[..., Dev], tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("OWN=ours\nLOG_LEVEL=debug\nEVENT_LOOP=asyncio\n")
    one = dev(LOG_LEVEL="warning", PYTHONASYNCIODEBUG="1")
    assert one.service.get("/settings").json() == {"debug": True, "own": "ours"}
    assert not one.says("INFO")


def test_only_dev_reads_dotenv(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("ADMIN_PAGE=false\n")
    monkeypatch.chdir(tmp_path)
    assert start("web").get("/", admin=True).status == 200


def test_a_terminal_that_is_closed_ends_it(dev: Callable[..., Dev]) -> None:
    one = dev()
    all_of_it = one.service.processes()
    assert len(all_of_it) >= 6  # a shell, the arbiters, the workers, and who watches the files
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, one.terminal)
    os.close(null)
    wait_for(lambda: not any(map(running, all_of_it)))


def test_without_what_is_for_development_only(tmp_path: Path, code: Path) -> None:
    (tmp_path / "watchfiles.py").write_text("raise ModuleNotFoundError('no', name='watchfiles')\n")
    done = subprocess.run(
        [sys.executable, "-m", PACKAGE, "dev"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{tmp_path}:{code}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "`dev` needs watchfiles, which is there for development only: `make install`\n"
    )
