"""The runtime's one public face: all that app, views, tasks and settings need of it.

`jobs` is here too where the project was generated with a job queue.
"""

import sys

if sys.platform == "win32":
    sys.exit("This does not run on Windows itself: run it in WSL, or build and run its container.")

from . import broadcast, compute
from .cli import command_line
from .compute import RefusedError, task
from .http.admin import add_admin_routes
from .http.body import max_body
from .http.typed import Routes
from .options import Settings
from .parts import Parts, service
from .preload import PRELOADED, preloaded
from .ready import add_ready_check
from .schedule import every
from .settings import SettingsError, boolean, one_of, seconds, setting, size, whole

__all__ = [
    "PRELOADED",
    "Parts",
    "RefusedError",
    "Routes",
    "Settings",
    "SettingsError",
    "add_admin_routes",
    "add_ready_check",
    "boolean",
    "broadcast",
    "command_line",
    "compute",
    "every",
    "max_body",
    "one_of",
    "preloaded",
    "seconds",
    "service",
    "setting",
    "size",
    "task",
    "whole",
]
