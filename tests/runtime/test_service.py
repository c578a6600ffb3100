"""The service as a whole: requests, errors, metrics, settings."""

import asyncio
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import HANGS, Service, running, wait_for
from load import Load
from overlay import PACKAGE, PROJECT
from prometheus_client.openmetrics.parser import text_string_to_metric_families

Start = Callable[..., Service]


def python(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", PACKAGE, *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, code: Path) -> Iterator[Service]:
    """One service for the tests that only ask it things."""
    shared = Service(tmp_path_factory.mktemp("service"), code, "serve", {})
    try:
        shared.wait_until_live()
        yield shared
    finally:
        shared.kill()


def test_index_names_the_service_and_the_worker(service: Service) -> None:
    found = service.get("/").json()
    assert found.keys() == {"service", "version", "worker"}
    assert found["worker"] in service.workers()


def test_greet(service: Service) -> None:
    assert service.get("/greet/Zo%C3%AB").json() == {"hello": "Zoë"}
    assert service.request("POST", "/greet", b'{"name": "Ada"}').json() == {"hello": "Ada"}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "detail"),
    [
        ("POST", "/greet", b"{", 400, "JSON"),
        ("POST", "/greet", b"[]", 422, "name"),
        ("POST", "/greet", b'{"name": 5}', 422, "name"),
        ("POST", "/greet", b'{"name": " "}', 422, "name"),
        ("POST", "/greet", b"x" * (2**20 + 1), 413, "size"),
        ("GET", "/greet", None, 405, "Method"),
        ("GET", "/nowhere", None, 404, "Not Found"),
        ("GET", "/probe/error", None, 500, "Internal"),
        ("GET", "/primes/many", None, 404, "Not Found"),
    ],
)
def test_errors_are_problems(
    service: Service, method: str, path: str, body: bytes | None, status: int, detail: str
) -> None:
    response = service.request(method, path, body)
    assert response.status == status
    assert response.headers["Content-Type"].startswith("application/problem+json")
    problem = response.json()
    assert problem["status"] == status
    assert detail in problem["detail"]
    assert problem["request_id"] == response.headers["X-Request-ID"]


def test_a_request_that_is_no_http_is_a_problem_too(service: Service) -> None:
    response = service.request("GET", "/", headers={"Content-Length": "-1"})
    assert response.status == 400
    assert response.headers["Content-Type"].startswith("application/problem+json")
    assert response.json()["request_id"] == response.headers["X-Request-ID"]


def test_request_id_is_taken_over_where_it_is_well_formed(service: Service) -> None:
    assert service.get("/", {"X-Request-ID": "abc-1"}).headers["X-Request-ID"] == "abc-1"
    made = {service.get("/", {"X-Request-ID": "a b"}).headers["X-Request-ID"] for _ in range(5)}
    assert len(made) == 5
    assert "a b" not in made


def test_each_port_has_its_own(service: Service) -> None:
    for path in ("/livez", "/readyz", "/startupz"):
        assert service.get(path, admin=True).status == 200
        assert service.get(path).status == 404
    assert service.get("/metrics").status == 404
    assert service.get("/greet/you", admin=True).status == 404


def test_metrics_sum_over_the_workers_whichever_answers(start: Start, loop: str) -> None:
    service = start("web", WEB_CONCURRENCY="3", EVENT_LOOP=loop)
    workers = []

    def two_have_answered() -> bool:
        service.get("/greet/you")
        workers.append(service.get("/").json()["worker"])
        return len(set(workers)) > 1

    wait_for(two_have_answered)
    asked = len(workers)
    # when a request has ended is known a moment after its client has the answer
    ended = "http_request_duration_seconds_count"
    wait_for(lambda: service.total(ended, route="/", method="GET") == asked)
    for _ in range(10):
        assert service.total("http_requests_total", route="/") == asked
        assert service.total("http_requests_total", route="/greet/{name}", status="200") == asked
        assert service.total(ended, route="/", method="GET") == asked
    assert service.total("worker_boots_total") == 3
    assert service.total("workers", state="wanted") == 3
    assert service.total("workers", state="live") == 3


def test_paths_and_methods_make_no_label_values_of_their_own(service: Service) -> None:
    for n in range(3):
        service.get(f"/nowhere/{n}")
        service.request(f"NEW{n}", "/nowhere")
    labels = [labels for name, labels, _ in service.scrape() if name == "http_requests_total"]
    assert {one["route"] for one in labels} >= {"unmatched"}
    assert not [one for one in labels if "nowhere" in one["route"] or "NEW" in one["method"]]


def test_requests_in_progress(start: Start) -> None:
    service = start()

    async def slowly() -> None:
        load = Load(service.port, "/probe/sleep/1")
        load.start(4)
        await asyncio.to_thread(wait_for, lambda: service.total("http_requests_in_progress") == 4)
        await load.stop()

    asyncio.run(slowly())
    wait_for(lambda: service.total("http_requests_in_progress") == 0)


