"""Two instances of the service behind nginx, restarted in turn: no client notices."""

import asyncio
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from conftest import require, wait_for

RUNTIME = Path(__file__).with_name("runtime")
SOAK = bool(os.environ.get("SOAK"))
RESTARTS = 10 if SOAK else 2
TOLD_LATE = 2.0  # seconds from a change of readiness until the balancer knows
LAME_DUCK = 4.0

NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
events {{ worker_connections 1024; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream service {{
        {servers}
        keepalive 32;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://service;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_next_upstream off;
        }}
    }}
}}
"""


class Balancer:
    """nginx, without retries, that learns of its upstreams what it is told."""

    def __init__(self, folder: Path, upstreams: set[int]) -> None:
        self.folder = folder
        self.port = free_ports()
        self.write(upstreams)
        self.process = subprocess.Popen([require("nginx"), "-c", folder / "nginx.conf"])

    def write(self, upstreams: set[int]) -> None:
        # max_fails=0: as a Service of Kubernetes, it has no opinion of its own on who is well
        servers = "".join(f"server 127.0.0.1:{port} max_fails=0;\n" for port in sorted(upstreams))
        text = NGINX.format(folder=self.folder, servers=servers, port=self.port)
        (self.folder / "nginx.conf").write_text(text)

    def tell(self, upstreams: set[int]) -> None:
        self.write(upstreams)
        self.process.send_signal(signal.SIGHUP)


def free_ports() -> int:
    """A free port whose successor is free too."""
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        port = int(one.getsockname()[1])
        try:
            two.bind(("127.0.0.1", port + 1))
        except OSError:
            return free_ports()
        return port


def ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port + 1, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_rolling_restarts_lose_nothing(
    installed: Callable[..., Path], tmp_path: Path, loop: str
) -> None:
    project = installed()
    first, second = free_ports(), free_ports()
    log = (tmp_path / "service.log").open("wb")

    def start(port: int) -> "subprocess.Popen[bytes]":
        environment = {
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "ADMIN_PORT": str(port + 1),
            "WEB_CONCURRENCY": "2",
            "EVENT_LOOP": loop,
            "LAME_DUCK": str(LAME_DUCK),
            "ACCESS_LOG": "false",
        }
        command: list[str | Path] = [project / ".venv/bin/python", "-m", "my_service", "web"]
        started = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        wait_for(lambda: ready(port))
        return started

    def restart(port: int, other: int) -> None:
        instances[port].terminate()
        wait_for(lambda: not ready(port))
        time.sleep(TOLD_LATE)
        balancer.tell({other})
        assert instances[port].wait(60) == 0
        instances[port] = start(port)
        time.sleep(TOLD_LATE)
        balancer.tell({port, other})
        time.sleep(0.5)

    def restart_in_turn() -> None:
        for _ in range(RESTARTS // 2):
            restart(first, second)
            restart(second, first)

    async def under_load() -> Any:
        sys.path.insert(0, str(RUNTIME))
        load = import_module("load").Load(balancer.port, keep_alive=False)
        sys.path.remove(str(RUNTIME))
        load.start(8)
        await asyncio.to_thread(restart_in_turn)
        return await load.stop()

    instances = {port: start(port) for port in (first, second)}
    balancer = Balancer(tmp_path, {first, second})
    try:
        wait_for((tmp_path / "nginx.pid").exists)
        time.sleep(0.5)
        result = asyncio.run(under_load())
    finally:
        for process in (balancer.process, *instances.values()):
            process.terminate()
            process.wait(60)
        log.close()
    assert not result.failures, (tmp_path / "error.log").read_text()[-2000:]
    assert result.answers.keys() == {200}, (result.answers, (tmp_path / "error.log").read_text())
    assert len(result.workers) == 2 * (2 + RESTARTS)
