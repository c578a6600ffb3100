"""`make load` and `make tune` of a generated project, and what the latter makes of its curves."""

import http.server
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import ROOT, run

sys.path.append(str(ROOT / "{{cookiecutter.project_slug}}"))
if TYPE_CHECKING:
    advice: Any
    openapi: Any
else:
    from tools import advice, openapi


def points(loop: str, *throughputs: float, **values: float) -> list[Any]:
    """A point for each number of workers, all on CPUs of their own."""
    return [
        advice.Point(
            loop,
            workers,
            **{
                "throughput": throughput,
                "least": throughput,
                "most": throughput,
                "p50": 0.004,
                "p99": 0.010 + workers / 1000,
                "web_cpu": float(workers),
                "compute_cpu": 0.0,
                "memory": 60e6 + workers * 15e6,
                "lag": 0.002,
                "fairness": 1.05,
                "errors": 0.0,
                "generator": 0.3,
                "machine": 0.6,
                **values,
            },
        )
        for workers, throughput in enumerate(throughputs, 1)
    ]


def test_the_fewest_workers_that_are_enough() -> None:
    curve = points("uvloop", 10_000, 19_000, 27_000, 27_500)
    found = advice.advise(curve, 4)
    assert found.title == "3 workers on uvloop"
    assert "The fourth adds 2 % of throughput and 8 % of p99." in found.reason
    deployment = found.lines["k8s/deployment.yaml, container web"]
    assert 'cpu: "3"' in deployment
    assert "cpu: 3000m" in deployment
    assert found.lines["the environment, where no CPU limit says it"] == "WEB_CONCURRENCY=3"
    assert "k8s/deployment.yaml, container compute" not in found.lines


def test_the_end_of_the_curve_is_not_its_top() -> None:
    found = advice.advise(points("uvloop", 10_000, 20_000), 8)
    assert found.title == "At least 2 workers on uvloop"
    assert "More than 2 were not tried" in found.reason


@pytest.mark.parametrize(("asyncio", "loop"), [(9_900, "uvloop"), (12_000, "asyncio")])
def test_the_loop_that_is_faster_but_not_for_a_tie(asyncio: float, loop: str) -> None:
    curves = points("uvloop", 10_000, 10_100) + points("asyncio", asyncio, asyncio)
    found = advice.advise(curves, 4)
    assert found.title == f"1 worker on {loop}"
    assert ("as fast" in found.reason) == (loop == "uvloop")


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"generator": 0.9}, "the load generator was at its limit"),
        ({"errors": 0.02}, "2% of the answers were not those expected"),
        ({"machine": 0.99, "web_cpu": 0.7}, "the machine had no CPU left"),
        ({"throughput": 0.0}, "nothing was answered"),
    ],
)
def test_nothing_is_claimed_of_what_was_not_measured(values: dict[str, float], why: str) -> None:
    (sound,) = points("uvloop", 10_000)
    (_, doubted) = points("uvloop", 10_000, 20_000, **values)
    found = advice.advise([doubted], 4)
    assert found.point is None
    assert not found.lines
    assert why in found.reason
    found = advice.advise([sound, doubted], 4)
    assert found.title == "At least 1 worker on uvloop"
    assert "Nothing is claimed about 2" in found.reason
    assert why in found.reason


def test_a_worker_that_has_all_it_can_use_is_sound_on_a_full_machine() -> None:
    assert not advice.doubt(*points("uvloop", 10_000, machine=1.0), 2)
    (point,) = points("uvloop", 10_000, machine=1.0, web_cpu=0.45)
    assert not advice.doubt(point, 0.5), "it used the half CPU that it was given"


def test_idle_workers_are_told() -> None:
    found = advice.advise(points("uvloop", 900, 900, web_cpu=0.1, compute_cpu=1.2), 4)
    assert "busy for 10% of the time only" in found.reason
    assert "cpu: 1200m" in found.lines["k8s/deployment.yaml, container compute"]