def test_openmetrics_where_the_client_asks_for_it(service: Service) -> None:
    service.get("/")
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    response = service.get("/metrics", {"Accept": accept}, admin=True)
    assert response.headers["Content-Type"].startswith("application/openmetrics-text")
    families = {f.name for f in text_string_to_metric_families(response.body.decode())}
    assert {"http_requests", "http_request_duration_seconds", "workers", "service_info"} <= families
    plain = service.get("/metrics", admin=True)
    assert plain.headers["Content-Type"].startswith("text/plain")


def test_primes_come_from_the_compute_pool(service: Service) -> None:
    assert service.get("/primes/1000000").json() == {"limit": 1000000, "count": 78498}


def test_logs_are_json_with_the_request_id(service: Service) -> None:
    service.get("/greet/log", {"X-Request-ID": "find-me"})
    service.get("/probe/error", {"X-Request-ID": "find-the-error"})

    def lines(request_id: str, what: str) -> list[dict[str, Any]]:
        whole = service.log.read_text().rpartition("\n")[0]
        found = [json.loads(line) for line in whole.splitlines()]
        return [x for x in found if x.get("request_id") == request_id and what in x]

    access = wait_for(lambda: lines("find-me", "path"))[0]
    assert (access["path"], access["status"], access["logger"]) == ("/greet/log", 200, "access")
    error = wait_for(lambda: lines("find-the-error", "exception"))[0]
    assert "ZeroDivisionError: on purpose" in error["exception"]


def test_console_logs_and_no_access_log(start: Start) -> None:
    service = start("web", LOG_FORMAT="console", ACCESS_LOG="false", LOG_LEVEL="warning")
    service.get("/greet/you", {"X-Request-ID": "find-me"})
    service.get("/probe/error", {"X-Request-ID": "find-the-error"})
    wait_for(lambda: service.says("ZeroDivisionError"))
    assert service.says("[find-the-error]")
    assert not service.says("find-me")


WRONG = {
    "PORT": ("http", "whole number from 1 to 65535"),
    "ADMIN_PORT": ("70000", "whole number"),
    "HOST": ("nowhere at all", "IP address"),
    "WEB_CONCURRENCY": ("0", "from 1 to"),
    "EVENT_LOOP": ("trio", "uvloop or asyncio"),
    "GRACEFUL_TIMEOUT": ("-3", "from 1 to"),
    "LAME_DUCK": ("soon", "a number"),
    "WORKER_MEMORY": ("lots", "96Mi"),
    "MAX_BODY": ("1Zi", "96Mi"),
    "LOG_LEVEL": ("loud", "debug"),
    "LOG_FORMAT": ("xml", "json or console"),
    "ACCESS_LOG": ("perhaps", "true or false"),
    "COMPUTE_URL": ("ftp://x", "unix:/path"),
    "PROMETHEUS_MULTIPROC_DIR": (f"{__file__}/folder", "cannot be written"),
}


def test_wrong_settings_stop_the_start_with_all_of_them() -> None:
    result = python(**{name: value for name, (value, _) in WRONG.items()})
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    for name, (value, rule) in WRONG.items():
        assert re.search(f"{name}='{re.escape(value)}'.*{rule}", result.stderr), result.stderr


def test_one_port_cannot_be_two() -> None:
    result = python(PORT="9000", ADMIN_PORT="9000")
    assert result.returncode == 2
    assert "ADMIN_PORT=9000" in result.stderr


def test_a_socket_that_cannot_be_made_stops_the_start() -> None:
    result = python("compute", COMPUTE_URL="unix:/nowhere/compute.sock")
    assert result.returncode == 2
    assert "COMPUTE_URL='unix:/nowhere/compute.sock'" in result.stderr


def test_check_says_what_would_run_and_starts_nothing() -> None:
    found = json.loads(python("check", "--json", WEB_CONCURRENCY="3", LAME_DUCK="1").stdout)
    assert found["web_workers"] == 3
    assert "WEB_CONCURRENCY" in found["web_workers_reason"]
    assert found["settings"]["LAME_DUCK"] == 1
    words = python("check", WEB_CONCURRENCY="3").stdout
    assert "web workers: 3, because WEB_CONCURRENCY is 3" in words


def test_every_setting_has_a_row() -> None:
    settings = importlib.import_module(f"{PACKAGE}.runtime.settings")
    page = (PROJECT / "docs" / "settings.md").read_text()
    for name in settings.Settings().as_json():
        assert re.search(rf"^\| *`{name}`", page, re.M), f"{name} has no row in docs/settings.md"


def test_nothing_stays_behind(start: Start) -> None:
    service = start("serve")
    wait_for(lambda: len(service.processes()) == 5)
    folder, processes = service.folder(), service.processes()
    assert service.stop() == 0
    assert not [pid for pid in processes if running(pid)]
    assert not folder.exists()
