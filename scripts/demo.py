"""Starts a generated service, asks it from several sides, shows what it counted; Ctrl-C ends it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

REQUESTS = 1000


def url(prefix: str, port: str) -> str:
    """Where the service listens: `localhost` may be another one's, on the other kind of address."""
    host = os.environ.get(f"{prefix}HOST") or "0.0.0.0"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    port = os.environ.get(f"{prefix}PORT") or port
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


SERVICE = url("", "8080")
ADMIN = url("ADMIN_", "8081")


def get(url: str) -> str:
    with urlopen(url, timeout=10) as response:
        text: str = response.read().decode()
    return text


def wait_until_ready(service: subprocess.Popen[bytes]) -> None:
    while service.poll() is None:
        try:
            get(f"{ADMIN}/readyz")
        except URLError:
            time.sleep(0.1)
        else:
            return
    sys.exit(f"The service ended with exit code {service.returncode}; what it said stands above.")


def show(service: subprocess.Popen[bytes]) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(get, [f"{SERVICE}/"] * REQUESTS)
        workers = Counter(json.loads(answer)["worker"] for answer in answers)
    ours = os.getpgid(service.pid)
    if any(os.getpgid(worker) != ours for worker in workers):
        sys.exit(f"Another service answers on {SERVICE}: give a free port, PORT=9000 make demo")
    time.sleep(0.2)  # a response arrives a moment before it is counted
    counted = [line for line in get(f"{ADMIN}/metrics").splitlines() if 'route="/"' in line]
    print(f"\n{REQUESTS} requests, answered by {len(workers)} workers:")
    for worker, requests in sorted(workers.items()):
        print(f"    worker {worker}: {requests}")
    print("\nWhat /metrics says, summed over them, whichever worker answers:")
    print(*(f"    {line}" for line in counted if line.startswith("http_requests_total")), sep="\n")
    print(
        "\nYour turn, from another terminal:\n"
        f"    curl {SERVICE}/\n"
        f"    curl {SERVICE}/greet/you\n"
        f"    curl {SERVICE}/primes/1000000      # computed in another process\n"
        f"    curl -s {ADMIN}/metrics | grep http_requests_total\n"
        "Ctrl-C ends it.",
        flush=True,
    )


def main() -> None:
    project = Path(sys.argv[1])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    command = project / ".venv" / "bin" / project.name
    if code := subprocess.run([command, "check", "--start"], check=False).returncode:
        sys.exit(code)
    service = subprocess.Popen(
        [command],
        env={"LOG_FORMAT": "console", "ACCESS_LOG": "false", "LAME_DUCK": "0"} | os.environ,
    )
    try:
        wait_until_ready(service)
        show(service)
        service.wait()
    except KeyboardInterrupt:
        pass  # the terminal told the service as well
    finally:
        service.terminate()
        service.wait()


if __name__ == "__main__":
    main()
