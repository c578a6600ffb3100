"""Sent, counted and logged are one, in every way in which aiohttp ends a response.

Each row of the table is asked of the service, and of the same Application on a plain AppRunner
with the same event loop: what is sent is the same, but for ids and for errors, which are
problem+json here. And the service counts and logs what it sent.
"""

import asyncio
import importlib
import json
import warnings
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conftest import Service, copy_code, free_port, wait_for
from overlay import PACKAGE

semantics: Any = importlib.import_module(f"{PACKAGE}.semantics")

PATIENCE = 30.0  # seconds for a row
# ours, or told without versions, on purpose
OWN = {"date", "server", "x-content-type-options", "x-request-id"}
PROBLEM = "application/problem+json"


def ask(
    path: str, *headers: str, method: str = "GET", version: str = "1.1", close: bool = True
) -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: test", *headers]
    if close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode()


def post(path: str, body: bytes, *headers: str, close: bool = True) -> bytes:
    length = f"Content-Length: {len(body)}"
    return ask(path, length, *headers, method="POST", close=close) + body


UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    f"Sec-WebSocket-Key: {b64encode(b'k' * 16).decode()}",
)
ETAG = "ETag of text"  # replaced by what it is


def frame(text: bytes, kind: int = 1) -> bytes:
    return bytes([0x80 | kind, 0x80 | len(text), 0, 0, 0, 0]) + text


def upgrade(path: str = "/socket", *frames: bytes) -> bytes:
    return ask(path, *UPGRADE, close=False) + b"".join(frames)


@dataclass
class Row:
    """What is sent on a connection, and what becomes of it."""

    name: str
    sent: bytes
    answers: int = 1
    again: bool = False  # the same once more, on another connection
    aborted: tuple[str, ...] = ()
    same_body: bool = True
    leaves: bool = False  # after the head
    mistake: int = 0  # of the client's: what we say to it where aiohttp takes it for an error here


