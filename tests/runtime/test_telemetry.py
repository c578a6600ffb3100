"""Metrics are exact, cheap to scrape, and nothing depends on them; so are log lines."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from conftest import Service, wait_for
from load import Load
from overlay import PACKAGE

Start = Callable[..., Service]

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
DEATHS = 1000  # worker deaths that no scrape may notice


# --- the exposition, in processes of its own

HARNESS = f"""
    import json, os, shutil, signal, sys, time
    from pathlib import Path
    from {PACKAGE}.runtime.metrics import slots, values
    folder = Path(sys.argv[1])
    values.install(folder)
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary
    from prometheus_client.exposition import choose_encoder
    from {PACKAGE}.runtime.metrics.exposition import Exposition

    def fork(work):
        pid = os.fork()
        if pid == 0:
            work()
            os.kill(os.getpid(), signal.SIGKILL)
        return pid

    def cost(exposition):
        began = time.thread_time()
        exposition.scrape("")
        return time.thread_time() - began
"""


def harness(folder: Path, script: str) -> Any:
    """What a script prints as JSON, run with a fresh folder for metrics."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HARNESS) + textwrap.dedent(script), str(folder)],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_the_text_is_that_of_prometheus_client(tmp_path: Path, accept: str) -> None:
    """Three processes share the work here, one does all of it there."""
    told = harness(
        tmp_path,
        f"""
        def make(registry):
            help_text = 'Quoted "help",\\nin \\\\ lines.'
            counter = Counter("things", help_text, ["kind"], registry=registry)
            plain = Counter("plain", "No labels.", registry=registry)
            gauge = Gauge("level", "A sum.", ["of"], registry=registry, multiprocess_mode="livesum")
            top = Gauge("top", "A maximum.", registry=registry, multiprocess_mode="livemax")
            low = Gauge("low", "A minimum.", registry=registry, multiprocess_mode="livemin")
            times = Histogram("seconds", "Times.", ["le_route"], registry=registry)
            odd = Histogram("odd", "Bounds.", registry=registry, buckets=(0.1, 2.5, 1e6, 1e9))
            sizes = Summary("sizes", "Sizes.", ["kind"], registry=registry)

            def work(part):
                counter.labels('a "quoted" \\\\ value\\nof\\x0btwo\\u2028lines, é').inc(part)
                counter.labels(f"only {{part}}").inc(1e7 * part)
                gauge.labels("x").set(part if part < 3 else -1.5)
                times.labels("/greet/{{name}}").observe(part / 2)
                times.labels("/").observe(100 * part)
                odd.observe(part * 1.25)
                sizes.labels("s").observe(part)
                plain.inc()
            return work, gauge, top, low

        ours, gauge, top, low = make(CollectorRegistry())
        top.set(7); low.set(-1)
        ours(1)
        for part in (2, 3):
            os.waitpid(fork(lambda: ours(part)), 0)
        exposition = Exposition()
        exposition.scrape({accept!r})
        body, content_type = exposition.scrape({accept!r})

        from prometheus_client import values, disable_created_metrics
        disable_created_metrics()
        values.ValueClass = values.MutexValue
        registry = CollectorRegistry()
        theirs, gauge, top, low = make(registry)
        top.set(7); low.set(-1)
        for part in (1, 2, 3):
            theirs(part)
        gauge.labels("x").set(1)  # gauges of the dead are gone
        encode, their_type = choose_encoder({accept!r})
        print(json.dumps([body.decode(), content_type, encode(registry).decode(), their_type]))
        """,
    )
    body, content_type, expected, their_type = told
    assert content_type == their_type
    families = tuple(re.findall(r"^# TYPE (\w+?)(?:_total)? ", expected, re.M))
    named = re.compile(r"(?:# (?:HELP|TYPE) )?(\w+)")
    found = [(line, named.match(line)) for line in body.split("\n")]
    lines = [x for x, name in found if not name or name[1].startswith(families)]
    assert sorted(lines) == sorted(expected.split("\n"))
    assert body.endswith("# EOF\n") == bool(accept)
    assert "_created" not in body


