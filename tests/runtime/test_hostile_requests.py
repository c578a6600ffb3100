"""Requests that are malformed, smuggle, or lie about who sends them."""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Service, wait_for
from wire import Wire

Start = Callable[..., Service]


def started(folder: Path, code: Path, **env: str) -> Iterator[Service]:
    shared = Service(folder, code, "web", {"WEB_CONCURRENCY": "1", "HEADER_TIMEOUT": "1", **env})
    try:
        shared.wait_until_live()
        yield shared
        assert "Traceback" not in (said := shared.log.read_text()), said
    finally:
        shared.kill()


@pytest.fixture(scope="module", params=["uvloop-json", "asyncio-console"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, code: Path
) -> Iterator[Service]:
    loop, log_format = request.param.split("-")
    folder = tmp_path_factory.mktemp("service")
    yield from started(folder, code, EVENT_LOOP=loop, LOG_FORMAT=log_format)


GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
POST = b"POST /body/read HTTP/1.1\r\nHost: a\r\n"
# what is sent; the status of each answer; whether the connection ends after them
REQUESTS: dict[str, tuple[bytes, list[int], bool]] = {
    "length twice, different": (
        POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        [400],
        True,
    ),
    "length twice, the same": (
        POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        [400],
        True,
    ),
    "list of lengths": (POST + b"Content-Length: 3, 3\r\n\r\nabc", [400], True),
    "signed length": (POST + b"Content-Length: +3\r\n\r\nabc", [400], True),
    "negative length": (POST + b"Content-Length: -3\r\n\r\nabc", [400], True),
    "length in hex": (POST + b"Content-Length: 0x3\r\n\r\nabc", [400], True),
    "length of 30 digits": (POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n", [400], True),
    "length with a space in it": (POST + b"Content-Length: 1 1\r\n\r\nabc", [400], True),
    "length and chunks": (
        POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        [400],
        True,
    ),
    "chunks and length": (
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        [400],
        True,
    ),
    "chunked is not last": (
        POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        [400],
        True,
    ),
    "chunked twice": (
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        [400],
        True,
    ),
    "unknown transfer encoding": (
        POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        [400],
        True,
    ),
    "chunk size is no number": (
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        [400],
        True,
    ),
    "chunk size is negative": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        [400],
        True,
    ),
    "chunk size is too long": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"F" * 17 + b"\r\n\r\n",
        [400],
        True,
    ),
    "chunk is longer than it says": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
        [400],
        True,
    ),
    "bare LF after a chunk size": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n",
        [400],
        True,
    ),
    "obs-fold": (GET + b"X: a\r\n b\r\n\r\n", [400], True),
    "bare LF": (b"GET / HTTP/1.1\nHost: a\n\n", [400], True),
    "bare CR": (b"GET / HTTP/1.1\rHost: a\r\r", [400], True),
    "CR in a value": (GET + b"X: a\rb\r\n\r\n", [400], True),
    "null byte in a value": (GET + b"X: a\0b\r\n\r\n", [400], True),
    "null byte in a name": (GET + b"X\0Y: a\r\n\r\n", [400], True),
    "null byte in the path": (b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", [400], True),
    "space before the colon": (GET + b"X : a\r\n\r\n", [400], True),
    "name of no letters": (GET + b": a\r\n\r\n", [400], True),
    "line without a colon": (GET + b"X\r\n\r\n", [400], True),
    "no Host": (b"GET / HTTP/1.1\r\n\r\n", [400], True),
    "two Hosts": (GET + b"Host: b\r\n\r\n", [400], True),
    "bad Host, not asked for": (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", [200], False),
    "bad Host, asked for": (b"GET /body/url HTTP/1.1\r\nHost: a b\r\n\r\n", [400], True),
    "HTTP/1.0": (b"GET / HTTP/1.0\r\n\r\n", [200], True),
    "HTTP/1.1.1": (b"GET / HTTP/1.1.1\r\nHost: a\r\n\r\n", [400], True),
    "HTTP/0.9": (b"GET /\r\n\r\n", [505], True),
    **{
        f"HTTP/{version}": (f"GET / HTTP/{version}\r\nHost: a\r\n\r\n".encode(), [status], True)
        for version, status in {"2.0": 505, "0.9": 505, "1.2": 400, "3.0": 400, "1": 400}.items()
    },
    "HTTP/2.0 with a body": (
        b"POST /body/read HTTP/2.0\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
        [505],
        True,
    ),
    "preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400], True),
    "TLS": (bytes.fromhex("16030100c8010000c40303") + bytes(200), [400], True),
    "PROXY, version 1": (
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + GET + b"\r\n",
        [400],
        True,
    ),
    "PROXY, version 2": (b"\r\n\r\n\0\r\nQUIT\n!\x11\0\x0c" + bytes(12), [400], True),
    "unknown method": (b"NONSENSE / HTTP/1.1\r\nHost: a\r\n\r\n", [400], True),
    "method in small letters": (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", [400], True),
    "path without a slash": (b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", [400], True),
    "absolute form": (b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", [200], False),
    "absolute form, bad": (b"GET http://[/ HTTP/1.1\r\nHost: a\r\n\r\n", [400], True),
    "authority form": (b"GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n", [400], True),
    "asterisk form": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", [404], False),
    "long path": (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", [400], True),
    "long value": (GET + b"X: " + b"x" * 9000 + b"\r\n\r\n", [400], True),
    "many headers": (GET + b"X: a\r\n" * 200 + b"\r\n", [400], True),
    "path of no UTF-8": (b"GET /greet/%ff%fe HTTP/1.1\r\nHost: a\r\n\r\n", [200], False),
    "raw bytes in the path": (b"GET /greet/\xff HTTP/1.1\r\nHost: a\r\n\r\n", [400], True),
    "dots in the path": (b"GET /../../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n", [404], False),
    "unknown expectation": (GET + b"Expect: tea\r\n\r\n", [417], False),
    "upgrade to what is unknown": (
        GET + b"Connection: upgrade\r\nUpgrade: tea\r\n\r\n",
        [200],
        False,
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_malformed_request(service: Service, name: str) -> None:
    request, statuses, ends = REQUESTS[name]
    with Wire(service.port) as wire:
        wire.send(request)
        found = [wire.answer().status for _ in statuses]
        assert found == statuses
        if ends:
            assert wire.until_closed() == b""
        else:
            wire.send(GET + b"\r\n")
            assert wire.answer().status == 200


@pytest.mark.parametrize("name", [name for name in REQUESTS if name.startswith("HTTP/")])
def test_the_admin_port_speaks_the_same(service: Service, name: str) -> None:
    request, statuses, ends = REQUESTS[name]
    with Wire(service.admin_port) as wire:
        wire.send(request.replace(b" / ", b" /livez ").replace(b" /\r", b" /livez\r"))
        assert [wire.answer().status for _ in statuses] == statuses
        assert not ends or wire.until_closed() == b""


def test_another_version_behind_a_good_request(service: Service) -> None:
    with Wire(service.port) as wire:
        wire.send(GET + b"\r\n" + REQUESTS["HTTP/2.0"][0])
        statuses = re.findall(rb"HTTP/1.[01] (\d+)", wire.until_closed())
        assert statuses == [b"200", b"505"]


def test_a_pipeline_of_thousands(service: Service) -> None:
    with Wire(service.port) as wire:
        wire.socket.setblocking(True)
        wire.send(5000 * (GET + b"\r\n"))
        wire.send(GET + b"Connection: close\r\n\r\n")
        assert wire.until_closed().count(b"HTTP/1.1 200") == 5001


def test_no_label_is_of_a_clients_making(service: Service) -> None:
    for request, _, _ in REQUESTS.values():
        with Wire(service.port) as wire:
            wire.send(request)
    known = {"/", "/body/read", "/body/url", "/greet/{name}", "unmatched"}
    labels = [labels for name, labels, _ in service.scrape() if name == "http_requests_total"]
    assert {one["route"] for one in labels} <= known
    assert {one["status"] for one in labels} <= {"200", "400", "404", "408", "417", "505", "none"}


def test_no_versions_are_told(service: Service) -> None:
    for answer in (
        service.get("/"),
        service.get("/nowhere"),
        service.get("/readyz", admin=True),
    ):
        assert answer.headers["Server"] == "aiohttp"
    assert service.get("/").headers["X-Content-Type-Options"] == "nosniff"


def test_no_line_of_the_log_is_of_a_clients_making(service: Service) -> None:
    forged = '{"forged": 1}'
    for value in (f"a\\n{forged}", f"a%0a{forged}", f'"}}{forged}', "\u2028x", "\x1b[31m", "\x85"):
        for name in ("X-Request-ID", "traceparent", "User-Agent", "X-Forwarded-For"):
            with Wire(service.port) as wire:
                wire.send(GET + f"{name}: {value}\r\n\r\n".encode())
                wire.answer()
        with Wire(service.port) as wire:
            wire.send(f"GET /{value.replace(' ', '%20')} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            wire.answer()
    service.get("/greet/last")
    wait_for(lambda: service.says("/greet/last"))
    lines = service.log.read_text(encoding="utf-8").splitlines()
    if service.env["LOG_FORMAT"] == "json":
        assert all("forged" not in json.loads(line) for line in lines)
    assert not [line for line in lines if line.startswith("{") and line[1:] == '"forged": 1}']
    assert "\x1b" not in "".join(lines)


PROXIES = [
    ("127.0.0.0/8", {"X-Forwarded-For": "1.2.3.4"}, ("1.2.3.4", "http", None)),
    (
        "127.0.0.0/8,10.0.0.0/8",
        {
            "X-Forwarded-For": "6.6.6.6, 1.2.3.4, 10.0.0.1",
            "X-Forwarded-Proto": "https",
            "X-Forwarded-Host": "example.org",
        },
        ("1.2.3.4", "https", "example.org"),
    ),
    ("2", {"X-Forwarded-For": "6.6.6.6, 1.2.3.4, 10.0.0.1"}, ("1.2.3.4", "http", None)),
    ("1", {"X-Forwarded-For": "6.6.6.6, [fd00::1]:80"}, ("fd00::1", "http", None)),
    ("1", {"X-Forwarded-For": "6.6.6.6, unknown"}, ("127.0.0.1", "http", None)),
    ("1", {"X-Forwarded-For": "1.2.3.4", "X-Forwarded-Proto": "ftp"}, ("1.2.3.4", "http", None)),
    ("1", {"X-Forwarded-For": "1.2.3.4", "X-Forwarded-Host": "a b"}, ("1.2.3.4", "http", None)),
    ("10.0.0.0/8", {"X-Forwarded-For": "1.2.3.4"}, ("127.0.0.1", "http", None)),
    ("1", {"Forwarded": "for=1.2.3.4;proto=https"}, ("127.0.0.1", "http", None)),
    ("", {"X-Forwarded-For": "1.2.3.4", "Forwarded": "for=1.2.3.4"}, ("127.0.0.1", "http", None)),
    (
        "1 forwarded",
        {"Forwarded": 'for=6.6.6.6, for="[fd00::1]:80";proto=https;host=example.org'},
        ("fd00::1", "https", "example.org"),
    ),
    ("1 forwarded", {"X-Forwarded-For": "1.2.3.4"}, ("127.0.0.1", "http", None)),
]


def test_who_the_client_is_behind_proxies(start: Start) -> None:
    services: dict[str, Service] = {}
    for setting, headers, (remote, scheme, host) in PROXIES:
        if setting not in services:
            trusted, _, kind = setting.partition(" ")
            env = {"TRUSTED_PROXIES": trusted, "PROXY_HEADERS": kind, "WEB_CONCURRENCY": "1"}
            services[setting] = start("web", **env)
        service = services[setting]
        found = service.get("/body/client", headers).json()
        expected = {"remote": remote, "scheme": scheme, "host": host or f"127.0.0.1:{service.port}"}
        assert found == expected, (setting, headers)
    service = services["127.0.0.0/8"]
    wait_for(lambda: service.says('"remote":"1.2.3.4"'))


def test_a_clients_lies_about_proxies_end_nothing(start: Start) -> None:
    service = start("web", TRUSTED_PROXIES="127.0.0.0/8", WEB_CONCURRENCY="1")
    for value in (",", ", ,", "x" * 5000, "1.2.3.4:99999999", "[::", "::1%eth0", "1" * 4000):
        for name in ("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded"):
            assert service.get("/body/client", {name: value}).status == 200
    with Wire(service.port) as wire:
        wire.head("GET", f"http://b/{os.sep}", X_Forwarded_Host="c:80", X_Forwarded_Proto="https")
        assert wire.answer().status == 404
    assert not service.says("Traceback")