CLOSE = frame(b"\x03\xe8", 8)
ROWS = [
    *[Row(path, ask(path)) for path in ("/ok", "/view", "/reason", "/cookies", "/big", "/stream")],
    *[Row(f"status {n}", ask(f"/status/{n}")) for n in (200, 201, 204, 304, 404, 500, 599, 999)],
    *[
        Row(f"raise {name}", ask(f"/raise/{name}"))
        for name in (
            "HTTPOk",
            "HTTPNoContent",
            "HTTPFound",
            "HTTPNotModified",
            "HTTPNotFound",
            "HTTPMethodNotAllowed",
            "HTTPRequestEntityTooLarge",
            "HTTPInternalServerError",
            "HTTPServiceUnavailable",
        )
    ],
    *[
        Row(path, ask(path))
        for path in (
            "/raise-json",
            "/raise-text",
            "/raise-undecodable",
            "/raise-unknown-charset",
            "/raise-generator",
            "/raise-with-length",
            "/return-exception",
            "/none",
            "/text",
            "/error",
            "/timeout",
            "/bad-header-prepared",
            "/body/0",
            "/body/3",
            "/stream-chunked",
            "/stream-length",
            "/stream-compressed",
            "/other-task",
            "/clone",
            "/prepared",
            "/compressed",
            "/nowhere",
            "/sub/ok",
            "/sub/nowhere",
            "/sub/error",
            "/static/text",
            "/static/nowhere",
            "/static/folder",
            "/static/../secret",
            "/static/%2e%2e/secret",
            "/file/text",
            "/file/empty",
            "/file/large",
            "/file/nowhere",
            "/file/folder",
        )
    ],
    *[
        Row(f"{path}, nothing sent", ask(path), aborted=("error",))
        for path in ("/cancelled", "/panic", "/bad-header", "/signal-raises", "/body-fails/0")
    ],
    *[
        Row(f"{path}, cut short", ask(path), aborted=("error",))
        for path in ("/body-fails/2", "/stream-fails", "/stream-panics", "/stream-short")
    ],
    Row("raised after a stream", ask("/stream-then-raise"), aborted=("error",), same_body=False),
    Row("a response used again", ask("/reused"), again=True, aborted=("error",)),
    # methods and versions
    Row("HEAD", ask("/ok", method="HEAD")),
    Row("HEAD of nothing", ask("/nowhere", method="HEAD")),
    Row("HEAD of a file", ask("/file/text", method="HEAD")),
    Row("HEAD, compressed", ask("/compressed", "Accept-Encoding: gzip", method="HEAD")),
    Row("a method not allowed", ask("/ok", method="DELETE")),
    Row("a method of the view's not allowed", ask("/view", method="PUT")),
    Row("an unknown method", ask("/ok", method="BREW")),
    Row("OPTIONS *", ask("*", method="OPTIONS")),
    Row("an absolute URL", ask("http://elsewhere/ok")),
    Row("HTTP/1.0", ask("/ok", version="1.0")),
    Row("HTTP/1.0, a stream", ask("/stream", version="1.0")),
    Row("HTTP/1.0, chunked", ask("/stream-chunked", version="1.0")),
    Row("HTTP/1.0, a file", ask("/file/text", version="1.0")),
    Row(
        "HTTP/1.0, kept alive",
        ask("/ok", "Connection: keep-alive", version="1.0", close=False) + ask("/ok"),
        answers=2,
    ),
    # compression
    *[
        Row(f"{path} as {coding}", ask(path, f"Accept-Encoding: {coding}"))
        for path in ("/compressed", "/stream-compressed", "/file-compressed")
        for coding in ("gzip", "deflate", "identity")
    ],
    Row("a compressed file", ask("/file/page.html", "Accept-Encoding: gzip")),
    Row("a compressed static file", ask("/static/page.html", "Accept-Encoding: gzip")),
    # parts of files, and conditions
    Row("a range", ask("/file/text", "Range: bytes=10-19")),
    Row("a range of a large file", ask("/file/large", "Range: bytes=500000-")),
    Row("the end of a file", ask("/static/text", "Range: bytes=-5")),
    Row("a range beyond the end", ask("/file/text", "Range: bytes=5000-")),
    Row("no range at all", ask("/file/text", "Range: lines=1")),
    Row("HEAD of a range", ask("/file/text", "Range: bytes=0-9", method="HEAD")),
    Row("If-None-Match", ask("/file/text", f"If-None-Match: {ETAG}")),
    Row("If-None-Match, another", ask("/file/text", 'If-None-Match: "other"')),
    Row("If-Match", ask("/file/text", f"If-Match: {ETAG}")),
    Row("If-Match, another", ask("/static/text", 'If-Match: "other"')),
    Row("If-Modified-Since", ask("/file/text", "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT")),
    Row(
        "If-Unmodified-Since",
        ask("/file/text", "If-Unmodified-Since: Fri, 01 Jan 1999 00:00:00 GMT"),
    ),
    Row(
        "If-Range, changed since",
        ask("/file/text", "Range: bytes=0-9", "If-Range: Fri, 01 Jan 1999 00:00:00 GMT"),
    ),
    # bodies of requests
    Row("echo", post("/echo", b"body")),
    Row(
        "echo, chunked",
        ask("/echo", "Transfer-Encoding: chunked", method="POST") + b"4\r\nbody\r\n0\r\n\r\n",
    ),
    Row("too large", post("/echo", b"x" * 2000), mistake=413),
    Row(
        "too large, chunked",
        ask("/echo", "Transfer-Encoding: chunked", method="POST")
        + b"7d0\r\n"
        + b"x" * 2000
        + b"\r\n0\r\n\r\n",
    ),
    Row(
        "a form",
        post("/form", b"a=1&b=2", "Content-Type: application/x-www-form-urlencoded"),
    ),
    Row("no JSON", post("/json", b"{"), mistake=400),
    Row("JSON", post("/json", b"[1]")),
    Row("a body not read, kept alive", post("/unread", b"body", close=False) + ask("/ok"), 2),
    Row(
        "an unknown coding",
        post("/echo", b"not gzip", "Content-Encoding: gzip"),
        mistake=400,
    ),
    Row(
        "a chunk of no size",
        ask("/echo", "Transfer-Encoding: chunked", method="POST") + b"zz\r\nbody\r\n0\r\n\r\n",
    ),
    # Expect
    Row("continue", post("/echo", b"body", "Expect: 100-continue")),
    Row("continue, by a handler", post("/continued", b"body", "Expect: 100-continue")),
    Row("continue, but fail", post("/json", b"{", "Expect: 100-continue"), mistake=400),
    Row("an unknown expectation", post("/echo", b"body", "Expect: wonders")),
    Row("an expectation refused", post("/refused", b"body", "Expect: 100-continue")),
    # middlewares
    *[
        Row(f"the middleware {does}, {path}", ask(f"{path}?middleware={does}"))
        for does in ("raises", "fails", "answers", "saves")
        for path in ("/nowhere", "/sub/ok")
    ],
    # several requests on a connection
    Row("kept alive", ask("/ok", close=False) + ask("/nowhere", close=False) + ask("/stream"), 3),
    Row("after an error", ask("/none", close=False) + ask("/ok"), 2),
    Row("closed by an error", ask("/error", close=False) + ask("/ok")),
    Row("after a 304", ask("/status/304", close=False) + ask("/file/text"), 2),
    # what is no HTTP
    Row("nonsense", b"nonsense\r\n\r\n"),
    Row("an unknown version", ask("/ok", version="4.2")),
    Row("a bad header", ask("/ok", "no header")),
    Row("a header too long", ask("/ok", f"X-Long: {'x' * 9000}")),
    Row("a path too long", ask(f"/{'x' * 9000}")),
    Row("too many headers", ask("/ok", *[f"X-{n}: 1" for n in range(200)])),
    Row("a bad length", ask("/echo", "Content-Length: -1", method="POST")),
    Row(
        "two lengths",
        ask("/echo", "Content-Length: 1", "Transfer-Encoding: chunked", method="POST"),
    ),
    Row("nonsense after a request", ask("/ok", close=False) + b"nonsense\r\n\r\n", 2),
    # upgrades
    Row("a websocket", upgrade("/socket", frame(b"hello"), CLOSE)),
    Row("a websocket that fails", upgrade("/socket", frame(b"fail")), aborted=("error",)),
    Row("no websocket", ask("/socket")),
    Row(
        "a websocket of old", ask("/socket", *UPGRADE[:2], "Sec-WebSocket-Version: 1", close=False)
    ),
    Row("a websocket without a key", ask("/socket", *UPGRADE[:3], close=False)),
    Row("an upgrade declined", ask("/ok", *UPGRADE, close=False) + ask("/ok"), 2),
    # clients that leave
    Row("a client that leaves", ask("/body/500"), aborted=("client",), leaves=True),
    Row("a websocket that is left", upgrade(), aborted=("client",), leaves=True),
]
# most responses of a connection that stays are sent in another way (Connection._send)
CLOSES = b"\r\nConnection: close\r\n\r\n"
ROWS += [
    replace(
        row,
        name=f"{row.name}, and another",
        sent=row.sent.replace(CLOSES, b"\r\n\r\n") + ask("/ok"),
        answers=row.answers + 1,
    )
    for row in ROWS
    if row.sent.startswith(b"GET")
    and row.sent.endswith(CLOSES)
    and not (row.aborted or row.mistake or row.leaves)
    and row.name != "/bad-header-prepared"  # after which aiohttp's clients wait for ever
]