@pytest.mark.timeout(300)
def test_a_thousand_deaths_leave_no_trace(tmp_path: Path) -> None:
    before, after, counted, files, size = harness(
        tmp_path,
        f"""
        made = Counter("made", "Made.", ["route"])
        times = Histogram("seconds", "Times.", ["route"])
        present = Gauge("present", "Present.", multiprocess_mode="livesum")

        def work():
            for route in range(5):
                made.labels(str(route)).inc()
                times.labels(str(route)).observe(route)
            present.inc()

        def size():
            return [len(list(folder.iterdir())), sum(f.stat().st_size for f in folder.iterdir())]

        def storm(deaths):
            alive = []
            for _ in range(deaths):
                alive.append(fork(work))
                if len(alive) == 4:
                    os.waitpid(alive.pop(0), 0)
            for pid in alive:
                os.waitpid(pid, 0)

        def linger():
            work()
            time.sleep(0.5)

        for pid in [fork(linger) for _ in range(4)]:  # as many slots as the storm has at most
            os.waitpid(pid, 0)
        storm(16)
        small = size()
        copy = folder.with_name("copy")
        # whoever closes the file of locks in this process drops them all
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(slots.LOCK_FILE))
        storm({DEATHS})
        # in turns, as this machine is not always as fast
        exposition, other, before, after = Exposition(), Exposition(), [], []
        for _ in range(100):
            after.append(cost(exposition))
            slots._folder = copy
            before.append(cost(other))
            slots._folder = folder
        before, after = min(before), min(after)
        text = exposition.scrape("")[0].decode()
        counted = [line.split()[1] for line in text.splitlines() if line.startswith("made_total")]
        assert "present 0.0" in text
        print(json.dumps([before, after, counted, *zip(small, size())]))
        """,
    )
    assert counted == [f"{DEATHS + 20}.0"] * 5
    assert files[1] <= files[0] * 1.1
    assert size[1] <= size[0] * 1.1
    assert after <= before * 3  # a file for each of the dead would make it a hundred


def test_a_hundred_routes_of_sixteen_workers_are_shown_with_their_cost(tmp_path: Path) -> None:
    shown, lines = harness(
        tmp_path,
        """
        made = Counter("made", "Made.", ["route"])
        times = Histogram("seconds", "Times.", ["route"])
        ready, done = os.pipe(), os.pipe()

        def work():
            for route in range(100):
                made.labels(str(route)).inc()
                times.labels(str(route)).observe(route)
            os.write(ready[1], b".")
            os.close(done[1])
            os.read(done[0], 1)

        pids = [fork(work) for _ in range(16)]
        for _ in pids:
            os.read(ready[0], 1)
        exposition = Exposition()
        text = exposition.scrape("")[0].decode()
        shown = float(text.rpartition("metrics_scrape_seconds ")[2])
        print(json.dumps([shown, len(text.splitlines())]))
        """,
    )
    assert lines > 100 * 18
    assert shown > 0  # what it is, benchmarks/scrape.py measures


def test_a_scrape_survives_files_in_any_state(tmp_path: Path) -> None:
    good, text = harness(
        tmp_path,
        """
        Counter("good", "Good.").inc(5)
        exposition = Exposition()
        def line(*parts): return json.dumps(parts).encode() + b"\\n"
        bad = [
            b"", b"half a li", b"\\n\\n\\n", b"\\xff\\xfe\\n", b"{}\\n", b"[1,2]\\n",
            line("counter", "", "x y", "x y", {}, ""), line("counter", "", "x", "x", [], ""),
            line("counter", "", "x", "x", {"a": 1}, ""), line("nothing", "", "x", "x", {}, ""),
            line("histogram", "", "h", "h_bucket", {"le": "wide"}, ""),
            line("gauge", "none", "x", "x", {}, ""), os.urandom(10000),
        ]
        for number, data in enumerate(bad):
            for cells in (None, b"", b"123", b"12345678" * 3):
                for kind in ("counts", "gauges"):
                    (folder / f"{kind}_{number + 7}.keys").write_bytes(data)
                    if cells is not None:
                        (folder / f"{kind}_{number + 7}.cells").write_bytes(cells)
                exposition.scrape("")
            Exposition().scrape("application/openmetrics-text;version=1.0.0")
        for path in folder.glob("*_1?.*"):
            path.unlink()
            exposition.scrape("")
        late = line("counter", "", "late", "late_total", {}, "")
        (folder / "counts_3.keys").write_bytes(late[:-9])
        (folder / "counts_3.cells").write_bytes(b"\\0" * 8)
        exposition.scrape("")
        (folder / "counts_3.keys").write_bytes(late)
        text = exposition.scrape("")[0].decode()
        print(json.dumps([[x for x in text.splitlines() if x.startswith("good")], text]))
        """,
    )
    assert good == ["good_total 5.0"]
    assert "late_total 0.0" in text


# --- a folder that cannot be written


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    with suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass


def ask_for_many_series(service: Service) -> None:
    workers = set(service.workers())
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "TRACE"):
        for path in ("/", "/greet", "/greet/you", "/probe/log", "/nowhere"):
            for _ in range(3):
                assert service.request(method, path).status in (200, 400, 404, 405)
    assert set(service.workers()) == workers


def assert_degraded(service: Service) -> None:
    assert service.total("metrics_degraded") == 1
    assert service.log.read_text().count("metrics are incomplete") == 1


