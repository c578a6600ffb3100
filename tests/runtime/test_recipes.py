"""The recipes of the documentation, as they are written there, on several workers."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from conftest import Response, Service, free_port, wait_for
from overlay import PACKAGE, PROJECT

RECIPES = (PROJECT / "docs" / "recipes.md").read_text()
LIBRARIES = [
    "asyncpg",
    "aiohttp-session",
    "cryptography",
    "python-socketio",
    "redis",
    "sentry-sdk",
    "opentelemetry-sdk",
    "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry-instrumentation-aiohttp-server",
]
WORKERS = 3

Cook = Callable[..., Service]


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the recipes need beside what the project has."""
    shared = tmp_path_factory.getbasetemp().parent  # of all processes of this run
    folder, lock = shared / "libraries", shared / "libraries.lock"
    uv = PROJECT / ".venv" / "bin" / "uv"
    pins = ["--constraint", PROJECT / "requirements.txt"]
    install = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", folder]
    command = ["flock", *map(str, [lock, *install, *pins]), *LIBRARIES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the libraries cannot be installed: {done.stderr[-500:]}")
    return folder


@pytest.fixture
def cook(start: Callable[..., Service], tmp_path: Path) -> Cook:
    """cook("database") runs the project with this recipe in it."""

    def run(name: str, *paths: Path, **env: str) -> Service:
        code = tmp_path / "code"
        package = code / PACKAGE
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / "src" / PACKAGE, package, ignore=ignored)
        [recipe] = re.findall(rf"^```python\n(# {name}\.py\n.*?)^```", RECIPES, re.M | re.S)
        (package / f"{name}.py").write_text(recipe)
        app = package / "app.py"
        before, found, after = app.read_text().rpartition("    return app\n")
        assert found
        app.write_text(
            f"{before}    from . import {name}\n\n    {name}.set_up(app)\n{found}{after}"
        )
        if name == "assets":
            (package / "static").mkdir()
            (package / "static" / "site.css").write_text("body {}")
        path = os.pathsep.join(map(str, [code, *paths]))
        return start("web", code=code, PYTHONPATH=path, WEB_CONCURRENCY=str(WORKERS), **env)

    return run


def often(ask: Callable[[], Response], times: int = 30) -> list[Response]:
    """So many connections that they come to all workers."""
    with ThreadPoolExecutor(times) as pool:
        return [f.result() for f in [pool.submit(ask) for _ in range(times)]]


