"""python -m PACKAGE [serve | web | compute | jobs [dead | retry ID...] | check [--json]]"""

import argparse
import sys

from . import commands
from .jobs import commands as jobs
from .jobs.settings import JobSettings
from .settings import SettingsError, service


def main() -> None:
    name, version = service()
    parser = argparse.ArgumentParser(prog=name, description=f"{name} {version}")
    choices = parser.add_subparsers(dest="command", metavar="COMMAND")
    choices.add_parser("serve", help="web workers and compute workers (the default)")
    choices.add_parser("web", help="web workers only")
    choices.add_parser("compute", help="compute workers only")
    jobs.add_to(choices.add_parser("jobs", help="a job worker, or what to do with dead jobs"))
    check = choices.add_parser("check", help="say what would run, and why; start nothing")
    check.add_argument("--json", action="store_true", help="for machines")
    arguments = parser.parse_args()
    try:
        settings = JobSettings.from_env()
    except SettingsError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
    match arguments.command:
        case "check":
            commands.report(settings, as_json=arguments.json)
        case "jobs":
            jobs.run(arguments, settings)
        case command:
            commands.run(command or "serve", settings)


if __name__ == "__main__":
    main()
