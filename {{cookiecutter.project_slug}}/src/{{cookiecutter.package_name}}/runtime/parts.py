"""What the runtime is handed of the user's, and what the package is called.

Nothing here is imported before it is needed: workers import the application after they are forked,
so that SIGHUP loads new code, and code that does not import takes no management process down.
"""

import sys
from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass
from functools import cache
from importlib import import_module, invalidate_caches
from importlib.metadata import entry_points
from pathlib import Path
from types import TracebackType
from typing import Any

from aiohttp import web

from .settings import Settings

PACKAGE, _, RUNTIME = __package__.rpartition(".")
OURS = Path(__file__).parent


@dataclass(frozen=True)
class Parts:
    """The user's modules in `package`, and what is in them as `module:name`."""

    package: str
    settings: str
    create_app: str
    tasks: str
    preload: str = ""

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

    def load_preload(self) -> Callable[[], object] | None:
        preload: Callable[[], object] | None = self._load(self.preload) if self.preload else None
        return preload

    def check_syntax(self) -> None:
        """Raise SyntaxError where a module of the user's, as it is now, has one."""
        for file in OURS.parent.rglob("*.py"):
            if _is_yours(file):
                compile(file.read_bytes(), file, "exec", dont_inherit=True)

    def own_modules(self) -> set[str]:
        """The user's modules that are imported."""
        ours = f"{self.package}.{RUNTIME}."
        return {
            name
            for name in sys.modules
            if name.startswith(f"{self.package}.") and not f"{name}.".startswith(ours)
        }

    def forget(self, keep: Set[str] = frozenset()) -> None:
        """Have the user's modules, but those of `keep`, imported anew by whoever needs them next.

        The settings are never kept.
        """
        invalidate_caches()
        settings = f"{self.package}.{self.settings.partition(':')[0]}"
        for name in self.own_modules() - (keep - {settings}):
            del sys.modules[name]
            parent, _, child = name.rpartition(".")
            vars(sys.modules.get(parent)).pop(child, None)


def brief(
    error: BaseException,
) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """`exc_info` for the log: from the first line of the user's on, without what called it."""
    found = error.__traceback__
    while found and not _is_yours(Path(found.tb_frame.f_code.co_filename)):
        found = found.tb_next
    if found is None and not isinstance(error, SyntaxError):  # which names its line itself
        found = error.__traceback__
    return type(error), error, found


def _is_yours(file: Path) -> bool:
    return OURS.parent in file.parents and OURS not in file.parents


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
