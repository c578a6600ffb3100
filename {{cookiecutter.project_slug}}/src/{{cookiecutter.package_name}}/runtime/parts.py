"""What the runtime is handed of the user's, and what the package is called.

Nothing here is imported before it is needed: workers import the application after they are forked,
so that SIGHUP loads new code, and code that does not import takes no management process down.
"""

import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module, invalidate_caches
from importlib.metadata import entry_points
from typing import Any

from aiohttp import web

from .settings import Settings

PACKAGE, _, RUNTIME = __package__.rpartition(".")


@dataclass(frozen=True)
class Parts:
    """The user's modules in `package`, and what is in them as `module:name`."""

    package: str
    settings: str
    create_app: str
    tasks: str

    def _load(self, part: str) -> Any:
        module, _, name = part.partition(":")
        found = import_module(f"{self.package}.{module}")
        return getattr(found, name) if name else found

    def load_settings(self) -> type[Settings]:
        settings: type[Settings] = self._load(self.settings)
        return settings

    def load_create_app(self) -> Callable[[], Awaitable[web.Application]]:
        create_app: Callable[[], Awaitable[web.Application]] = self._load(self.create_app)
        return create_app

    def load_tasks(self) -> None:
        self._load(self.tasks)

    def forget(self) -> None:
        """Have what is imported of the user's modules imported anew by whoever needs it next."""
        invalidate_caches()
        ours = f"{self.package}.{RUNTIME}"
        for name in list(sys.modules):
            if name.startswith(f"{self.package}.") and not f"{name}.".startswith(f"{ours}."):
                del sys.modules[name]
                parent, _, child = name.rpartition(".")
                vars(sys.modules.get(parent)).pop(child, None)


@cache
def service() -> tuple[str, str]:
    """The name and the version of the installed distribution that this package belongs to.

    Raises:
        RuntimeError: if the package was not installed.
    """
    for script in entry_points(group="console_scripts"):
        if script.module == f"{PACKAGE}.__main__" and script.dist is not None:
            return script.dist.name, script.dist.version
    raise RuntimeError(f"{PACKAGE} is not installed; run `make install` or `pip install -e .`")
