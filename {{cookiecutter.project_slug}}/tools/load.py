"""make load: Locust over loadtest/locustfile.py, against a start of its own or URL=..."""

import argparse
import ipaddress
import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from urllib.parse import urlsplit

from .service import ROOT, running

REPORT = ROOT / "load-report.html"


def is_here(host: str) -> bool:
    """Whether a name stands for this machine, and for nothing else."""
    try:
        found = {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(host, None)}
    except OSError as error:
        sys.exit(f"URL names {host!r}, which is no known host: {error}")
    return all(ipaddress.ip_address(address).is_loopback for address in found)


def checked(url: str, again: str) -> str:
    """The URL, where it may be loaded."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        sys.exit(f"URL={url!r} is no address: give one such as http://localhost:8080")
    if not is_here(parts.hostname) and again != parts.hostname:
        wrong = f"HOST_AGAIN={again!r} is another name. " if again else ""
        sys.exit(
            f"{wrong}{parts.hostname} is not this machine, and load may bring it down. Where it is"
            f" yours and meant, say so twice:\n\n"
            f"    make load URL={url} HOST_AGAIN={parts.hostname}"
        )
    return url.rstrip("/")


def locust(url: str, users: int, seconds: float, **environment: str) -> list[str]:
    """The command; its environment is set on the way."""
    os.environ.update(
        environment,
        LOCUST_HOST=url,
        LOAD_SECONDS=str(seconds),
    )
    files = f"{ROOT / 'loadtest' / 'locustfile.py'},{Path(__file__).with_name('locust_parts.py')}"
    command = [sys.executable, "-m", "locust", "-f", files, "--headless", "--only-summary"]
    command += ["--users", str(users), "--spawn-rate", str(max(1, users / 5))]
    return [*command, "--run-time", f"{seconds:g}s", "--stop-timeout", "5", "--loglevel", "WARNING"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", default="")
    parser.add_argument("--again", default="")
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=30)
    given = parser.parse_args()
    url = checked(given.url, given.again) if given.url else ""
    with nullcontext() if url else running() as service:
        at = service.url if service else url
        print(f"{given.users} users for {given.seconds:g} s at {at}", flush=True)
        command = locust(at, given.users, given.seconds)
        done = subprocess.run([*command, "--html", str(REPORT)], cwd=ROOT, check=False)
    print(f"Report: {REPORT}")
    if done.returncode:
        sys.exit("Some requests failed: the table above names them.")


if __name__ == "__main__":
    main()