@dataclass
class Answer:
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    whole: bool = True

    def header(self, name: str) -> str:
        return dict(self.headers).get(name, "")


@dataclass
class Answers:
    """All that came on a row's connections."""

    interim: int = 0  # 100 Continue
    answers: list[Answer] = field(default_factory=list)


async def read_answer(reader: asyncio.StreamReader, *, head_only: bool) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    _, status, reason = head[0].split(" ", 2)
    pairs = [line.split(": ", 1) for line in head[1:] if line]
    answer = Answer(int(status), reason, sorted((name.lower(), value) for name, value in pairs))
    empty = head_only or answer.status in (204, 304) or answer.status < 200
    try:
        if empty:
            pass
        elif answer.header("transfer-encoding") == "chunked":
            while size := int(await reader.readuntil(b"\r\n"), 16):
                answer.body += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
        elif length := answer.header("content-length"):
            answer.body = await reader.readexactly(int(length))
        else:
            answer.body = await reader.read()
    except (asyncio.IncompleteReadError, ValueError, ConnectionError) as error:
        answer.whole = False
        if isinstance(error, asyncio.IncompleteReadError):
            answer.body += error.partial
    return answer


async def talk(row: Row, sent: bytes, port: int) -> Answers:
    found = Answers()
    for _ in range(2 if row.again else 1):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        try:
            while len(found.answers) < row.answers * (2 if row.again else 1):
                if row.leaves:
                    await reader.readuntil(b"\r\n\r\n")
                    writer.transport.abort()
                    break
                head_only = sent.startswith(b"HEAD")
                answer = await read_answer(reader, head_only=head_only)
                if answer.status == 100:
                    found.interim += 1
                    continue
                found.answers.append(answer)
                if answer.status == 101:
                    answer.body = await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # closed without an answer
        finally:
            writer.close()
    return found


