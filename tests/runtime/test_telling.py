"""What is said to whom: errors to clients and to the log, log lines to people and to machines."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Service, copy_code, wait_for
from overlay import PACKAGE, PROJECT

Start = Callable[..., Service]
StartOwn = Callable[..., Service]

TASKS = """
    from .runtime import RefusedError, task

    @task
    def leak() -> int:
        raise ValueError("postgres://user:secret@host")

    @task
    def refuse() -> int:
        raise RefusedError(422, "limit: give at most 1000")
"""
APP = """
    import logging
    from aiohttp import web
    from .runtime import compute
    from . import tasks

    log = logging.getLogger("own")

    async def leak(request):
        return web.json_response(await compute.run(tasks.leak))

    async def refuse(request):
        return web.json_response(await compute.run(tasks.refuse))

    async def say(request):
        log.warning("text", extra={"order": 7, "level": "mine"}, stack_info=True)
        log.warning({"event": "paid", "amount": 1.5})
        log.warning({"not": float("nan")})
        try:
            1 / 0
        except ZeroDivisionError:
            log.exception("failed")
        print("no JSON at all", flush=True)
        return web.Response()

    async def fail(request):
        raise ZeroDivisionError

    async def create_app():
        app = web.Application()
        app.router.add_get("/leak", leak)
        app.router.add_get("/refuse", refuse)
        app.router.add_get("/say", say)
        app.router.add_get("/fail", fail)
        return app
"""


@pytest.fixture
def start_own(start: Start, tmp_path: Path) -> StartOwn:
    """start_own("web", APP) runs a service with an app.py of that text."""
    code = copy_code(tmp_path / "code")

    def run(command: str, app: str, **options: Any) -> Service:
        (code / PACKAGE / "app.py").write_text(textwrap.dedent(app))
        return start(command, code=code, WEB_CONCURRENCY="1", **options)

    (code / PACKAGE / "tasks.py").write_text(textwrap.dedent(TASKS))
    return run


def objects(service: Service) -> list[dict[str, Any]]:
    """The lines that are JSON."""
    lines = service.log.read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_what_a_task_says_is_for_the_log_and_what_it_refuses_for_the_client(
    start_own: StartOwn,
) -> None:
    service = start_own("serve", APP)
    leaked = service.get("/leak")
    assert leaked.status == 500
    assert b"secret" not in leaked.body
    assert leaked.json()["detail"] == "Internal Server Error"
    wait_for(lambda: service.says("postgres://user:secret@host"), 30)
    refused = service.get("/refuse")
    assert (refused.status, refused.json()["detail"]) == (422, "limit: give at most 1000")
    assert service.total("compute_tasks_total", task="refuse", outcome="refused") == 1
    assert service.total("compute_tasks_total", task="leak", outcome="error") == 1


def test_json_lines_hold_all_that_was_given(start_own: StartOwn) -> None:
    service = start_own("web", APP)
    service.get("/say")
    said = wait_for(
        lambda: len(x := [o for o in objects(service) if o["logger"] == "own"]) == 4 and x, 30
    )
    assert (said[0]["message"], said[0]["order"]) == ("text", 7)
    assert (said[0]["level"], said[0]["extra_level"]) == ("warning", "mine")
    assert "in say" in said[0]["stack"]
    assert said[1]["message"] == {"event": "paid", "amount": 1.5}
    assert said[2]["message"] == "{'not': nan}"
    assert "ZeroDivisionError" in said[3]["exception"]


def test_the_runbooks_jq_reads_a_log_with_other_lines_too(start_own: StartOwn) -> None:
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    service = start_own("web", APP)
    service.get("/say")
    service.get("/fail")
    wait_for(lambda: service.says('"status":500'), 30)
    assert service.says("no JSON at all")
    runbook = (PROJECT / "docs" / "runbook.md").read_text()
    options, program = re.findall(r"\| jq (-\w+) '([^']+)'", runbook)[0]
    done = subprocess.run(
        ["jq", options, program, service.log], capture_output=True, text=True, check=True
    )
    assert [json.loads(line)["path"] for line in done.stdout.splitlines()] == ["/fail"]


def test_console_lines_are_for_people(start_own: StartOwn) -> None:
    service = start_own("web", APP, LOG_FORMAT="console")
    service.get("/say", {"X-Request-ID": "find-me"})
    wait_for(lambda: service.says("GET /say 200"), 30)
    lines = service.log.read_text().splitlines()
    marked = [line for line in lines if line.endswith("[find-me]")]
    assert len(marked) == 5  # four messages and the access line, each before what follows it
    assert "\x1b" not in "".join(lines)
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}Z \d+ ", line) for line in marked)
    assert any(line.endswith("ERROR own: failed [find-me]") for line in marked)


def test_colours_are_for_terminals() -> None:
    script = (
        f"import logging; from {PACKAGE}.runtime import logs\n"
        'logs.setup("info", "console", access=False); logging.error("red")\n'
    )
    for environment, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        reader, writer = pty.openpty()
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
            stdout=writer,
            check=True,
        )
        os.close(writer)
        assert (b"\x1b[31mERROR" in os.read(reader, 4096)) == coloured
        os.close(reader)


# --- an Application's own wishes

WISHES = """
    from aiohttp import web
    from aiohttp.abc import AbstractAccessLogger

    class Mine(web.Request):
        mine = "mine"

    class Log(AbstractAccessLogger):
        def log(self, request, response, time):
            print("own access log", request.path, response.status, flush=True)

    async def tell(request):
        assert isinstance(request, Mine) and isinstance(request.clone(), Mine)
        return web.Response(text=request.mine)

    async def create_app():
        app = web.Application(handler_args={"access_log_class": Log, "max_line_size": 100})
        make = app._make_request
        app._make_request = lambda *arguments: make(*arguments, _cls=Mine)
        app.router.add_get("/", tell)
        return app
