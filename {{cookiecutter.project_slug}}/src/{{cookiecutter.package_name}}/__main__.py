"""python -m PACKAGE [serve | web | compute | check [--json]]"""

import argparse
import sys

from . import commands
from .settings import Settings, SettingsError, service


def main() -> None:
    name, version = service()
    parser = argparse.ArgumentParser(prog=name, description=f"{name} {version}")
    choices = parser.add_subparsers(dest="command", metavar="COMMAND")
    choices.add_parser("serve", help="web workers and compute workers (the default)")
    choices.add_parser("web", help="web workers only")
    choices.add_parser("compute", help="compute workers only")
    check = choices.add_parser("check", help="say what would run, and why; start nothing")
    check.add_argument("--json", action="store_true", help="for machines")
    arguments = parser.parse_args()
    try:
        settings = Settings.from_env()
    except SettingsError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
    if arguments.command == "check":
        commands.report(settings, as_json=arguments.json)
    else:
        commands.run(arguments.command or "serve", settings)


if __name__ == "__main__":
    main()
