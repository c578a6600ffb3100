"""What the API says of itself, and the page to try it on."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import browse
from conftest import Service
from openapi_spec_validator import OpenAPIV31SpecValidator

Start = Callable[..., Service]
WIDTHS = (1280, 390)
BOOKS = "/typed/shelves/{shelf}/books"


@pytest.fixture
def service(start: Start) -> Service:
    return start("serve", WEB_CONCURRENCY="1", COMPUTE_CONCURRENCY="1", API_DOCS="true")


def test_what_it_says_is_valid_and_whole(service: Service) -> None:
    document = service.get("/openapi.json").json()
    OpenAPIV31SpecValidator(document).validate()
    paths = document["paths"]
    schemas = document["components"]["schemas"]

    add = paths[BOOKS]["post"]
    assert add["summary"] == "Put a book on a shelf."
    assert add["description"] == "It stands there until the process ends."
    assert [(p["name"], p["in"], p["required"]) for p in add["parameters"]] == [
        ("shelf", "path", True),
        ("notify", "query", False),
    ]
    book = {"$ref": "#/components/schemas/Book"}
    assert add["requestBody"]["content"]["application/json"]["schema"] == book
    assert add["responses"]["201"]["content"]["application/json"]["schema"] == book
    assert add["responses"]["409"]["description"] == "the shelf is full"
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for status in ("400", "409", "413", "422", "default"):
        assert add["responses"][status]["content"] == problem
    assert schemas["Book"]["description"] == "A book, as it stands on a shelf."
    assert schemas["Language"]["enum"] == ["en", "fr"]

    parameters = {p["name"]: p for p in paths[BOOKS]["get"]["parameters"]}
    assert parameters["limit"]["schema"]["maximum"] == 100
    assert parameters["limit"]["schema"]["default"] == 10
    assert parameters["tags"]["schema"]["type"] == "array"
    assert "from" in parameters
    assert paths["/typed/books/{title}"]["delete"]["responses"].keys() >= {"204", "422"}

    # a handler whose task may be refused, or find no place
    pool = paths["/typed/primes"]["get"]["responses"]
    assert pool.keys() >= {"200", "422", "500", "503", "504"}
    refused = paths["/typed/refused"]["get"]["responses"]
    assert refused["409"]["description"] == "it is not a teapot"

    # plain handlers are told too
    plain = paths["/greet/{name}"]["get"]
    assert plain["parameters"][0]["name"] == "name"
    assert "2XX" in plain["responses"]
    assert "post" in paths["/body/view"]
    assert "/docs" not in paths


def test_it_is_off_by_default(start: Start) -> None:
    service = start("web", WEB_CONCURRENCY="1")
    for path in ("/openapi.json", "/docs"):
        assert service.get(path).status == 404


def test_the_service_does_what_it_says(service: Service, tmp_path: Path) -> None:
    """schemathesis asks what the description allows, and what it does not."""
    command = ["schemathesis.cli", "run", f"{service.url}/openapi.json"]
    command += ["--include-path-regex", "^/typed", "--phases", "examples,coverage,fuzzing"]
    command += ["--max-examples", "10", "--seed", "1", "--suppress-health-check=all"]
    asked = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert asked.returncode == 0, asked.stdout + asked.stderr


def test_a_call_is_made_on_the_page(service: Service, tmp_path: Path) -> None:
    async def look() -> None:
        async with browse(f"{service.url}/docs", tmp_path) as page:
            await page.wait_for("document.querySelectorAll('.operation').length > 20")
            await page.evaluate(
                f"operation = document.getElementById('post {BOOKS}'), operation.open = true"
            )
            body = await page.evaluate("operation.querySelector('textarea').value")
            assert json.loads(body)["title"] == "Emma"
            await page.evaluate("operation.querySelector('[data-in=path]').value = '7'")
            await page.evaluate("operation.querySelector('button').click()")
            await page.wait_for("operation.querySelector('.status')?.textContent == '201 Created'")
            shown = await page.evaluate("operation.querySelector('.body').textContent")
            assert json.loads(shown)["title"] == "Emma"

            # what is wrong is shown with its place
            await page.evaluate("operation.querySelector('[data-in=path]').value = 'top'")
            await page.evaluate("operation.querySelector('button').click()")
            await page.wait_for("operation.querySelector('.status').textContent.startsWith('422')")
            assert "/path/shelf" in await page.evaluate("operation.innerText")

            for width in WIDTHS:
                for dark in (False, True):
                    await page.resize(width, 900, dark=dark)
                    assert await page.evaluate("document.documentElement.scrollWidth") <= width

    asyncio.run(look())


def test_the_page_is_small_and_asks_nobody_else(service: Service) -> None:
    page = service.get("/docs")
    assert len(page.body) < 20_000
    assert not re.search(rb"https?:|src=|@import", page.body)
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
