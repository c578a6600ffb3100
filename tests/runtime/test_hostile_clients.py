"""Clients that are slow, and clients that are many, on both ports."""

import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from conftest import Service, wait_for
from wire import Wire, chunk

Start = Callable[..., Service]
BOUNDS = {"HEADER_TIMEOUT": "1", "BODY_TIMEOUT": "1", "WRITE_TIMEOUT": "2", "KEEPALIVE": "60"}


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, code: Path
) -> Iterator[Service]:
    env = {"EVENT_LOOP": request.param, "WEB_CONCURRENCY": "1", **BOUNDS}
    shared = Service(tmp_path_factory.mktemp("service"), code, "web", env)
    try:
        shared.wait_until_live()
        yield shared
        assert "Traceback" not in (said := shared.log.read_text()), said
    finally:
        shared.kill()


def closed(service: Service, reason: str) -> float:
    return service.total("http_connections_closed_total", reason=reason)


def drip(wire: Wire, piece: bytes) -> None:
    """A piece every 100 ms until the other side has had enough, or has said something."""
    limit = time.monotonic() + 60
    wire.socket.settimeout(0.1)
    while time.monotonic() < limit:
        with suppress(ConnectionError):
            wire.send(piece)
        try:
            wire.socket.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            continue
        except ConnectionError:
            pass
        break
    else:
        pytest.fail("a minute was not enough")
    wire.socket.settimeout(30)


