"""The runtime's settings, and how each is read: from the environment, once, validated together."""

import ipaddress
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self, dataclass_transform

from yarl import URL


class SettingsError(Exception):
    """One or more settings are wrong; the message names each of them with its value."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("wrong settings:\n" + "\n".join(f"  {problem}" for problem in problems))


def _number(text: str, kind: type[int] | type[float], low: float, high: float) -> Any:
    try:
        number = kind(text)
    except ValueError:
        number = kind(-1)
    if not low <= number <= high:
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"give {what} from {low:g} to {high:g}")
    return number


def whole(low: int, high: int) -> Callable[[str], int]:
    return lambda text: _number(text, int, low, high)


def seconds(low: float, high: float = 86_400) -> Callable[[str], float]:
    return lambda text: _number(text, float, low, high)


def one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError("give " + " or ".join(choices))
        return text.lower()

    return parse


def boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise ValueError("give true or false")


def address(text: str) -> str:
    if text == "localhost":
        return "127.0.0.1"
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError("give an IP address to listen on, such as 0.0.0.0 or ::") from None
    if isinstance(ip, ipaddress.IPv6Address) and (ip.is_link_local or ip.scope_id):
        raise ValueError("give no link-local address, but one such as :: or 0.0.0.0")
    return str(ip)


_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def size(text: str) -> int:
    """Bytes of a quantity written as Kubernetes does."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kMG]?i?)", text)
    number = float(match[1]) * _UNITS[match[2]] if match and match[2] in _UNITS else 0
    if not 1 <= number < 2**60:
        raise ValueError("give a size in bytes, or with a unit such as 96Mi or 1Gi")
    return int(number)


def folder(text: str) -> Path:
    path = Path(text).absolute()
    try:
        existing = next(p for p in (path, *path.parents) if p.exists())
        good = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    except OSError:  # its name is too long, or it is in a folder that nobody lets us see
        existing, good = path, False
    if not good:
        raise ValueError(
            f"{existing} cannot be written; mount a tmpfs or an emptyDir there, or leave it unset"
        )
    return path


SOCKET_PATH = 107 if sys.platform == "linux" else 103  # bytes of a path that the kernel takes


def networks_or_hops(text: str) -> str:
    if re.fullmatch("[1-9][0-9]?", text):
        return text
    try:
        return ",".join(str(ipaddress.ip_network(part.strip())) for part in text.split(","))
    except ValueError:
        raise ValueError(
            "give networks such as 10.0.0.0/8,fd00::/8, or how many proxies stand in front"
        ) from None


def compute_url(text: str) -> str:
    if text.startswith("unix:/"):
        if len(os.fsencode(text.removeprefix("unix:"))) > SOCKET_PATH:
            raise ValueError(f"the path of a unix socket has at most {SOCKET_PATH} bytes")
        return text
    try:
        url = URL(text)
        good = url.scheme in ("http", "https") and url.host and url.port and url == url.origin()
        good = good and not re.search(r"\s", text)
    except ValueError:
        good = False
    if not good:
        raise ValueError("give unix:/path/of/a.sock or http://host:port")
    return text.rstrip("/")


HIDDEN = "***"
LIKENESS = 0.86  # of two names, from 0 to 1, where one may be meant to be the other


def setting(default: Any, parse: Callable[[str], Any], *, secret: bool = False) -> Any:
    """A field of Settings.

    Args:
        parse: reads the text of the environment; raises ValueError with the rule where it is wrong.
        secret: whether the value is shown as *** wherever settings are shown.
    """
    return field(default=default, metadata={"parse": parse, "secret": secret})


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(setting,))
class _Dataclass:
    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True, repr=False)(cls)