def test_a_disk_that_fills_up_costs_metrics_and_nothing_else(
    start: Start, small_disk: Path
) -> None:
    service = start(PROMETHEUS_MULTIPROC_DIR=str(small_disk))
    assert service.total("metrics_degraded") == 0
    assert service.total("metrics_folder_size_bytes") == 256 * 1024
    fill(small_disk)
    assert service.total("metrics_folder_free_bytes") == 0
    ask_for_many_series(service)
    assert_degraded(service)
    old = service.workers()[0]
    os.kill(old, signal.SIGKILL)  # its successor finds no room either
    wait_for(lambda: old not in service.workers() and len(service.workers()) == 2)
    ask_for_many_series(service)
    assert_degraded(service)


def test_a_disk_that_is_full_from_the_start(start: Start, small_disk: Path) -> None:
    fill(small_disk)
    service = start(PROMETHEUS_MULTIPROC_DIR=str(small_disk), wait=False)
    wait_for(lambda: service.says("metrics are incomplete"))
    wait_for(lambda: len(service.workers()) == 2)
    wait_for(lambda: answers(service))
    ask_for_many_series(service)
    assert_degraded(service)
    assert service.stop() == 0


def answers(service: Service) -> bool:
    with suppress(OSError):
        return service.get("/").status == 200
    return False


def test_a_read_only_folder_is_a_wrong_setting(start: Start, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    service = start(PROMETHEUS_MULTIPROC_DIR=str(small_disk), wait=False)
    assert service.ended() == 2
    assert service.says("cannot be written")


# --- each request once, with the status that is true of it


def half_a_request(service: Service, data: bytes, *, answer: bytes = b"") -> None:
    """Send this, read until `answer` has come, and be gone."""
    with socket.create_connection(("127.0.0.1", service.port)) as sock:
        sock.sendall(data)
        sock.settimeout(10)
        got = b""
        while answer not in got:
            got += sock.recv(65536)
        time.sleep(0.05)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: test", *headers, "", ""]).encode()


def test_each_request_is_counted_once_with_its_true_status(start: Start, loop: str) -> None:
    service = start(EVENT_LOOP=loop, WEB_CONCURRENCY="1")
    upgrade = (
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    )
    expected = {
        ("GET", "/", "200"): 1,
        ("GET", "/probe/error", "500"): 1,
        ("GET", "unmatched", "405"): 1,
        ("GET", "unmatched", "404"): 1,
        ("POST", "/greet", "413"): 1,
        ("POST", "/greet", "422"): 1,
        ("GET", "/probe/sleep/{seconds}", "none"): 1,
        ("GET", "/probe/stream/{chunks}", "200"): 2,
        ("POST", "/greet", "none"): 1,
        ("GET", "/probe/socket", "101"): 2,
        ("other", "unmatched", "400"): 1,
    }
    aborted = {
        ("/probe/sleep/{seconds}", "none", "client"): 1,
        ("/probe/stream/{chunks}", "200", "client"): 1,
        ("/probe/stream/{chunks}", "200", "error"): 1,
        ("/greet", "none", "client"): 1,
        ("/probe/socket", "101", "client"): 1,
    }
    service.get("/")
    service.get("/probe/error")
    service.get("/greet")
    service.get("/nowhere")
    service.request("POST", "/greet", b"x" * (2**20 + 1))
    service.request("POST", "/greet", b"{}")
    half_a_request(service, get("/probe/sleep/0.3"))
    half_a_request(service, get("/probe/stream/1000"), answer=b"xxx")
    with socket.create_connection(("127.0.0.1", service.port)) as sock:
        sock.sendall(get("/probe/stream/3"))
        while sock.recv(65536):
            pass
    half_a_request(service, b"POST /greet HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\n{")
    half_a_request(service, get("/probe/socket", *upgrade), answer=b"\r\n\r\n")

    async def talk() -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{service.url}/probe/socket") as websocket,
        ):
            await websocket.send_str("hello")
            assert await websocket.receive_str() == "hello"

    asyncio.run(talk())
    half_a_request(service, b"no HTTP at all\r\n\r\n", answer=b"400")

    def counted() -> dict[tuple[str, str, str], float]:
        return {
            (labels["method"], labels["route"], labels["status"]): value
            for name, labels, value in service.scrape()
            if name == "http_requests_total"
        }

    with suppress(AssertionError):
        wait_for(lambda: counted() == expected)
    assert counted() == expected
    requests = sum(expected.values())
    wait_for(lambda: service.total("http_request_duration_seconds_count") == requests)
    assert service.total("http_requests_in_progress") == 0
    assert aborted == {
        (labels["route"], labels["status"], labels["by"]): value
        for name, labels, value in service.scrape()
        if name == "http_responses_aborted_total"
    }
    access = wait_for(lambda: len(x := access_lines(service)) == requests and x)
    statuses = [s for (*_, s), number in expected.items() for _ in range(number)]
    assert sorted(str(line["status"] or "none") for line in access) == sorted(statuses)
    assert sorted(line["aborted"] for line in access if "aborted" in line) == sorted(
        by for *_, by in aborted
    )


