"""The commands of `python -m PACKAGE`."""

import argparse
import errno
import json
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from . import logs, options, preload
from .metrics import slots, values
from .parts import PACKAGE, Parts, service
from .process import limits, listening
from .settings import SOCKET_PATH, Settings, SettingsError

SHARED_MEMORY = "/dev/shm"
SOCKET = "compute.sock"

log = logging.getLogger(__name__)

Command = Callable[[argparse.Namespace, Any, Parts], None]


def command_line(parts: Parts) -> None:
    """Do what the arguments of this process say: [serve | web | compute | dev | check [--json]]"""
    name, version = service()
    parser = argparse.ArgumentParser(prog=name, description=f"{name} {version}")
    parser.set_defaults(run=_serve, command="serve")
    choices = parser.add_subparsers(dest="command", metavar="COMMAND")
    choices.add_parser("serve", help="web workers and compute workers (the default)")
    dev = choices.add_parser("dev", help="`serve` for development: new code as soon as it is saved")
    dev.set_defaults(run=_dev)
    choices.add_parser("web", help="web workers only")
    choices.add_parser("compute", help="compute workers only")
    options.add_commands(choices, preloaded_folder)
    check = choices.add_parser("check", help="say what would run, and why; start nothing")
    check.add_argument("--json", action="store_true", help="for machines")
    check.add_argument(
        "--start", action="store_true", help="only try whether `serve` could listen now"
    )
    check.set_defaults(run=_check)
    arguments = parser.parse_args()
    try:
        Path.cwd()
    except OSError:
        give_up(f"{name}: the working directory was removed; change to one that is there")
    if arguments.run is _dev:
        _prepare_dev()
    try:
        settings = parts.load_settings().from_env()
    except SettingsError as error:
        give_up(f"{name}: {error}")
    command: Command = arguments.run
    command(arguments, settings, parts)


def _prepare_dev() -> None:
    try:
        from . import dev
    except ModuleNotFoundError as error:
        give_up(f"`dev` needs {error.name}, which is there for development only: `make install`")
    dev.fill_environment()


def _dev(arguments: argparse.Namespace, settings: Settings, parts: Parts) -> None:
    from . import dev

    look_before(settings, "serve")
    dev.watch()
    print(
        f"Service: http://localhost:{settings.port}/   "
        f"Metrics: http://localhost:{settings.admin_port}/metrics   Stop: Ctrl-C",
        flush=True,
    )
    arguments.command = "serve"
    _serve(arguments, settings, parts)


def _check(arguments: argparse.Namespace, settings: Settings, parts: Parts) -> None:
    """Say what would run, and why."""
    if arguments.start:
        look_before(settings, "serve")
        return
    loaded = _preload(parts)
    pools = 2 if settings.compute_url is None else 1  # as `serve` has them
    web = limits.web_workers(settings, pools=pools)
    compute = limits.compute_workers(settings, pools=pools)
    concurrency = limits.concurrency(settings, pools=pools)
    files = limits.open_files()
    found = {
        "web_workers": web.number,
        "web_workers_reason": web.reason,
        "concurrency": concurrency.number,
        "concurrency_reason": concurrency.reason,
        "compute_workers": compute.number,
        "compute_workers_reason": compute.reason,
        "open_files": files.number,
        "open_files_reason": files.reason,
        "preload_seconds": round(loaded.seconds, 3),
        "preload_bytes": loaded.memory,
        "settings": settings.as_json(),
        "suspects": settings.suspects(),
    }
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print(f"web workers: {web.number}, because {web.reason}")
    print(f"requests at work in a web worker: {concurrency.number}, because {concurrency.reason}")
    print(f"compute workers: {compute.number}, because {compute.reason}")
    print(f"open files of each process: {_files(files)}")
    if loaded.modules:
        print(f"preload: {loaded.memory / 2**20:.0f} MiB in {loaded.seconds:.1f} s, shared by all")
    print("settings:")
    for name, value in settings.as_json().items():
        print(f"  {name}={'' if value is None else value}")
    for name, meant in settings.suspects().items():
        print(f"nothing reads the variable {name}: is it meant to be {meant}?")


