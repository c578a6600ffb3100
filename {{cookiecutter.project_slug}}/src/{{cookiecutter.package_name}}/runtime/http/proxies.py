"""Who the client is behind proxies that we trust: its address, and the scheme and host it asked.

Each proxy appends what it saw, so that what is true stands on the right, and what a client may have
made up on the left. We go from right to left as long as whoever has written an entry is trusted.
"""

import ipaddress
import re
from typing import Any, NamedTuple

from aiohttp import web

from .body import HOST

_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::[0-9]+)?|([0-9A-Fa-f:.]+)").fullmatch


class _Entry(NamedTuple):
    """What one proxy has said."""

    address: str
    scheme: str
    host: str


def _forwarded(request: web.BaseRequest) -> list[_Entry]:
    return [
        _Entry(one.get("for", ""), one.get("proto", ""), one.get("host", ""))
        for one in request.forwarded
    ]


def _x_forwarded(request: web.BaseRequest) -> list[_Entry]:
    lists = [
        [one.strip() for line in request.headers.getall(name, ()) for one in line.split(",")]
        for name in ("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host")
    ]
    longest = max(map(len, lists))
    # most proxies append to the first and replace the others: these belong to the last entry
    even = ([""] * (longest - len(one)) + one for one in lists)
    return [_Entry(*entry) for entry in zip(*even, strict=True)]


def _address(text: str) -> str | None:
    match = _ADDRESS(text)
    try:
        return str(ipaddress.ip_address(match[1] or match[2] or match[3])) if match else None
    except ValueError:
        return None


class Proxies:
    """Those in front of us."""

    def __init__(self, trusted: str, headers: str) -> None:
        """
        Args:
            trusted: their networks, or how many there are.
            headers: "forwarded" or "x-forwarded", which of them they set.
        """
        self._hops = int(trusted) if trusted.isdigit() else 0
        self._networks = [] if self._hops else [*map(ipaddress.ip_network, trusted.split(","))]
        self._entries = _forwarded if headers == "forwarded" else _x_forwarded

    def _trusts(self, address: str | None, hop: int) -> bool:
        if self._hops or address is None:
            return hop < self._hops
        parsed = ipaddress.ip_address(address)
        mapped = getattr(parsed, "ipv4_mapped", None) or parsed
        return any(mapped in network for network in self._networks)

    def see_through(self, request: Any) -> Any:
        """The request as its client has made it."""
        address = _address(request.remote or "")
        found: dict[str, str] = {}
        for hop, entry in enumerate(reversed(self._entries(request))):
            if not self._trusts(address, hop):
                break
            if entry.scheme.lower() in ("http", "https"):
                found["scheme"] = entry.scheme.lower()
            if HOST(entry.host) and not request._message.url.absolute:
                found["host"] = entry.host
            address = _address(entry.address)
            if address is None:
                break
            found["remote"] = address
        return request.clone(**found) if found else request
