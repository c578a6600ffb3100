"""`make run` and `make demo` look before they start, and show nobody else's counts."""

import http.server
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
from conftest import ROOT
from test_answers import DEFAULT
from test_generation import free_port

DEMO = ROOT / "scripts" / "demo.py"


@pytest.mark.parametrize("command", ["run", "demo"])
def test_a_taken_port_ends_it_before_it_starts(
    command: str, installed: Callable[..., Path]
) -> None:
    project = installed(**DEFAULT)
    words = ["make", "run"] if command == "run" else [sys.executable, str(DEMO), str(project)]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            words,
            cwd=project,
            env=os.environ | {"PORT": str(port), "ADMIN_PORT": str(free_port())},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2, done.stderr
    assert f"PORT={port}: " in done.stderr
    assert f"(process {os.getpid()})" in done.stderr
    assert "Service:" not in done.stdout
    assert "http_requests_total" not in done.stdout


class Other(http.server.BaseHTTPRequestHandler):
    """Somebody else's service, on the address that `localhost` means first."""

    def do_GET(self) -> None:
        body = b'{"worker": 1}\nhttp_requests_total{route="/"} 77777\n'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class OtherServer(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_it_shows_its_own_counts(installed: Callable[..., Path]) -> None:
    project = installed(**DEFAULT)
    with OtherServer(("::1", 0), Other) as public, OtherServer(("::1", 0), Other) as admin:
        for other in (public, admin):
            Thread(target=other.serve_forever, daemon=True).start()
        ports = {"PORT": str(public.server_port), "ADMIN_PORT": str(admin.server_port)}
        demo = subprocess.Popen(
            [sys.executable, str(DEMO), str(project)],
            env=os.environ | ports | {"WEB_CONCURRENCY": "2"},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert demo.stdout is not None
        shown = ""
        end = time.monotonic() + 60
        while "Ctrl-C ends it." not in shown and time.monotonic() < end:
            if not (line := demo.stdout.readline()):
                break
            shown += line
        os.killpg(demo.pid, signal.SIGINT)
        demo.wait(60)
        for other in (public, admin):
            other.shutdown()
    assert "77777" not in shown
    (counted,) = re.findall(r'http_requests_total\{.*route="/".*\} ([\d.]+)', shown)
    assert float(counted) == 1000