DOCUMENT = {
    "paths": {
        "/shelves/{shelf}": {
            "parameters": [{"$ref": "#/components/parameters/shelf"}],
            "put": {
                "parameters": [
                    {"in": "query", "name": "by", "required": True, "schema": {"enum": ["a b"]}}
                ],
                "requestBody": {
                    "content": {
                        "application/json": {"schema": {"$ref": "#/components/schemas/Book"}}
                    }
                },
                "responses": {"200": {}, "404": {}},
            },
        }
    },
    "components": {
        "parameters": {
            "shelf": {
                "in": "path",
                "name": "shelf",
                "required": True,
                "schema": {"type": "string", "minLength": 3},
            }
        },
        "schemas": {
            "Book": {
                "type": "object",
                "required": ["title", "pages", "next", "tags", "lent"],
                "properties": {
                    "title": {"type": "string", "examples": ["Middlemarch"]},
                    "pages": {"type": "integer", "exclusiveMinimum": 0},
                    "next": {"anyOf": [{"type": "null"}, {"$ref": "#/components/schemas/Book"}]},
                    "tags": {"type": "array", "minItems": 1, "items": {"type": "string"}},
                    "lent": {"type": "boolean"},
                    "note": {"type": "string"},
                },
            }
        },
    },
}
BOOK = {"title": "Middlemarch", "pages": 1, "next": None, "tags": ["x"], "lent": True}


def test_a_schema_that_names_itself_comes_to_an_end() -> None:
    tree = {"type": "object", "required": ["in"], "properties": {"in": {"$ref": "#/tree"}}}
    assert json.dumps(openapi.example({"tree": tree}, tree)).count("in") <= openapi.DEEPEST + 1


Asked = list[tuple[str, str, Any]]


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, Asked]]:
    """Another service, that describes itself, and what it was asked."""
    asked: Asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append((self.command, self.path, json.loads(body or "null")))
            found = self.path == "/openapi.json"
            text = json.dumps(DOCUMENT).encode() if found else b"{}"
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = answer  # noqa: N815

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


@pytest.mark.timeout(600)
def test_load(installed: Callable[..., Path], elsewhere: tuple[str, Asked]) -> None:
    project = installed()
    said = run("make", "load", "USERS=5", "SECONDS=3", cwd=project)
    assert re.search(r"\d of 3 s: \d users, ", said), "it shows that it goes on"
    assert "/greet/{name}" in said
    assert "0(0.00%)" in said
    report = (project / "load-report.html").read_text()
    assert "/greet/{name}" in report
    assert '"Typed"' in report, "its own /openapi.json was not asked"

    with pytest.raises(AssertionError, match=r"192\.0\.2\.1 is not this machine") as refused:
        run("make", "load", "URL=http://192.0.2.1", cwd=project)
    assert "make load URL=http://192.0.2.1 HOST_AGAIN=192.0.2.1" in str(refused.value)

    url, asked = elsewhere
    with pytest.raises(AssertionError, match="Some requests failed") as failed:
        run("make", "load", f"URL={url}", "USERS=4", "SECONDS=3", cwd=project)
    assert ("PUT", "/shelves/xxx?by=a+b", BOOK) in asked
    assert re.search(r"PUT +/shelves/{shelf} +\d+ +0\(0.00%\)", str(failed.value)), (
        "a status that the document names is no failure"
    )


@pytest.mark.timeout(600)
def test_tune(installed: Callable[..., Path]) -> None:
    project = installed()
    said = run("make", "tune", "SECONDS=30", "WORKERS=1", cwd=project)
    assert "1 on uvloop" in said
    assert "Report: " in said
    page = (project / "tune-report.html").read_text()
    assert page.count("<svg") == 6
    assert "GET /greet/" in page
    assert "1 worker on" in page or "No recommendation" in page  # on a busy machine
    assert (project / "tune-report.png").read_bytes().startswith(b"\x89PNG")
    assert not run("git", "status", "--short", cwd=project)
