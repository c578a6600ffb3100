"""Requests and settings that nobody thought of: made by hypothesis, the same in each run."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from conftest import SOAK, Service, wait_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from overlay import CODE, PACKAGE
from test_hostile_requests import GET, REQUESTS, started
from wire import Wire

Settings: Any = import_module(f"{PACKAGE}.runtime").Settings
SettingsError: Any = import_module(f"{PACKAGE}.runtime.settings").SettingsError
limits: Any = import_module(f"{PACKAGE}.runtime.process.limits")
proxies: Any = import_module(f"{PACKAGE}.runtime.http.proxies")

NAMES = [field.name.upper() for field in fields(Settings)]
KEYS = {"time", "level", "logger", "process", "request_id", "method", "path", "status"}
KEYS |= {"duration_us", "bytes", "remote", "user_agent"}
CONSOLE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z \d+ 127\.0\.0\.1 [A-Z-]+ [!-~]+ (\d{3}|-) "
    r"(aborted by [a-z]+ )?\d+\.\d ms \[[A-Za-z0-9._:/+=-]{1,128}\]"
).fullmatch


def fuzz(examples: int) -> Any:
    return settings(
        max_examples=50 * examples if SOAK else examples,
        derandomize=not SOAK,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module", params=["uvloop-json", "asyncio-console"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, code: Path
) -> Iterator[Service]:
    loop, log_format = request.param.split("-")
    folder = tmp_path_factory.mktemp("service")
    yield from started(folder, code, EVENT_LOOP=loop, LOG_FORMAT=log_format)


def access_lines(service: Service) -> list[str]:
    """Those of requests; each of the others must be one of ours too."""
    lines = service.log.read_text(encoding="utf-8").split("\n")[:-1]
    if service.env["LOG_FORMAT"] == "console":
        ours = re.compile(rf"\S+ \d+ (INFO|ERROR) (gunicorn|{PACKAGE}\.[a-z.]+): ").match
        return [line for line in lines if not ours(line)]
    parsed = [json.loads(line) for line in lines]
    return [line for line, one in zip(lines, parsed, strict=True) if one["logger"] == "access"]


def assert_unharmed(service: Service, worker: int) -> None:
    """All that was asked is counted, has a line of its own, and was nobody's fault but its own."""
    assert service.get("/").json()["worker"] == worker
    wait_for(lambda: service.total("http_requests_in_progress") == 0)
    samples = [s for s in service.scrape() if s[0] == "http_requests_total"]
    counted = sum(value for _, _, value in samples)
    wait_for(lambda: len(access_lines(service)) >= counted)
    lines = access_lines(service)
    assert len(lines) == counted
    for line in lines:
        if service.env["LOG_FORMAT"] == "console":
            assert CONSOLE(line), line
        else:
            assert json.loads(line).keys() - {"trace_id", "aborted"} == KEYS, line
    statuses = {labels["status"] for _, labels, _ in samples}
    assert not {status for status in statuses if status >= "500"} - {"505", "none"}


def send(service: Service, data: bytes) -> None:
    """Send it, and read what comes, until nothing more does."""
    with Wire(service.port, timeout=0.01) as wire, suppress(OSError):
        wire.send(data)
        while wire.socket.recv(2**16):
            pass


@st.composite
def changed(draw: st.DrawFn) -> bytes:
    """A request that is nearly one of those that we know."""
    data = bytearray(draw(st.sampled_from([request for request, _, _ in REQUESTS.values()])))
    data = data[:2000]
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(start + 20, len(data))))
        data[start:end] = draw(
            st.one_of(
                st.binary(max_size=20),
                st.just(bytes(2 * data[start:end])),
                st.sampled_from([b"", b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"%", b"/"]),
                st.sampled_from([b"Content-Length: 9\r\n", b"Transfer-Encoding: chunked\r\n"]),
            )
        )
    return bytes(data)