@pytest.mark.parametrize(
    "start", [b"GET /", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nX: "]
)
@pytest.mark.parametrize("piece", [b"", b"y"])
def test_a_head_that_does_not_come_to_its_end(service: Service, start: bytes, piece: bytes) -> None:
    before = closed(service, "header_timeout")
    with Wire(service.port) as wire:
        wire.send(start)
        drip(wire, piece)
        answer = wire.answer()
        assert (answer.status, answer.closes) == (408, True)
        assert "slowly" in answer.json()["detail"]
        assert wire.until_closed() == b""
    assert closed(service, "header_timeout") == before + 1


def test_a_second_head_has_its_time_too(service: Service) -> None:
    with Wire(service.port) as wire:
        wire.head("GET", "/")
        assert wire.answer().status == 200
        wire.send(b"GET / HT")
        assert wire.answer().status == 408


def test_an_idle_connection_has_no_time_out_but_keepalive(service: Service) -> None:
    with Wire(service.port) as silent, Wire(service.port) as idle:
        idle.head("GET", "/")
        assert idle.answer().status == 200
        time.sleep(3)
        for wire in (silent, idle):
            wire.head("GET", "/")
            assert wire.answer().status == 200


def test_a_head_that_is_too_large(service: Service) -> None:
    before = closed(service, "header_size")
    with Wire(service.port) as wire:
        wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n")
        with suppress(ConnectionError):
            for n in range(100):
                wire.send(b"X-%d: %s\r\n" % (n, b"y" * 8000))
        assert wire.until_closed()[9:12] in (b"431", b"")
    assert closed(service, "header_size") == before + 1


@pytest.mark.parametrize("path", ["/body/read", "/body/chunked", "/body/post"])
@pytest.mark.parametrize(
    ("headers", "piece"),
    [
        ({"Content_Length": "1000"}, b""),
        ({"Content_Length": "1000"}, b"x"),
        ({"Transfer_Encoding": "chunked"}, b""),
        ({"Transfer_Encoding": "chunked"}, chunk(b"x")),
        ({"Content_Length": "1000", "Content_Encoding": "gzip"}, b""),
    ],
)
def test_a_body_that_does_not_come_to_its_end(
    service: Service, path: str, headers: dict[str, str], piece: bytes
) -> None:
    before = closed(service, "body_timeout")
    with Wire(service.port) as wire:
        wire.head("POST", path, Content_Type="application/x-www-form-urlencoded", **headers)
        drip(wire, piece)
        answer = wire.answer()
        assert (answer.status, answer.closes) == (408, True)
        assert wire.until_closed() == b""
    assert closed(service, "body_timeout") == before + 1


def test_a_body_that_takes_longer_but_comes(service: Service) -> None:
    with Wire(service.port) as wire:
        wire.head("POST", "/body/read", Content_Length="12000")
        for _ in range(12):
            wire.send(b"x" * 1000)
            time.sleep(0.25)
        assert wire.answer().json() == {"size": 12_000}


@pytest.mark.parametrize(
    ("headers", "piece"),
    [
        ({"Content_Length": "1000000"}, b""),
        ({"Content_Length": "1000000"}, b"x"),
        ({"Transfer_Encoding": "chunked"}, chunk(b"x")),
    ],
)
def test_a_body_that_nobody_reads_is_not_waited_for(
    service: Service, headers: dict[str, str], piece: bytes
) -> None:
    before = closed(service, "leftovers")
    with Wire(service.port) as wire:
        wire.head("POST", "/body/ignored", **headers)
        assert wire.answer().status == 200
        drip(wire, piece)
        assert wire.until_closed() == b""
    assert closed(service, "leftovers") == before + 1


def test_a_body_that_nobody_reads_is_not_taken_for_ever(service: Service) -> None:
    before = closed(service, "leftovers")
    with Wire(service.port) as wire:
        wire.head("POST", "/body/ignored", Transfer_Encoding="chunked")
        block = chunk(b"x" * 2**16)
        with suppress(ConnectionError):
            for _ in range(2**10):
                wire.send(block)
            pytest.fail("it has taken 64 MiB")
    assert closed(service, "leftovers") == before + 1


@pytest.mark.parametrize("size", [2**24, 2**26])
def test_a_client_that_does_not_read(service: Service, size: int) -> None:
    before = closed(service, "write_timeout")
    with Wire(service.port) as wire:
        wire.head("GET", f"/body/answer/{size}")
        wait_for(lambda: closed(service, "write_timeout") == before + 1, 60)


def test_a_client_that_reads_slowly_gets_all(service: Service) -> None:
    size = 2**23
    with Wire(service.port) as wire:
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        wire.head("GET", f"/body/answer/{size}", Connection="close")
        got = 0
        while data := wire.socket.recv(2**14):
            got += len(data)
            time.sleep(0.01)
    assert size < got < size + 1000


def test_one_connection_too_many(start: Start, loop: str) -> None:
    service = start("web", WEB_CONCURRENCY="1", EVENT_LOOP=loop, MAX_CONNECTIONS="20")
    with ExitStack() as stack:
        working = stack.enter_context(Wire(service.port))
        working.head("GET", "/probe/sleep/3")
        used = stack.enter_context(Wire(service.port))
        used.head("GET", "/")
        assert used.answer().status == 200
        for _ in range(200):
            wire = stack.enter_context(Wire(service.port))
            with suppress(ConnectionError):
                wire.send(b"GET / HTTP/1.1\r\n")
        assert service.get("/").status == 200
        assert working.answer().status == 200
        wait_for(lambda: service.total("worker_connections") <= 20)
    assert closed(service, "connections") >= 180
    assert service.stop() == 0


def test_one_request_too_many(start: Start, loop: str) -> None:
    service = start("web", WEB_CONCURRENCY="1", EVENT_LOOP=loop, MAX_CONCURRENCY="5")
    with ExitStack() as stack:
        working = [stack.enter_context(Wire(service.port)) for _ in range(5)]
        for wire in working:
            wire.head("GET", "/probe/sleep/2")
        wait_for(lambda: service.total("http_requests_in_progress") == 5)
        refused = service.get("/")
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        assert "too many" in refused.json()["detail"]
        assert service.get("/readyz", admin=True).status == 200
        assert [wire.answer().status for wire in working] == [200] * 5
    assert service.get("/").status == 200


SLOW: dict[str, list[bytes]] = {  # why it is closed, and what such clients send
    "header_timeout": [b"GET / HTTP/1.1\r\nX: "],
    "body_timeout": [
        b"POST /body/read HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc",
        b"POST /body/chunked HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
    "leftovers": [b"POST /body/ignored HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n"],
    "": [b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"],
}
NOT_READING = b"GET /body/answer/16777216 HTTP/1.1\r\nHost: a\r\n\r\n"


def slow_clients(stack: ExitStack, port: int, number: int) -> dict[str, int]:
    """So many of all kinds; how many are to be closed, by reason."""
    kinds = [(reason, sent) for reason, all_sent in SLOW.items() for sent in all_sent]
    expected = dict.fromkeys(SLOW, 0)
    for n in range(number):
        reason, sent = kinds[n % len(kinds)]
        stack.enter_context(Wire(port)).send(sent)
        expected[reason] += 1
    return expected


def test_slow_clients_on_both_ports_hold_nobody_up(start: Start, loop: str) -> None:
    """Probes, scrapes and normal requests are answered, and a drain ends in its budget."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    service = start("web", EVENT_LOOP=loop, HEADER_TIMEOUT="3", BODY_TIMEOUT="3", WRITE_TIMEOUT="3")
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))

        def ask() -> None:
            for path in ("/livez", "/readyz", "/metrics"):
                assert service.get(path, admin=True).status == 200
            assert service.get("/").status == 200

        with ExitStack() as slow:
            expected = slow_clients(slow, service.port, 1980)
            for _ in range(20):
                slow.enter_context(Wire(service.port)).send(NOT_READING)
            expected["write_timeout"] = 20
            del expected[""]
            for n in range(1000):
                wire = slow.enter_context(Wire(service.admin_port))
                with suppress(ConnectionError):
                    wire.send((b"GET / HTTP/1.1\r\nX: ", b"POST / HTTP/1.1\r\n", b"")[n % 3])
            ask()
            assert closed(service, "connections") > 0  # on the admin port, which has few
            for reason, number in expected.items():
                wait_for(lambda r=reason, n=number: closed(service, r) >= n)  # type: ignore[misc]
                ask()
        slow_clients(stack, service.port, 1980)
        ask()
        assert service.stop() == 0


def test_nothing_of_the_admin_port_is_on_the_public_one(service: Service) -> None:
    admin = f"127.0.0.1:{service.admin_port}"
    for path in ("/metrics", "/livez", "/readyz", "/startupz", "//metrics", "/./metrics"):
        for target in (path, f"http://{admin}{path}", f"http://a{path}"):
            for host in ("a", admin, "localhost:8081", "metrics"):
                with Wire(service.port) as wire:
                    wire.send(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                    assert wire.answer().status == 404


def test_many_scrapes_at_a_time_are_answered(service: Service) -> None:
    answers = []

    def scrape() -> None:
        answers.append(service.get("/metrics", admin=True).status)

    threads = [threading.Thread(target=scrape) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 20
