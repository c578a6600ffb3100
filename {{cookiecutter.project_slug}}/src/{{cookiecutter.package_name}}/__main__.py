"""python -m PACKAGE [serve | web | compute | check [--json]]"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from .server import limits
from .settings import Settings, SettingsError, service
from .telemetry import logs, slots

SHARED_MEMORY = "/dev/shm"


def main() -> None:
    name, version = service()
    parser = argparse.ArgumentParser(prog=name, description=f"{name} {version}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("serve", help="web workers and compute workers (the default)")
    commands.add_parser("web", help="web workers only")
    commands.add_parser("compute", help="compute workers only")
    check = commands.add_parser("check", help="say what would run, and why; start nothing")
    check.add_argument("--json", action="store_true", help="for machines")
    arguments = parser.parse_args()
    try:
        settings = Settings.from_env()
    except SettingsError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
    if arguments.command == "check":
        report(settings, as_json=arguments.json)
    else:
        run(arguments.command or "serve", settings)


def report(settings: Settings, *, as_json: bool) -> None:
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


def run(command: str, settings: Settings) -> NoReturn:
    """Become the management process. Ends by SystemExit, in the workers that it forks too."""
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
        print(
            f"PROMETHEUS_MULTIPROC_DIR={given or ''}: no folder for metrics: {error}; "
            "mount a tmpfs or an emptyDir for it, or on /tmp",
            file=sys.stderr,
        )
        sys.exit(2)
    if command == "serve" and settings.compute_url is None:
        os.environ["COMPUTE_URL"] = f"unix:{folder}/compute.sock"
        settings = Settings.from_env()

    # only now: these make metrics, which must find their slots
    from .server.launcher import Launcher, Service
    from .server.pools import compute_pool, web_pool
    from .telemetry.metrics import INFO

    INFO.labels(*service()).set(1)
    try:
        web, compute = Service(web_pool, settings), Service(compute_pool, settings)
        match command:
            case "web":
                Launcher(web).run()
            case "compute":
                Launcher(compute).run()
            case _:
                Launcher(web, companion=compute).run()
    finally:
        if given is None:
            slots.remove_if_last()
    raise AssertionError("the arbiter does not return")


if __name__ == "__main__":
    main()
