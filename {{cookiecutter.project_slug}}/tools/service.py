"""The service, started for a measurement, and what it says of itself at /metrics."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[1]
START = 60  # seconds that it may take
STOP = 30

Values = dict[str, dict[str, float]]  # by metric and worker


def package() -> str:
    (runtime,) = (ROOT / "src").glob("*/runtime")
    return runtime.parent.name


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def engine() -> str:
    """The container engine that answers here."""
    for name in ("docker", "podman"):
        if shutil.which(name):
            done = subprocess.run([name, "info"], capture_output=True, check=False)
            if done.returncode == 0:
                return name
    sys.exit("Neither docker nor podman answers: install one of them, or start its service.")


@dataclass
class Service:
    port: int
    admin_port: int
    process: subprocess.Popen[bytes]
    pid: Callable[[], int]
    roles: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def scrape(self) -> Values:
        with urlopen(f"http://127.0.0.1:{self.admin_port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        values: Values = defaultdict(dict)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if "worker" in sample.labels:
                    values[sample.name][sample.labels["worker"]] = sample.value
                if sample.name == "worker_info":
                    self.roles[sample.labels["worker"]] = sample.labels["role"]
        return values

    def is_web(self, worker: str) -> bool:
        return not self.roles.get(worker, "").startswith("compute")

    def memory(self) -> float:
        """Bytes of all its processes; what they share is counted once, where the system tells."""
        total = 0
        try:
            parent = psutil.Process(self.pid())
            for one in [parent, *parent.children(recursive=True)]:
                info = one.memory_full_info()
                total += getattr(info, "pss", info.rss)
        except psutil.Error:  # of another user, in a container
            return sum(self.scrape()["process_resident_memory_bytes"].values())
        return total


@contextmanager
def running(cpus: str = "", image: str = "", **settings: str) -> Iterator[Service]:
    """The service on free ports of this machine, or in a container with so many CPUs."""
    port, admin_port = free_port(), free_port()
    settings = {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "ADMIN_HOST": "127.0.0.1",
        "ADMIN_PORT": str(admin_port),
        "LAME_DUCK": "0",
        "LOG_FORMAT": "json",
        "API_DOCS": "true",  # tools/openapi.py reads it
        **settings,
    }
    name = f"{package()}-{port}"
    if cpus:
        given = [word for key, value in settings.items() for word in ("-e", f"{key}={value}")]
        command = [engine(), "run", "--rm", "--name", name, "--network", "host", "--cpus", cpus]
        command += ["--attach", "stderr", "--log-driver", "none"]  # nobody pays for reading lines
        command += [*given, image]
    else:
        command = [str(ROOT / ".venv/bin/python"), "-m", package()]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            env=os.environ | settings,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for who measures, and that one ends it
        )

        def pid() -> int:
            if not cpus:
                return process.pid
            said = subprocess.check_output([command[0], "inspect", name])
            return int(json.loads(said)[0]["State"]["Pid"])

        service = Service(port, admin_port, process, pid)
        try:
            wait_until_it_serves(service, int(settings.get("WEB_CONCURRENCY", "1")))
            yield service
        except SystemExit:
            log.seek(0)
            print(log.read().decode(errors="replace")[-4000:], file=sys.stderr)
            raise
        finally:
            process.terminate()
            try:
                process.wait(STOP)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_it_serves(service: Service, workers: int) -> None:
    limit = time.monotonic() + START
    while time.monotonic() < limit:
        if service.process.poll() is not None:
            sys.exit(f"The service ended with exit code {service.process.returncode}; it said:")
        try:
            service.scrape()
        except (URLError, OSError):
            time.sleep(0.05)
            continue
        if sum(role == "web" for role in service.roles.values()) >= workers:
            return
        time.sleep(0.05)
    sys.exit(f"The service did not start within {START} s; it said:")