def test_any_bytes(service: Service) -> None:
    worker = service.get("/").json()["worker"]

    @fuzz(60)
    @given(st.binary(max_size=500), st.sampled_from([b"", b"GET /", GET, b"POST /body/read "]))
    def ask(data: bytes, start: bytes) -> None:
        send(service, start + data)

    ask()
    assert_unharmed(service, worker)


def test_any_request_that_is_nearly_good(service: Service) -> None:
    worker = service.get("/").json()["worker"]

    @fuzz(150)
    @given(st.lists(changed(), min_size=1, max_size=3))
    def ask(requests: list[bytes]) -> None:
        send(service, b"".join(requests))

    ask()
    assert_unharmed(service, worker)


FORGERIES = [
    b'"}',
    b'{"forged": 1}',
    b'{"logger": "access"}',
    b"\r\n",
    b"\n",
    b"%0a",
    b"%0d%0a",
    "\u2028".encode(),
    b"\x85",
    b"\x1b[31m",
    b"\\",
    b"\\n",
    b" ",
    b"\0",
    b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"2026-01-01T00:00:00.000Z 1 127.0.0.1 GET / 200 1.0 ms [a]",
]
PIECES = st.lists(st.one_of(st.sampled_from(FORGERIES), st.binary(max_size=10)), max_size=6)


def test_no_line_of_the_log_can_be_forged(service: Service) -> None:
    worker = service.get("/").json()["worker"]

    @fuzz(100)
    @given(
        st.sampled_from([b"X-Request-ID", b"traceparent", b"User-Agent", b"Referer", b"Host"]),
        PIECES.map(b"".join),
        PIECES.map(b"".join),
    )
    def ask(name: bytes, value: bytes, path: bytes) -> None:
        send(service, GET + b"%s: %s\r\n\r\n" % (name, value))
        send(service, b"GET /greet/%s HTTP/1.1\r\nHost: a\r\n\r\n" % path)

    ask()
    assert_unharmed(service, worker)


TEXTS = st.one_of(
    st.text(st.characters(blacklist_characters="\0")),
    st.text("0123456789.,-+eE_ kMGTi", max_size=12),
    st.text("0123456789abcdef.:/[]%@ ,", max_size=40),
    st.sampled_from(["unix:", "unix:/", "http://", "redis://", "/", "/proc/", "::", "nan", "inf"]),
    st.builds(
        str.__add__,
        st.sampled_from(["unix:/", "http://", "https://", "redis://", "rediss://", "/", "10."]),
        st.text(st.characters(blacklist_characters="\0"), max_size=300),
    ),
    st.sampled_from("0123456789aX/.: \u0660\ud800").flatmap(
        lambda one: st.sampled_from([255, 5000]).map(lambda times: one * times)
    ),
)


@fuzz(500)
@given(st.sampled_from(NAMES), TEXTS)
def test_any_text_for_a_setting(name: str, text: str) -> None:
    try:
        found = Settings.from_env({name: text})
    except SettingsError as error:
        first, *problems = str(error).splitlines()
        assert first == "wrong settings:"
        assert problems
        assert all(name in problem for problem in problems)
        assert len(problems) == 1
        return
    json.dumps(found.as_json(), allow_nan=False)
    assert limits.web_workers(found).number >= 1
    assert limits.concurrency(found).number >= 1
    if found.trusted_proxies:
        proxies.Proxies(found.trusted_proxies, found.proxy_headers)


@fuzz(10)
@given(st.dictionaries(st.sampled_from(NAMES), TEXTS, max_size=5))
def test_check_has_words_for_any_settings(env: dict[str, str]) -> None:
    said = {name: text[:1000].encode(errors="surrogatepass") for name, text in env.items()}
    done = subprocess.run(
        [sys.executable, "-m", PACKAGE, "check"],
        env={**said, "PATH": os.environ["PATH"].encode(), "PYTHONPATH": bytes(CODE)},
        capture_output=True,
        check=False,
    )
    assert b"Traceback" not in done.stdout + done.stderr
    assert done.returncode in (0, 2), done.stderr
    assert done.returncode == 0 or b"wrong settings" in done.stderr
