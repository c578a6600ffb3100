"""An application that ran by itself, moved into the project as the documentation says."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest
from conftest import Service, free_port, wait_for
from overlay import PACKAGE, PROJECT

TEXT = (PROJECT / "docs" / "moving-in.md").read_text()
GUNICORN = "gunicorn server:app --worker-class aiohttp.GunicornWebWorker"


def block(name: str) -> str:
    [found] = re.findall(rf"^```python\n(# {re.escape(name)}\n.*?)^```", TEXT, re.M | re.S)
    return str(found)


def convert(port: int) -> bytes:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/convert/100")
        return connection.getresponse().read()
    except OSError:
        return b""
    finally:
        connection.close()


@contextmanager
def alone(folder: Path, main: str) -> Iterator[int]:
    """The application as it was; its port."""
    port = free_port()
    assert f"`{GUNICORN}`" in TEXT
    command = [sys.executable, "server.py"]
    if main == "gunicorn":
        command = [sys.executable, "-m", *GUNICORN.split(), "--bind", f"127.0.0.1:{port}"]
        command += ["--no-control-socket"]
    ending = block(f"with {main}").replace("8080", str(port))
    (folder / "server.py").write_text(f"{block('server.py')}\n\n{ending}")
    process = subprocess.Popen(command, cwd=folder)
    yield port
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("moved")
    package = folder / "code" / PACKAGE
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "src" / PACKAGE, package, ignore=ignored)
    (package / "rates.py").write_text(block("server.py"))
    (package / "app.py").write_text(block("app.py"))
    service = Service(folder, folder / "code", "web", {"WEB_CONCURRENCY": "3"})
    service.wait_until_live()
    yield service
    service.kill()


@pytest.mark.parametrize("main", ["run_app", "AppRunner", "make_handler", "gunicorn"])
def test_it_answers_as_it_did(main: str, moved: Service, tmp_path: Path) -> None:
    with alone(tmp_path, main) as port:
        answer = wait_for(lambda: convert(port))
    assert {convert(moved.port) for _ in range(30)} == {answer} == {b'{"USD": 125.0}'}


def settings(rows: str) -> set[str]:
    return set(re.findall(r"`([A-Z_]{4,})`", rows))


def test_the_settings_named_are_there() -> None:
    known = settings((PROJECT / "docs" / "settings.md").read_text())
    assert settings(TEXT) - known == set()


def test_the_recipes_named_are_there() -> None:
    headings = re.findall(r"^## (.*)$", (PROJECT / "docs" / "recipes.md").read_text(), re.M)
    places = {re.sub(r"[^a-z -]", "", h.lower()).replace(" ", "-") for h in headings}
    named = re.findall(r"recipes\.md#([a-z-]+)", TEXT)
    assert named
    assert set(named) <= places
