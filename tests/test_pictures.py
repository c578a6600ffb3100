"""The pictures of README come from a real run, and README shows those that there are."""

import re
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from conftest import ROOT, run, unavailable
from test_answers import DEFAULT

PICTURES = {"docs-1280.png", "docs-390.png", "live-1280.png", "live-390.png"}
DRAWINGS = {"processes.svg", "session.svg"}


def test_are_made_from_a_real_run(equipped: Callable[..., Path], tmp_path: Path) -> None:
    if not (shutil.which("chromium") or shutil.which("google-chrome")):
        unavailable("chromium is not installed")
    for port in (8080, 8081):  # which the session shows as README has them
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                unavailable(f"port {port} is taken")
    run(sys.executable, "scripts/pictures.py", equipped(**DEFAULT), tmp_path, cwd=ROOT)
    assert {file.name for file in tmp_path.iterdir()} == PICTURES | DRAWINGS
    session, processes = (
        "".join(ElementTree.parse(tmp_path / name).getroot().itertext()).replace("\xa0", " ")
        for name in ("session.svg", "processes.svg")
    )
    assert re.search(r'http_requests_total\{method="GET",route="/",status="200"\} 6\.0', session)
    assert 'worker_exits_total{detail="SIGKILL",reason="killed"} 1.0' in session
    assert processes.count("web worker") == 3
    assert processes.count("compute worker") == 2
    for name in PICTURES:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_readme_shows_all_of_them() -> None:
    shown = set(re.findall(r"\(docs/pictures/(\S+)\)", (ROOT / "README.md").read_text()))
    there = {file.name for file in (ROOT / "docs" / "pictures").iterdir()}
    assert shown == there == PICTURES | DRAWINGS