async def bounded(row: Row, talking: Coroutine[Any, Any, Answers]) -> Answers:
    try:
        return await asyncio.wait_for(talking, PATIENCE)
    except TimeoutError:
        pytest.fail(f"{row.name}: waited for {PATIENCE:g} s")


@asynccontextmanager
async def plain(files: Path) -> AsyncIterator[int]:
    """The Application with nothing around it; its port."""
    runner = web.AppRunner(semantics.make(files), access_log=None, keepalive_timeout=75)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield port
    await runner.cleanup()


@dataclass
class Found:
    plain: dict[str, Answers]
    ours: dict[str, Answers]
    logged: list[dict[str, Any]]
    told: list[str]  # by all other lines
    counted: list[tuple[str, dict[str, str], float]]


def with_ids(row: Row) -> bytes:
    """Each of the requests with an id, after its first line that has a version."""
    data, number = b"", 0
    for line in row.sent.split(b"\r\n"):
        data += line + b"\r\n"
        if line.endswith((b"HTTP/1.1", b"HTTP/1.0")):
            data += f"X-Request-ID: {ROWS.index(row)}-{number}\r\n".encode()
            number += 1
    return data[:-2]


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def found(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Found]:
    """What became of all rows, here and there."""
    folder = tmp_path_factory.mktemp("semantics")
    files = folder / "files"
    files.mkdir()
    semantics.make_files(files)
    code = copy_code(folder / "code")
    (code / PACKAGE / "app.py").write_text(
        "from pathlib import Path\n"
        "from .semantics import make\n"
        f"async def create_app():\n    return make(Path({str(files)!r}))\n"
    )
    service = Service(
        folder, code, "web", {"EVENT_LOOP": str(request.param), "WEB_CONCURRENCY": "1"}
    )

    async def all_rows() -> tuple[dict[str, Answers], dict[str, Answers]]:
        there, here = {}, {}
        async with plain(files) as port:
            etag = (await talk(ROWS[0], ask("/file/text"), port)).answers[0].header("etag")
            for row in ROWS:
                sent = with_ids(row).replace(ETAG.encode(), etag.encode())
                there[row.name] = await bounded(row, talk(row, sent, port))
                here[row.name] = await bounded(row, talk(row, sent, service.port))
        return there, here

    try:
        service.wait_until_live()
        loop = importlib.import_module(str(request.param))
        with warnings.catch_warnings(), asyncio.Runner(loop_factory=loop.new_event_loop) as runner:
            warnings.simplefilter("ignore", DeprecationWarning)
            there, here = runner.run(all_rows())
        wait_for(lambda: service.total("http_requests_in_progress") == 0, 30)
        counted = service.scrape()
        service.stop()
        lines = [json.loads(line) for line in service.log.read_text().splitlines()]
        access = [x for x in lines if x["logger"] == "access"]
        told = [x["message"] for x in lines if x["logger"] != "access"]
        yield Found(there, here, access, told, counted)
    finally:
        service.kill()


