"""preload(): one copy for all processes, before there are any."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Service, copy_code, descendants, wait_for
from overlay import PACKAGE

Start = Callable[..., Service]

MODEL = """
import os


class Model:
    def __init__(self) -> None:
        self.table = bytearray(os.urandom(1 << 20)) * 96
        self.made_by = os.getpid()
"""
PRELOAD = """
from .model import Model


def preload():
    return Model()
"""
VIEWS = """

import os

from . import model as its_module
from .runtime import PRELOADED, preloaded
from .tasks import who_loaded


@routes.get("/model")
async def model(request):
    found = request.app[PRELOADED]
    assert found is preloaded() and isinstance(found, its_module.Model)
    return web.json_response({"web": found.made_by, "compute": await compute.run(who_loaded)})


@routes.get("/read")
async def read(request):
    read = sum(len(str(item)) for item in preloaded().table)
    return web.json_response({"worker": os.getpid(), "read": read})
"""
TASKS = """

from .runtime import preloaded


@task
def who_loaded() -> int:
    return preloaded().made_by
"""


def code_with(folder: Path, preload: str) -> Path:
    package = copy_code(folder) / PACKAGE
    (package / "model.py").write_text(MODEL)
    (package / "preload.py").write_text(preload)
    for name, text in (("views.py", VIEWS), ("tasks.py", TASKS)):
        with (package / name).open("a") as file:
            file.write(text)
    return folder


def pss(pid: int) -> int:
    """Bytes, where memory that n processes share counts an n-th for each."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024


def test_one_copy_for_both_pools(start: Start, tmp_path: Path, loop: str) -> None:
    code = code_with(tmp_path / "code", PRELOAD)
    service = start("serve", code=code, EVENT_LOOP=loop, WEB_CONCURRENCY="3")
    arbiter = service.process.pid
    for _ in range(20):
        assert service.get("/model").json() == {"web": arbiter, "compute": arbiter}
    assert service.says("shared by all processes")
    together = sum(pss(pid) for pid in [arbiter, *descendants(arbiter)])
    assert together < 2 * 96 * 2**20 + 6 * 40 * 2**20  # six copies would be 576 MiB

    # new code comes with SIGHUP, what is preloaded stays, and stays of one kind with its class
    views = code / PACKAGE / "views.py"
    views.write_text(views.read_text().replace('{"web": ', '{"new": '))
    os.utime(views, (time.time() + 5, time.time() + 5))
    model = code / PACKAGE / "model.py"
    os.utime(model, (time.time() + 5, time.time() + 5))
    service.process.send_signal(signal.SIGHUP)
    wait_for(lambda: service.get("/model").json() == {"new": arbiter, "compute": arbiter})
    assert service.says("the code of preload() has changed")


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python counts references to everything")
def test_objects_stay_shared_when_they_are_read(start: Start, tmp_path: Path, loop: str) -> None:
    objects = "    model.table = [{'n': n, 'name': f'item {n}'} for n in range(200_000)]\n"
    text = PRELOAD.replace("return Model()", "model = Model()\n" + objects + "    return model")
    service = start("web", code=code_with(tmp_path / "code", text), EVENT_LOOP=loop)
    service.get("/probe/sleep/0")
    before = sum(map(pss, service.processes()))
    readers = set()

    def all_read() -> bool:
        readers.add(service.get("/read").json()["worker"])
        return len(readers) == 2

    wait_for(all_read)
    assert sum(map(pss, service.processes())) < 1.3 * before
    assert service.stop() == 0


def check(code: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", PACKAGE, "check", "--json"],
        env={"PYTHONPATH": str(code), **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_check_says_what_it_takes_and_memory_is_reckoned_with(tmp_path: Path) -> None:
    found = json.loads(check(code_with(tmp_path, PRELOAD), MEMORY_LIMIT="300Mi").stdout)
    assert found["preload_bytes"] >= 96 * 2**20
    if "memory limit of 300 MiB" in found["web_workers_reason"]:  # no tighter one of the machine
        assert "that is preloaded" in found["web_workers_reason"]
        assert found["web_workers"] == 1


@pytest.mark.parametrize("command", ["check", "serve"])
def test_one_that_fails_stops_the_start(start: Start, tmp_path: Path, command: str) -> None:
    code = code_with(tmp_path / "code", "def preload():\n    raise LookupError('no model here')\n")
    service = start(command, code=code, wait=False)
    assert service.process.wait(60) == 2
    assert service.says("LookupError: no model here")
    assert service.says("preload() failed")


def test_threads_and_sockets_are_told(start: Start, tmp_path: Path) -> None:
    text = """
import socket, threading


def preload():
    threading.Thread(target=threading.Event().wait, name="poller", daemon=True).start()
    return socket.create_server(("127.0.0.1", 0))
"""
    service = start("web", code=code_with(tmp_path / "code", text))
    assert service.says("preload() started threads, which no worker will have: ")
    assert service.says("poller")
    assert service.says("preload() opened 1 sockets")


def test_sigterm_ends_one_that_takes_long(start: Start, tmp_path: Path) -> None:
    text = "import pathlib, time\n\n\ndef preload():\n"
    text += f"    pathlib.Path({str(tmp_path / 'begun')!r}).touch()\n    time.sleep(600)\n"
    service = start("serve", code=code_with(tmp_path / "code", text), wait=False)
    wait_for((tmp_path / "begun").exists, 30)
    assert service.stop() == 0