class Settings(_Dataclass):
    """What the environment says; `HOST` is `host`. Times are in seconds, sizes in bytes."""

    host: str = setting("0.0.0.0", address)
    port: int = setting(8080, whole(1, 65535))
    admin_host: str = setting("0.0.0.0", address)
    admin_port: int = setting(8081, whole(1, 65535))
    admin_page: bool = setting(True, boolean)
    api_docs: bool = setting(False, boolean)
    backlog: int = setting(2048, whole(1, 65535))

    web_concurrency: int | None = setting(None, whole(1, 512))
    worker_memory: int = setting(96 * 2**20, size)
    cpu_request: int | None = setting(None, whole(1, 10**6))
    cpu_limit: int | None = setting(None, whole(1, 10**6))
    memory_limit: int | None = setting(None, size)

    event_loop: str = setting("uvloop", one_of("uvloop", "asyncio"))
    graceful_timeout: float = setting(20.0, seconds(1))
    lame_duck: float = setting(5.0, seconds(0))
    grace_period: float | None = setting(None, seconds(1))
    worker_timeout: float = setting(30.0, seconds(2))
    ready_interval: float = setting(5.0, seconds(0.1))
    ready_timeout: float = setting(2.0, seconds(0.1, 60))
    max_requests: int = setting(0, whole(0, 10**9))

    keepalive: float = setting(75.0, seconds(0))
    header_timeout: float = setting(20.0, seconds(0.1))
    body_timeout: float = setting(30.0, seconds(0.1))
    write_timeout: float = setting(30.0, seconds(0.1))
    max_connections: int = setting(4096, whole(1, 10**6))
    max_concurrency: int | None = setting(None, whole(1, 10**6))
    max_body: int = setting(2**20, size)

    trusted_proxies: str | None = setting(None, networks_or_hops)
    proxy_headers: str = setting("x-forwarded", one_of("x-forwarded", "forwarded"))

    log_level: str = setting("info", one_of("debug", "info", "warning", "error", "critical"))
    log_format: str = setting("json", one_of("json", "console"))
    access_log: bool = setting(True, boolean)
    prometheus_multiproc_dir: Path | None = setting(None, folder)

    compute_url: str | None = setting(None, compute_url)
    compute_concurrency: int | None = setting(None, whole(1, 512))
    compute_backlog: int = setting(64, whole(1, 65535))
    compute_timeout: float = setting(30.0, seconds(0.1))
    compute_max_tasks: int = setting(1000, whole(0, 10**9))

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Self:
        """Read and check every setting. An empty value counts as unset.

        Raises:
            SettingsError: with all that is wrong at once.
        """
        values: dict[str, Any] = {}
        problems = []
        for field_ in fields(cls):
            name = field_.name.upper()
            text = env.get(name, "").strip()
            if text:
                try:
                    values[field_.name] = field_.metadata["parse"](text)
                except ValueError as error:
                    problem = f"{name}={text!r}: {error}"
                    secret = field_.metadata["secret"]
                    problems.append(problem.replace(text, HIDDEN) if secret else problem)
        settings = cls(**values)
        if settings.port == settings.admin_port:
            problems.append(
                f"ADMIN_PORT={settings.admin_port}: is PORT too; give each a port of its own"
            )
        lame_duck, graceful = settings.lame_duck, settings.graceful_timeout
        if (grace := settings.grace_period) is not None and lame_duck + graceful >= grace:
            problems.append(
                f"LAME_DUCK={lame_duck:g}, GRACEFUL_TIMEOUT={graceful:g}: "
                f"the end comes with GRACE_PERIOD={grace:g}; make the sum smaller, "
                "or raise that, and terminationGracePeriodSeconds too"
            )
        if problems:
            raise SettingsError(problems)
        return settings

    @classmethod
    def suspects(cls, env: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Variables that nothing reads, and the settings that they look like."""
        known = [field_.name.upper() for field_ in fields(cls)]
        close = {n: get_close_matches(n.upper(), known, 1, LIKENESS) for n in env if n not in known}
        return {name: found[0] for name, found in close.items() if found}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.as_json()})"

    def as_json(self) -> dict[str, Any]:
        """The settings by the names of their variables, ready for json.dumps."""
        shown = {}
        for field_ in fields(self):
            value = getattr(self, field_.name)
            if field_.metadata["secret"] and value is not None:
                value = HIDDEN
            elif not isinstance(value, int | float | str | None):
                value = str(value)
            shown[field_.name.upper()] = value
        return shown