def access_lines(service: Service) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    return [line for line in lines if line["logger"] == "access"]


def test_requests_cancelled_by_the_end_are_counted(start: Start, loop: str) -> None:
    service = start(EVENT_LOOP=loop, GRACEFUL_TIMEOUT="1", WEB_CONCURRENCY="1")

    async def ask() -> int:
        load = Load(service.port, "/probe/sleep/30")
        load.start(2)
        await asyncio.sleep(0.5)
        code = await asyncio.to_thread(service.stop)
        await load.stop()
        return code

    assert asyncio.run(ask()) == 0
    ends = [(line["status"], line["aborted"]) for line in access_lines(service)]
    assert ends == [(None, "drain")] * 2


# --- two containers of a pod


def test_a_folder_shared_by_two_containers(start: Start, tmp_path: Path) -> None:
    folder = str(tmp_path / "shared")
    first = start("web", PROMETHEUS_MULTIPROC_DIR=folder)
    second = start("web", PROMETHEUS_MULTIPROC_DIR=folder)
    for service in (first, second):
        for _ in range(10):
            service.get("/")
    assert first.total("http_requests_total") == second.total("http_requests_total") == 20
    assert first.total("workers", state="wanted") == 4
    assert second.stop() == 0
    assert first.total("http_requests_total") == 20
    assert first.total("workers", state="wanted") == 2
    third = start("web", PROMETHEUS_MULTIPROC_DIR=folder)
    third.get("/")
    assert first.total("http_requests_total") == third.total("http_requests_total") == 21


# --- each worker


def test_what_a_worker_tells_of_itself(start: Start, loop: str) -> None:
    service = start("serve", EVENT_LOOP=loop)

    def by_worker(name: str) -> dict[str, float]:
        return {its["worker"]: value for found, its, value in service.scrape() if found == name}

    every = 5  # two web workers, a compute worker, two arbiters
    wait_for(lambda: len(by_worker("process_start_time_seconds")) == every)
    assert len(service.processes()) == every
    processes = by_worker("process_start_time_seconds")
    assert all(0 <= time.time() - start < 60 for start in processes.values())
    assert all(4e6 < size < 4e8 for size in by_worker("process_resident_memory_bytes").values())
    assert all(3 < fds < 100 for fds in by_worker("process_open_fds").values())
    assert sum(by_worker("process_cpu_seconds_total").values()) > 0.1
    web = {its["worker"] for n, its, _ in service.scrape() if its.get("role") == "web"}
    assert len(web) == 2
    assert web == set(by_worker("event_loop_lag_seconds")) == set(by_worker("worker_connections"))
    connection = socket.create_connection(("127.0.0.1", service.port))
    wait_for(lambda: sum(by_worker("worker_connections").values()) == 1)
    connection.close()

    service.get("/probe/block/0.7")
    wait_for(lambda: max(by_worker("event_loop_lag_seconds").values()) > 0.5)
    assert 0.6 < max(by_worker("event_loop_busy_seconds_total").values()) < 3
    assert service.total("worker_gc_collections_total", generation="0") > 0

    pid = service.get("/").json()["worker"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: pid not in service.workers())
    wait_for(lambda: by_worker("process_start_time_seconds").keys() == processes.keys())


def test_lame_duck_shows(start: Start) -> None:
    service = start(LAME_DUCK="600")
    assert service.total("lame_duck") == 0
    service.process.terminate()
    wait_for(lambda: service.total("lame_duck") == 1)
    assert service.stop(signal.SIGQUIT) == 0


# --- log lines


def test_lines_carry_the_trace_and_stay_json_whatever_clients_send(start: Start) -> None:
    service = start(WEB_CONCURRENCY="1")
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    service.get("/probe/log", {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
    service.get("/probe/log", {"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01"})
    service.get('/nowhere/"\\', {"User-Agent": 'a "quoted" \\ agent, é'})
    lines = wait_for(lambda: len(x := access_lines(service)) == 3 and x)
    assert [line.get("trace_id") for line in lines] == [trace, None, None]
    assert lines[2]["path"].endswith("\\")
    assert lines[2]["user_agent"].startswith('a "quoted" \\ agent')
    said = [json.loads(line) for line in service.log.read_text().splitlines()]
    said = [line for line in said if line.get("message") == "from a handler"]
    assert [line.get("trace_id") for line in said] == [trace, None]
    assert [line["request_id"] for line in said] == [line["request_id"] for line in lines[:2]]