def _files(count: limits.Count) -> str:
    return f"{count.number or 'any number'}, because {count.reason}"


def _preload(parts: Parts) -> preload.Loaded:
    try:
        return preload.load(parts)
    except Exception:
        traceback.print_exc()
        give_up("preload() failed, as said above; nothing was started")


def give_up(why: str) -> NoReturn:
    print(why, file=sys.stderr)
    sys.exit(2)


def look_before(settings: Settings, command: str) -> None:
    """End the start where `command` could not listen."""
    if found := listening.problems(settings, command):
        give_up("cannot start:\n" + "\n".join(f"  {problem}" for problem in found))


@contextmanager
def runtime_folder(settings: Settings) -> Iterator[Path]:
    """Where the processes keep their metrics and meet: a fresh folder, removed at the end."""
    logs.setup(settings.log_level, settings.log_format, access=settings.access_log)
    if sys.platform != "linux":
        log.warning(
            "this is no Linux, so it is for development only: limits of CPU and memory do not "
            "count, and /metrics has no CPU time, memory and files of the processes"
        )
    for variable, meant in settings.suspects().items():
        log.warning("nothing reads the variable %s: is it meant to be %s?", variable, meant)
    files = limits.open_files()
    limits.raise_open_files()
    log.info("open files of each process (a connection is one, so is a task): %s", _files(files))
    given = settings.prometheus_multiproc_dir
    try:
        if given is None:
            parent = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
            prefix = f"{PACKAGE}-"
            slots.remove_dead(Path(parent or tempfile.gettempdir()), prefix)
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        else:
            folder = given
            folder.mkdir(parents=True, exist_ok=True)
        if len(os.fsencode(folder / SOCKET)) > SOCKET_PATH:
            raise OSError(errno.ENAMETOOLONG, "too long for a socket in it", str(folder))
        values.install(folder)
    except OSError as error:
        give_up(
            f"PROMETHEUS_MULTIPROC_DIR={given or ''}: no folder for metrics: {error}; "
            "mount a tmpfs or an emptyDir for it, or on /tmp"
        )
    try:
        yield folder
    finally:
        if given is None:
            slots.remove_if_last()


@contextmanager
def preloaded_folder(settings: Settings, parts: Parts, command: str) -> Iterator[Path]:
    """The runtime folder, when what the processes share is loaded, and no signal can be lost."""
    look_before(settings, command)
    # until the arbiter's handlers are in place: process 1 would not notice SIGTERM at all
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    with runtime_folder(settings) as folder:
        preload.leave_when_told()
        if (loaded := _preload(parts)).modules:
            took = loaded.memory / 2**20, loaded.seconds
            log.info("preloaded %.0f MiB in %.1f s, shared by all processes", *took)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        yield folder


def _serve(arguments: argparse.Namespace, settings: Settings, parts: Parts) -> NoReturn:
    """Become the management process. Ends by SystemExit, in the workers that it forks too."""
    command = arguments.command or "serve"
    with preloaded_folder(settings, parts, command) as folder:
        if command == "serve" and settings.compute_url is None:
            os.environ["COMPUTE_URL"] = f"unix:{folder / SOCKET}"
            settings = type(settings).from_env()

        from .metrics.catalogue import INFO
        from .process.arbiter import Launcher, Service
        from .process.pools import compute_pool, web_pool
        from .process.standalone import Standalone

        INFO.labels(*service()).set(1)
        here = (settings.compute_url or "").startswith("unix:")  # then web workers speak for it
        pools = 2 if command == "serve" and here else 1
        make_web = partial(web_pool, contexts=options.contexts, claim=options.claim, pools=pools)
        web = Service(make_web, settings, parts)
        compute = Service(partial(compute_pool, pools=pools), settings, parts)
        match command:
            case "web":
                Launcher(web).run()
            case "compute" if here:
                Launcher(compute).run()
            case "compute":
                Standalone(settings, parts).run()
            case _:
                Launcher(web, companion=compute if here else None).run()
    raise AssertionError("the arbiter does not return")