class Listener:
    """A server that answers everything with {} and remembers it."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, bytes]] = []
        heard = self.heard

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                heard.append((self.path, self.rfile.read(int(self.headers["Content-Length"] or 0))))
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            do_GET = do_POST = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.server.shutdown()
    listener.server.server_close()


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    server, port = shutil.which("redis-server"), free_port()
    if server is None:
        pytest.skip("redis-server is not installed")
    with (tmp_path / "redis.log").open("wb") as log:
        process = subprocess.Popen(
            [server, "--port", str(port), "--save", "", "--dir", str(tmp_path)], stdout=log
        )
    yield f"redis://127.0.0.1:{port}/0"
    process.kill()
    process.wait()


@pytest.fixture
def database_url(tmp_path: Path) -> Iterator[str]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        pytest.skip("postgresql is not installed")
    through: list[str] = []
    folder, port = Path(tempfile.mkdtemp(prefix="database-")), free_port()
    if os.geteuid() == 0:  # for whom it does not start
        through = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        os.chown(folder, 65534, 65534)
    programs = str(found[-1])
    init = [f"{programs}/initdb", "-D", str(folder), "-U", "test", "-A", "trust", "--no-sync"]
    done = subprocess.run([*through, *init], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"initdb: {done.stderr}")
    serve = [f"{programs}/postgres", "-D", str(folder), "-k", str(folder), "-F"]
    serve += ["-p", str(port), "-h", "127.0.0.1"]
    with (tmp_path / "postgres.log").open("wb") as log:
        process = subprocess.Popen([*through, *serve], stderr=log, cwd=folder)
    url = f"postgresql://test@127.0.0.1:{port}/postgres"
    [table] = re.findall(r"^    (CREATE TABLE .*)$", RECIPES, re.M)
    psql = [f"{programs}/psql", url, "-c", table]
    wait_for(lambda: subprocess.run(psql, capture_output=True, check=False).returncode == 0)
    yield url
    process.send_signal(signal.SIGINT)
    process.wait()
    shutil.rmtree(folder)


def test_a_pool_of_connections(cook: Cook, libraries: Path, database_url: str) -> None:
    service = cook("database", libraries, DATABASE_URL=database_url)
    visits = often(lambda: service.request("POST", "/visits/home"))
    assert sorted(r.json()["count"] for r in visits) == list(range(1, len(visits) + 1))


def test_a_session_for_requests(cook: Cook, listener: Listener) -> None:
    service = cook("upstream", UPSTREAM_URL=listener.url)
    assert {r.status for r in often(lambda: service.get("/weather/here"))} == {200}
    assert {path for path, _ in listener.heard} == {"/weather?place=here"}
    listener.server.shutdown()
    listener.server.server_close()
    assert service.get("/weather/here").status == 502


def test_sentry(cook: Cook, libraries: Path, listener: Listener) -> None:
    dsn = listener.url.replace("http://", "http://key@") + "/1"
    service = cook("errors", libraries, SENTRY_DSN=dsn)
    often(lambda: service.get("/broken"), 10)
    assert service.stop() == 0
    assert sum(path == "/api/1/envelope/" for path, _ in listener.heard) >= 10


def test_traces(cook: Cook, libraries: Path, listener: Listener) -> None:
    service = cook("tracing", libraries, OTEL_EXPORTER_OTLP_ENDPOINT=listener.url)
    assert {r.status for r in often(lambda: service.get("/"))} == {200}
    assert service.stop() == 0
    sent = [body for path, body in listener.heard if path == "/v1/traces"]
    assert len(sent) >= 2  # by more than one worker


def test_cors(cook: Cook) -> None:
    service = cook("cors")
    origin = {"Origin": "https://app.example.org"}
    preflight = {**origin, "Access-Control-Request-Method": "POST"}
    answers = [
        service.get("/", origin),
        service.get("/nothing", origin),
        service.request("OPTIONS", "/greet", headers=preflight),
    ]
    assert [r.status for r in answers] == [200, 404, 204]
    allowed = {r.headers["Access-Control-Allow-Origin"] for r in answers}
    assert allowed == {"https://app.example.org"}
    stranger = service.get("/", {"Origin": "https://example.org"})
    assert "Access-Control-Allow-Origin" not in stranger.headers


def test_static_files(cook: Cook) -> None:
    service = cook("assets")
    answers = often(lambda: service.get("/static/site.css"))
    assert {(r.status, r.body) for r in answers} == {(200, b"body {}")}
    tag = answers[0].headers["ETag"]
    assert service.get("/static/site.css", {"If-None-Match": tag}).status == 304


def test_sessions(cook: Cook, libraries: Path) -> None:
    [make_key] = re.findall(r'^    python -c "(from cryptography.*)"$', RECIPES, re.M)
    made = subprocess.run(
        [sys.executable, "-c", make_key],
        env={"PYTHONPATH": str(libraries)},
        capture_output=True,
        text=True,
        check=True,
    )
    service = cook("sessions", libraries, SESSION_KEY=made.stdout.strip())
    first = service.request("POST", "/basket")
    assert first.json() == {"items": 1}
    cookie = {"Cookie": first.headers["Set-Cookie"].partition(";")[0]}
    known = often(lambda: service.request("POST", "/basket", headers=cookie))
    assert {r.json()["items"] for r in known} == {2}


TALK = """
    import asyncio, sys, socketio

    async def main():
        heard = [asyncio.Queue() for _ in range(12)]
        clients = [socketio.AsyncClient() for _ in heard]
        for client, said in zip(clients, heard):
            client.on("said", said.put)
            await client.connect(sys.argv[1], transports=["websocket"])
            await client.emit("join", "room")
        # who has joined, hears; the last may not have yet
        async def talk():
            while True:
                await clients[0].emit("say", {"room": "room", "text": "hello"})
                await asyncio.sleep(0.2)
        talking = asyncio.create_task(talk())
        async with asyncio.timeout(60):
            print([await said.get() for said in heard])
        talking.cancel()
        for client in clients:
            await client.disconnect()

    asyncio.run(main())
"""


def test_socket_io(cook: Cook, libraries: Path, redis_url: str) -> None:
    service = cook("live", libraries, REDIS_URL=redis_url)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TALK), service.url],
        env={"PYTHONPATH": str(libraries)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"{['hello'] * 12}\n", done.stderr


def test_uploads(cook: Cook, tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    folder.mkdir()
    service = cook("uploads", UPLOADS=str(folder))
    data = os.urandom(5_000_000)
    answers: list[Any] = [
        r.json() for r in often(lambda: service.request("POST", "/uploads", data), 5)
    ]
    assert {answer["bytes"] for answer in answers} == {len(data)}
    assert {file.name for file in folder.iterdir()} == {answer["name"] for answer in answers}
    assert all(file.read_bytes() == data for file in folder.iterdir())


def test_rate_limits(cook: Cook, libraries: Path, redis_url: str) -> None:
    service = cook("limits", libraries, REDIS_URL=redis_url)
    begun = time.time() // 60
    statuses = [r.status for _ in range(5) for r in often(lambda: service.get("/"), 50)]
    windows = time.time() // 60 - begun + 1
    assert 100 <= statuses.count(200) <= 100 * windows
    assert statuses.count(200) + statuses.count(429) == len(statuses)