def test_there_are_enough_rows() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS) >= 80


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_sent_is_what_plain_aiohttp_sends(found: Found, row: Row) -> None:
    there, here = found.plain[row.name], found.ours[row.name]
    assert here.interim == there.interim
    if row.mistake:
        assert [answer.status for answer in here.answers] == [row.mistake]
        return
    assert len(here.answers) == len(there.answers)
    for ours, theirs in zip(here.answers, there.answers, strict=True):
        assert (ours.status, ours.reason, ours.whole) == (
            theirs.status,
            theirs.reason,
            theirs.whole,
        )
        apart = OWN
        if ours.header("content-type").startswith(PROBLEM):
            apart = OWN | {"content-type", "content-length"}
            problem = json.loads(ours.body) if ours.body else {"status": ours.status}
            assert problem["status"] == ours.status
        elif row.same_body:
            assert ours.body == theirs.body
        assert [h for h in ours.headers if h[0] not in apart] == [
            h for h in theirs.headers if h[0] not in apart
        ]
        assert ours.header("x-request-id")


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_logged_is_what_was_sent(found: Found, row: Row) -> None:
    number = ROWS.index(row)
    logged = [x for x in found.logged if x["request_id"].startswith(f"{number}-")]
    assert [x["aborted"] for x in logged if "aborted" in x] == list(row.aborted)
    answers = [a for a in found.ours[row.name].answers if a.header("x-request-id")[:2] != "0-"]
    by_id = {x["request_id"]: x for x in logged}
    if row.again:
        assert [x["status"] for x in logged] == [200, None]
        return
    for answer in answers:
        line = by_id.get(answer.header("x-request-id"))
        if line is None:  # what could not be parsed has an id of its own
            line = next(x for x in found.logged if x["request_id"] == answer.header("x-request-id"))
        assert line["status"] == answer.status
        if not line.get("aborted") and answer.status != 101 and row.same_body:
            assert line["bytes"] == len(answer.body)
    assert len(logged) >= 1 or answers


def test_what_is_no_response_is_told_as_aiohttp_tells_it(found: Found) -> None:
    assert "Missing return statement on request handler" in found.told
    assert "Web-handler should return a response instance, got 'text'" in found.told


def test_counted_is_what_was_sent(found: Found) -> None:
    sent = Counter(str(a.status) for answers in found.ours.values() for a in answers.answers)
    sent.update({"200": 1, "101": 1})  # of the clients that left
    sent["none"] = sum(", nothing sent" in row.name or row.again for row in ROWS)

    def counted(name: str, label: str) -> Counter[str]:
        sums: Counter[str] = Counter()
        for sample, labels, value in found.counted:
            if sample == name:
                sums[labels[label]] += int(value)
        return sums

    assert counted("http_requests_total", "status") == sent
    assert Counter(str(x["status"] or "none") for x in found.logged) == sent
    aborted = Counter(by for row in ROWS for by in row.aborted)
    assert counted("http_responses_aborted_total", "by") == aborted
    observed = sum(v for n, _, v in found.counted if n == "http_request_duration_seconds_count")
    assert observed == sent.total()
