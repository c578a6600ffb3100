"""Bodies that are too large, too slow to read, compressed to no end, or not what they say."""

import gzip
import json
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from conftest import Service, wait_for
from wire import Wire, chunk, cpu_seconds

MAX_BODY = 2**20
GZIP = {"Content_Encoding": "gzip"}
CHUNKED = {"Transfer_Encoding": "chunked"}


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, code: Path
) -> Iterator[Service]:
    """One worker for all of these, so that its CPU is what they cost."""
    env = {"EVENT_LOOP": request.param, "WEB_CONCURRENCY": "1"}
    shared = Service(tmp_path_factory.mktemp("service"), code, "web", env)
    try:
        shared.wait_until_live()
        yield shared
        assert "Traceback" not in (said := shared.log.read_text()), said
    finally:
        shared.kill()


def form(*parts: bytes, headers: bytes = b'Content-Disposition: form-data; name="a"') -> bytes:
    said = b"".join(b"--b\r\n%s\r\n\r\n%s\r\n" % (headers, part) for part in parts)
    return said + b"--b--\r\n"


FORM = {"Content_Type": "multipart/form-data; boundary=b"}
WAYS: dict[str, tuple[Callable[[int], bytes], dict[str, str]]] = {
    "/body/read": (lambda size: b"x" * size, {}),
    "/body/text": (lambda size: b"x" * size, {}),
    "/body/json": (lambda size: b'"%s"' % (b"x" * size), {}),
    "/body/post": (
        lambda size: b"a=" + b"x" * size,
        {"Content_Type": "application/x-www-form-urlencoded"},
    ),
    "/body/multipart": (lambda size: form(*[b"x" * 9000] * (size // 9000)), FORM),
    "/body/chunked": (lambda size: b"x" * size, {}),
    "/body/any": (lambda size: b"x" * size, {}),
    "/body/chunks": (lambda size: b"x" * size, {}),
    "/body/lines": (lambda size: b"%099d\n" % 0 * (size // 100), {}),
}


@pytest.mark.parametrize("coding", ["", "gzip"])
@pytest.mark.parametrize("path", WAYS)
def test_max_body_holds_for_every_way_of_reading(service: Service, path: str, coding: str) -> None:
    make, headers = WAYS[path]
    for size, status in ((MAX_BODY // 2, 200), (3 * MAX_BODY, 413)):
        body = make(size)
        if coding:
            body, headers = gzip.compress(body, 1), headers | GZIP
        with Wire(service.port) as wire:
            wire.head("POST", path, **CHUNKED, **headers)
            for start in range(0, len(body), 50_000):
                wire.send(chunk(body[start : start + 50_000]))
            wire.send(b"0\r\n\r\n")
            answer = wire.answer()
        assert answer.status == status
        if status == 413:
            assert str(MAX_BODY) in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/body/read", "/body/chunked", "/body/ignored"])
def test_a_length_over_the_limit_is_refused_before_the_body_is_asked_for(
    service: Service, path: str
) -> None:
    with Wire(service.port) as wire:
        wire.head("POST", path, Content_Length=str(MAX_BODY + 1), Expect="100-continue")
        assert wire.answer().status == 413


def test_a_body_that_is_wanted_is_asked_for(service: Service) -> None:
    with Wire(service.port) as wire:
        wire.head("POST", "/body/read", Content_Length="3", Expect="100-continue")
        wanted = b"HTTP/1.1 100 Continue\r\n\r\n"
        assert wire.socket.recv(len(wanted)) == wanted
        wire.send(b"abc")
        assert wire.answer().json() == {"size": 3}


@pytest.mark.parametrize("path", ["/body/large", "/body/view"])
def test_a_route_may_have_a_limit_of_its_own(service: Service, path: str) -> None:
    body = b"0123456789abcdef" * 2**18
    found = service.request("POST", path, body).json()
    assert found["size"] == len(body)
    assert found.get("crc", zlib.crc32(body)) == zlib.crc32(body)
    assert service.request("POST", path, b"x" * (2**23 + 1)).status == 413


def bomb() -> bytes:
    """A MiB of gzip that would become nearly a GiB, were it not for its end."""
    compressor = zlib.compressobj(9, wbits=31)
    start = compressor.compress(b"x") + compressor.flush(zlib.Z_FULL_FLUSH)
    compressor = zlib.compressobj(9, wbits=-15)
    return start + 1000 * (compressor.compress(bytes(2**20)) + compressor.flush(zlib.Z_FULL_FLUSH))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/body/read", 413),
        ("POST", "/body/chunked", 413),
        ("POST", "/body/post", 413),
        ("POST", "/body/json", 413),
        ("POST", "/body/ignored", 200),
        ("GET", "/body/ignored", 200),
        ("POST", "/nowhere", 404),
        ("POST", "/body/url", 405),
    ],
)
def test_a_bomb_of_gzip_is_not_set_off(
    service: Service, method: str, path: str, status: int
) -> None:
    body = bomb()
    headers = {"Content_Type": "application/x-www-form-urlencoded"} if "post" in path else {}
    before = cpu_seconds(service)
    with Wire(service.port) as wire:
        wire.head(method, path, Content_Length=str(len(body)), **GZIP, **headers)
        wire.send(body)
        assert wire.answer().status == status
    # 3 s and more where all of it is decompressed
    assert cpu_seconds(service) - before < 0.5


@pytest.mark.parametrize("ending", [b"", b";x=" + b"y" * 100, b";" + b"z" * 5000])
def test_chunks_of_a_byte_are_bounded(service: Service, ending: bytes) -> None:
    tiny = b"1%s\r\nx\r\n" % ending
    body = tiny * (6_000_000 // len(tiny)) + b"0\r\n\r\n"
    for path in ("/body/read", "/body/chunked", "/body/chunks", "/body/ignored"):
        before = cpu_seconds(service)
        with Wire(service.port) as wire:
            wire.head("POST", path, **CHUNKED)
            with suppress(ConnectionError):  # it had enough
                wire.send(body)
            said = wire.until_closed()
        # 1 s and more where all of them are read
        assert cpu_seconds(service) - before < 0.5
        assert not said or b" 200 " in said or b" 400 " in said


def test_small_chunks_pass(service: Service) -> None:
    lines = [b'{"event": %d, "text": "something happened here"}\n' % n for n in range(10_000)]
    with Wire(service.port) as wire:
        wire.head("POST", "/body/read", **CHUNKED)
        wire.send(b"".join(map(chunk, lines)) + b"0\r\n\r\n")
        assert wire.answer().json() == {"size": sum(map(len, lines))}


def test_too_many_trailers(service: Service) -> None:
    with Wire(service.port) as wire:
        wire.head("POST", "/body/read", **CHUNKED)
        wire.send(chunk(b"abc") + b"0\r\n")
        with suppress(ConnectionError):
            for n in range(10_000):
                wire.send(b"X-%d: %s\r\n" % (n, b"y" * 1000))
        assert wire.until_closed()[9:12] in (b"400", b"")


def installed(coding: str) -> Any:
    """A library that knows the coding, if there is one."""
    modules = {"br": "brotli", "zstd": "compression.zstd"}
    if sys.version_info < (3, 14):
        modules["zstd"] = "backports.zstd"
    try:
        return import_module(modules[coding])
    except ImportError:
        return None


def most_memory(service: Service) -> int:
    """Bytes that its worker had at most."""
    (worker,) = service.workers()
    lines = Path(f"/proc/{worker}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


@pytest.mark.parametrize("coding", ["br", "zstd"])
def test_codings_of_libraries_have_the_same_bounds(service: Service, coding: str) -> None:
    library = installed(coding)
    if library is None:
        pytest.skip("its library is not installed")
    coded = {"Content_Encoding": coding}
    good, large = library.compress(PLAIN), library.compress(bytes(2**28))
    found = service.request("POST", "/body/json", good, {"Content-Encoding": coding}).json()
    assert found == {"json": json.loads(PLAIN)}
    for broken in (PLAIN, good[:-2], good[: len(good) // 2]):
        answer = service.request("POST", "/body/read", broken, {"Content-Encoding": coding})
        assert (answer.status, coding in answer.json()["detail"]) == (400, True)
    for path, status in (("/body/read", 413), ("/body/chunked", 413), ("/body/ignored", 200)):
        before = most_memory(service)
        with Wire(service.port) as wire:
            wire.head("POST", path, Content_Length=str(len(large)), **coded)
            wire.send(large)
            assert wire.answer().status == status
        assert most_memory(service) - before < 2**26


PLAIN = json.dumps({"a": ["b"] * 1000}).encode()
CODED = {
    "gzip": [
        gzip.compress(PLAIN, mtime=0),
        gzip.compress(PLAIN[:10], mtime=0) + gzip.compress(PLAIN[10:], mtime=0),
    ],
    "deflate": [zlib.compress(PLAIN), zlib.compress(PLAIN)[2:-4]],
}


@pytest.mark.parametrize("coding", CODED)
def test_compressed_bodies_are_read(service: Service, coding: str) -> None:
    for body in CODED[coding]:
        answer = service.request("POST", "/body/json", body, {"Content-Encoding": coding})
        assert answer.json() == {"json": json.loads(PLAIN)}


@pytest.mark.parametrize(
    ("coding", "body", "status"),
    [
        ("gzip", PLAIN, 400),
        ("gzip", gzip.compress(PLAIN, mtime=0)[:-9], 400),
        ("gzip", gzip.compress(PLAIN, mtime=0)[:-1] + b"!", 400),
        ("gzip", gzip.compress(b"", mtime=0) * 10_000, 400),
        ("deflate", PLAIN, 400),
        ("deflate", zlib.compress(PLAIN)[:-9], 400),
        ("br", PLAIN, 400 if installed("br") else 415),
        ("zstd", PLAIN, 400 if installed("zstd") else 415),
        ("lzma", PLAIN, 200),
    ],
)
def test_a_body_that_is_not_what_its_encoding_says(
    service: Service, coding: str, body: bytes, status: int
) -> None:
    for path in ("/body/read", "/body/chunked", "/body/any"):
        answer = service.request("POST", path, body, {"Content-Encoding": coding})
        assert answer.status == status, answer.body
        if status != 200:
            assert coding in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "kind", "body", "status", "detail"),
    [
        *(
            (path, f"text/plain; charset={name}", b"abc", 415, "charset")
            for path in ("/body/text", "/body/json")
            for name in ("nope", "rot13", "../x", "idna", "cp037", "undefined", "hex")
        ),
        ("/body/text", "text/plain; charset=utf-8", b"\xff", 400, "utf-8"),
        ("/body/text", "text/plain; charset=LATIN1", b"\xff", 200, ""),
        ("/body/post", "application/x-www-form-urlencoded; charset=nope", b"a=b", 415, "charset"),
        ("/body/post", "application/x-www-form-urlencoded", b"a=\xff", 400, "form"),
        ("/body/json", "application/json", b"{", 400, "JSON"),
        ("/body/json", "application/json", b"", 400, "JSON"),
        ("/body/json", "application/json", b"\xff", 400, "utf-8"),
        ("/body/json", "application/json", b"[" * 100_000, 400, "nested"),
        ("/body/json", "application/json", b'{"a":' * 100_000, 400, "nested"),
        ("/body/json", "application/json", b"1" * 10_000, 400, "JSON"),
        ("/body/multipart", "application/json", b"{}", 415, "multipart"),
        ("/body/multipart", "", b"{}", 415, "multipart"),
        ("/body/multipart", "multipart/form-data", form(b"x"), 400, "boundary"),
        ("/body/multipart", f"multipart/form-data; boundary={'b' * 71}", b"", 400, "boundary"),
        ("/body/multipart", "multipart/form-data; boundary=b", form(b"x")[:-8], 400, "multipart"),
        ("/body/multipart", "multipart/form-data; boundary=b", b"no part", 400, "multipart"),
        ("/body/multipart", "multipart/form-data; boundary=b", b"\n" * 10**6, 413, "parts"),
        (
            "/body/multipart",
            "multipart/form-data; boundary=b",
            form(*[b""] * 20_000, headers=b"A: b"),
            413,
            "parts",
        ),
        *(
            (path, "multipart/form-data; boundary=b", form(b"x", headers=headers), status, detail)
            for path in ("/body/multipart", "/body/post")
            for headers, status, detail in (
                (b"X: " + b"y" * 100_000, 400, "line"),
                (b"no header at all", 400, "malformed"),
                (
                    b'Content-Disposition: form-data; name="a"\r\nContent-Transfer-Encoding: morse',
                    400,
                    "malformed",
                ),
                (b"Content-Disposition: form-data; name*=rot13''a", 415, "charset"),
            )
        ),
        (
            "/body/post",
            "multipart/form-data; boundary=b",
            form(
                b"x",
                headers=b'Content-Disposition: form-data; name="a"\r\n'
                b"Content-Type: text/plain; charset=nope",
            ),
            415,
            "charset",
        ),
        ("/body/post", "multipart/form-data; boundary=b", form(b"x", headers=b"A: b"), 400, "form"),
        ("/body/post", "multipart/form-data; boundary=b", form(*[b"x"] * 1001), 413, "fields"),
        ("/body/exactly", "text/plain", b"abc", 400, "too short"),
    ],
)
def test_mistakes_of_clients_are_answered_with_what_is_wrong(
    service: Service, path: str, kind: str, body: bytes, status: int, detail: str
) -> None:
    answer = service.request("POST", path, body, {"Content-Type": kind} if kind else {})
    assert answer.status == status, answer.body
    if detail:
        assert detail in answer.json()["detail"]
    assert service.total("http_requests_total", route=path, status="500") == 0


def test_what_a_multipart_body_holds_arrives(service: Service) -> None:
    headers = b'Content-Disposition: form-data; name="a"\r\nContent-Transfer-Encoding: base64'
    assert service.request(
        "POST", "/body/post", form(b"eA=="), {"Content-Type": FORM["Content_Type"]}
    ).json() == {"a": "eA=="}
    assert service.request(
        "POST",
        "/body/post",
        form(b"eA==", headers=headers),
        {"Content-Type": FORM["Content_Type"]},
    ).json() == {"a": "x"}


@pytest.mark.parametrize("host", ["a b", "[::1", "a:b:c", "a:99999999", "\\"])
def test_an_invalid_host(service: Service, host: str) -> None:
    answer = service.get("/body/url", {"Host": host})
    assert (answer.status, "Host" in answer.json()["detail"]) == (400, True)


def test_an_invalid_range(service: Service) -> None:
    assert service.get("/body/range", {"Range": "bytes=9-1"}).status == 416


def test_broken_chunks(service: Service) -> None:
    for broken in (b"zz\r\n", b"3\r\nabcd\r\n", b"-1\r\n", b"3\nabc\n", b"\r\n", b"1 \r\nx\r\n"):
        for path in ("/body/read", "/body/ignored"):
            with Wire(service.port) as wire:
                wire.head("POST", path, **CHUNKED)
                wire.send(chunk(b"abc"))
                wire.send(broken)
                answers = wire.until_closed()
            assert b" 500 " not in answers
            assert b" 400 " in answers or (path, b" 200 ") == ("/body/ignored", answers[8:13])


def test_clients_that_go_in_the_middle_of_a_body(service: Service) -> None:
    """No handler takes what came for the whole, and no log has a traceback (see the fixture)."""
    for path in ("/body/read", "/body/chunked", "/body/post", "/body/ignored", "/nowhere"):
        for headers in (CHUNKED, {"Content_Length": "100"}):
            for seconds in (0.0, 0.01, 0.1):
                with Wire(service.port) as wire:
                    wire.head("POST", path, **headers)
                    wire.send(b"5\r\nabcde\r\n")
                    time.sleep(seconds)
    wait_for(lambda: service.total("http_requests_in_progress") == 0)
    assert not service.says('"read 5"')
    assert not service.says('"read 10"')