"""


def test_an_application_has_its_own_request_and_access_log(start_own: StartOwn) -> None:
    service = start_own("web", WISHES)
    assert service.get("/").body == b"mine"
    assert service.get(f"/{'x' * 200}").status == 400  # max_line_size
    wait_for(lambda: service.says("own access log / 200"), 30)
    assert service.total("http_requests_total", status="200") == 1


def test_wrong_handler_args_are_refused_in_words(start_own: StartOwn) -> None:
    service = start_own("web", WISHES.replace("max_line_size", "max_lime_size"), wait=False)
    wait_for(lambda: service.says("web.Application(handler_args=...)"), 30)
    assert service.says("max_lime_size")


# --- libraries that trace requests

OPENTELEMETRY = """
    from opentelemetry import trace
    from opentelemetry.instrumentation.aiohttp_server import AioHttpServerInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter

    class Print(SpanExporter):
        def export(self, spans):
            for span in spans:
                print("traced", dict(span.attributes), flush=True)

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Print()))
    trace.set_tracer_provider(provider)
    AioHttpServerInstrumentor().instrument()
"""
SENTRY = """
    import sentry_sdk
    from sentry_sdk.integrations.aiohttp import AioHttpIntegration

    def told(event, hint):
        print("traced", event["request"]["url"], flush=True)

    sentry_sdk.init(
        "http://key@127.0.0.1:9/1",
        integrations=[AioHttpIntegration()],
        traces_sample_rate=1.0,
        before_send_transaction=told,
    )
"""


@pytest.mark.parametrize(
    ("module", "setup"),
    [("opentelemetry.instrumentation.aiohttp_server", OPENTELEMETRY), ("sentry_sdk", SENTRY)],
    ids=["OpenTelemetry", "Sentry"],
)
def test_probes_and_scrapes_are_not_traced(
    start_own: StartOwn, tmp_path: Path, module: str, setup: str
) -> None:
    pytest.importorskip(module)
    with (tmp_path / "code" / PACKAGE / "settings.py").open("a") as settings:
        settings.write(textwrap.dedent(setup))  # as early as a user's code can be
    service = start_own("web", APP)
    for path in ("/livez", "/readyz", "/metrics", "/"):
        assert service.get(path, admin=True).status == 200
    assert service.get("/nowhere", admin=True).status == 404
    service.get("/say")
    wait_for(lambda: re.search("traced.*/say", service.log.read_text()), 30)
    traced = [line for line in service.log.read_text().splitlines() if line.startswith("traced")]
    assert len(traced) == 1
