"""The dashboards as far as they can be checked without Grafana: nothing overlaps, all has units."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_answers import RICHEST

WIDTH = 24


@pytest.mark.parametrize("name", ["service", "jobs"])
def test_panels_are_laid_out(bake: Callable[..., Path], name: str) -> None:
    file = bake(**RICHEST) / "k8s" / "monitoring" / "dashboards" / f"{name}.json"
    panels: list[dict[str, Any]] = json.loads(file.read_text())["panels"]
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        at, title = panel["gridPos"], panel["title"]
        assert at["x"] + at["w"] <= WIDTH, f"{title} is wider than the page"
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in taken, f"{title} lies over {taken[x, y]}"
                taken[x, y] = title
        if panel["type"] != "row":
            assert panel["fieldConfig"]["defaults"]["unit"], f"{title} has no unit"
            assert panel["targets"], f"{title} asks nothing"
    lowest = max(y for _, y in taken)
    assert {y for _, y in taken} == set(range(lowest + 1)), "there is a gap"
    identities = [panel["id"] for panel in panels if "id" in panel]
    assert len(identities) == len(set(identities))
