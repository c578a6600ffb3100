"""`python -m PACKAGE dev`: one worker, and new code as soon as it is saved.

What it imports is installed for development only.
"""

import os
import signal
import sys
from pathlib import Path

import watchfiles
from dotenv import load_dotenv

A_DAY = "86400"  # seconds
SUITABLE = {
    "HOST": "127.0.0.1",
    "ADMIN_HOST": "127.0.0.1",
    "API_DOCS": "true",
    "WEB_CONCURRENCY": "1",
    "COMPUTE_CONCURRENCY": "1",
    "LAME_DUCK": "0",
    "LOG_FORMAT": "console",
    "WORKER_TIMEOUT": A_DAY,  # breakpoint() blocks a worker
    "COMPUTE_TIMEOUT": A_DAY,
}
SOURCES = Path(__file__).parents[1]
SETTLED = 50  # milliseconds without a change; an editor may write a file in steps
CHECK = 1000  # milliseconds between two looks at whether the service is there


def fill_environment() -> None:
    """Add what it says nothing about: from `.env` in the working directory, then what suits."""
    load_dotenv(Path(".env"))
    for name, value in SUITABLE.items():
        if not os.environ.get(name):
            os.environ[name] = value
    # it would be taken for that of a file of the same size, saved within the same second
    sys.dont_write_bytecode = True


def watch() -> None:
    """From now on, whenever a file of the package is saved, this process gets SIGHUP."""
    service = os.getpid()
    if os.fork():
        return
    # a terminal that is closed tells everybody, and to the service it would be a reload
    signal.signal(signal.SIGHUP, lambda *_: os.kill(service, signal.SIGTERM))
    for changes in watchfiles.watch(
        SOURCES,
        debounce=10 * SETTLED,
        step=SETTLED,
        rust_timeout=CHECK,
        yield_on_timeout=True,
        raise_interrupt=False,
    ):
        if os.getppid() != service:
            break
        if changes:
            os.kill(service, signal.SIGHUP)
    sys.exit()
