"""The commands of `python -m PACKAGE`."""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from . import logs, options
from .metrics import slots, values
from .parts import PACKAGE, Parts, service
from .process import limits
from .settings import Settings, SettingsError

SHARED_MEMORY = "/dev/shm"

Command = Callable[[argparse.Namespace, Any, Parts], None]


def command_line(parts: Parts) -> None:
    """Do what the arguments of this process say: [serve | web | compute | check [--json]]"""
    name, version = service()
    parser = argparse.ArgumentParser(prog=name, description=f"{name} {version}")
    parser.set_defaults(run=_serve, command="serve")
    choices = parser.add_subparsers(dest="command", metavar="COMMAND")
    choices.add_parser("serve", help="web workers and compute workers (the default)")
    choices.add_parser("web", help="web workers only")
    choices.add_parser("compute", help="compute workers only")
    options.add_commands(choices)
    check = choices.add_parser("check", help="say what would run, and why; start nothing")
    check.add_argument("--json", action="store_true", help="for machines")
    check.set_defaults(run=_check)
    arguments = parser.parse_args()
    try:
        settings = parts.load_settings().from_env()
    except SettingsError as error:
        give_up(f"{name}: {error}")
    command: Command = arguments.run
    command(arguments, settings, parts)


def _check(arguments: argparse.Namespace, settings: Settings, parts: Parts) -> None:
    """Say what would run, and why."""
    web, compute = limits.web_workers(settings), limits.compute_workers(settings)
    found = {
        "web_workers": web.number,
        "web_workers_reason": web.reason,
        "compute_workers": compute.number,
        "compute_workers_reason": compute.reason,
        "settings": settings.as_json(),
    }
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print(f"web workers: {web.number}, because {web.reason}")
    print(f"compute workers: {compute.number}, because {compute.reason}")
    print("settings:")
    for name, value in settings.as_json().items():
        print(f"  {name}={'' if value is None else value}")


def give_up(why: str) -> NoReturn:
    print(why, file=sys.stderr)
    sys.exit(2)


def check_socket(url: str) -> None:
    """End the start where a pool could not listen on its unix socket."""
    folder = Path(url.removeprefix("unix:")).parent
    if url.startswith("unix:") and not os.access(folder, os.W_OK | os.X_OK):
        give_up(f"COMPUTE_URL={url!r}: {folder} is no folder that can be written; make or mount it")


@contextmanager
def runtime_folder(settings: Settings) -> Iterator[Path]:
    """Where the processes keep their metrics and meet: a fresh folder, removed at the end."""
    logs.setup(settings.log_level, settings.log_format, access=settings.access_log)
    given = settings.prometheus_multiproc_dir
    try:
        if given is None:
            parent = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
            folder = Path(tempfile.mkdtemp(prefix=f"{PACKAGE}-", dir=parent))
        else:
            folder = given
            folder.mkdir(parents=True, exist_ok=True)
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


def _serve(arguments: argparse.Namespace, settings: Settings, parts: Parts) -> NoReturn:
    """Become the management process. Ends by SystemExit, in the workers that it forks too."""
    command = arguments.command or "serve"
    # until the arbiter's handlers are in place: process 1 would not notice SIGTERM at all
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    with runtime_folder(settings) as folder:
        if command == "serve" and settings.compute_url is None:
            os.environ["COMPUTE_URL"] = f"unix:{folder}/compute.sock"
            settings = type(settings).from_env()
        if command != "web":
            check_socket(settings.compute_url or "")

        from .metrics.catalogue import INFO
        from .process.arbiter import Launcher, Service
        from .process.pools import compute_pool, web_pool
        from .process.standalone import Standalone

        INFO.labels(*service()).set(1)
        web, compute = Service(web_pool, settings, parts), Service(compute_pool, settings, parts)
        here = (settings.compute_url or "").startswith("unix:")  # then web workers speak for it
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
