"""What the commands of `python -m PACKAGE` do."""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from .server import limits
from .settings import Settings, service
from .telemetry import logs, slots

SHARED_MEMORY = "/dev/shm"


def report(settings: Settings, *, as_json: bool) -> None:
    """Say what would run, and why."""
    web, compute = limits.web_workers(settings), limits.compute_workers(settings)
    found = {
        "web_workers": web.number,
        "web_workers_reason": web.reason,
        "compute_workers": compute.number,
        "compute_workers_reason": compute.reason,
        "settings": settings.as_json(),
    }
    if as_json:
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
    """Where the processes keep their metrics and meet: a fresh folder, removed at the end.

    Only inside of it may modules that make metrics be imported: they must find their slots.
    """
    logs.setup(settings.log_level, settings.log_format, access=settings.access_log)
    given = settings.prometheus_multiproc_dir
    try:
        if given is None:
            parent = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
            folder = Path(tempfile.mkdtemp(prefix=f"{__package__}-", dir=parent))
        else:
            folder = given
            folder.mkdir(parents=True, exist_ok=True)
        slots.install(folder)
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


def run(command: str, settings: Settings) -> NoReturn:
    """Become the management process. Ends by SystemExit, in the workers that it forks too."""
    # until the arbiter's handlers are in place: process 1 would not notice SIGTERM at all
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    with runtime_folder(settings) as folder:
        if command == "serve" and settings.compute_url is None:
            os.environ["COMPUTE_URL"] = f"unix:{folder}/compute.sock"
            settings = Settings.from_env()
        if command != "web":
            check_socket(os.environ.get("COMPUTE_URL", ""))

        from .server.launcher import Launcher, Service
        from .server.pools import compute_pool, web_pool
        from .server.standalone import Standalone
        from .telemetry.metrics import INFO

        INFO.labels(*service()).set(1)
        web, compute = Service(web_pool, settings), Service(compute_pool, settings)
        here = (settings.compute_url or "").startswith("unix:")  # then web workers speak for it
        match command:
            case "web":
                Launcher(web).run()
            case "compute" if here:
                Launcher(compute).run()
            case "compute":
                Standalone(settings).run()
            case _:
                Launcher(web, companion=compute if here else None).run()
    raise AssertionError("the arbiter does not return")
