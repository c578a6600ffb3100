"""Writes docs/performance.md and its plot from what peers.py and growth.py measured."""

import json
import re
import sys
from itertools import combinations
from math import comb
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

matplotlib.rcParams["svg.hashsalt"] = "the same picture from the same figures"
TIE = 0.05
WIDEST = 4.3  # what is beyond is cut off in the plot
OURS = "ours full"
NAMES = {
    "ours": "this template",
    "aiohttp": "aiohttp / gunicorn",
    "starlette": "Starlette / uvicorn",
    "fastapi": "FastAPI / uvicorn",
    "litestar": "Litestar / granian",
    "blacksheep": "BlackSheep / granian",
    "sanic": "Sanic",
    "robyn": "Robyn",
    "flask": "Flask / gunicorn gthread",
}
LEVELS = {
    "bare": "bare",
    "metrics": "metrics",
    "full": "metrics, log, id: as documented",
    "tuned": "metrics, log, id: tuned by hand",
}
COLOURS = {"bare": "#b9c2cf", "metrics": "#8aa6d6", "full": "#d1691f", "tuned": "#1f5fd1"}
COST, RATIOS, THROUGHPUT, P50, P99, START, PSS = range(7)


def name(subject: str) -> tuple[str, str]:
    stack, level = subject.split()
    return NAMES[stack], "everything on" if stack == "ours" else LEVELS[level]


def ratios(rounds: list[Any], subject: str) -> list[float]:
    """Of the CPU time to that of ours in the turn before."""
    return [ratio for one in rounds if subject in one for ratio in one[subject][RATIOS]]


def interval(found: list[float]) -> tuple[float, float]:
    """Where the median is with 95 % certainty, by the order of what was measured."""
    least, number = 0, len(found)
    while sum(comb(number, k) for k in range(least + 1)) / 2**number <= 0.025:
        least += 1
    place = max(least - 1, 0)
    ordered = sorted(found)
    return ordered[place], ordered[-1 - place]


def verdict(found: list[float]) -> str:
    """Whether a request costs more than one of ours, or cannot be told apart."""
    middle, (low, high) = median(found), interval(found)
    if abs(middle - 1) < TIE or low < 1 < high:
        return f"{middle:.2f}, a tie"
    return f"{middle:.2f}"


def middle(rounds: list[Any], subject: str, value: int) -> float:
    return median(one[subject][value] for one in rounds if subject in one)


def table(rounds: list[Any]) -> str:
    rows = [
        "| stack | level | CPU a request, µs | beside ours | range | requests/s | p50 / p99 at"
        " 1,000/s, ms | first answer, s | memory, MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for subject in sorted(rounds[0], key=lambda s: median(ratios(rounds, s))):
        found = ratios(rounds, subject)
        stack, level = name(subject)
        ours = subject == OURS
        cells = [f"**{stack}**" if ours else stack, level]
        cells += [f"{middle(rounds, subject, COST):.0f}", verdict(found)]
        cells += ["{:.2f} to {:.2f}".format(*interval(found))]
        cells += [f"{middle(rounds, subject, THROUGHPUT):,.0f}"]
        cells += [f"{middle(rounds, subject, P50):.1f} / {middle(rounds, subject, P99):.1f}"]
        cells += [f"{middle(rounds, subject, START):.2f}", f"{middle(rounds, subject, PSS):.0f}"]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def order(rounds: list[Any]) -> str:
    """How many pairs can be told apart, and stand in one order in every round."""
    pairs = list(combinations([subject for subject in rounds[0] if subject != OURS], 2))
    apart = same = 0
    for pair in pairs:
        (low, high), (lowest, highest) = (interval(ratios(rounds, subject)) for subject in pair)
        if high < lowest or highest < low:
            apart += 1
            one, other = ([median(r[subject][RATIOS]) for r in rounds] for subject in pair)
            same += len({a < b for a, b in zip(one, other, strict=True)}) == 1
    return (
        f"Of {len(pairs)} pairs of rows {apart} can be told apart, and {same} of these stand in"
        f" that order in each of {len(rounds)} rounds; the others are ties."
    )


def plot(rounds: list[Any], path: Path) -> None:
    subjects = sorted(rounds[0], key=lambda s: -median(ratios(rounds, s)))
    figure, axes = pyplot.subplots(figsize=(9, 0.32 * len(subjects) + 1.2), layout="constrained")
    for at, subject in enumerate(subjects):
        found = ratios(rounds, subject)
        level = subject.split()[1]
        colour = "#1a7f4b" if subject == OURS else COLOURS[level]
        axes.barh(at, median(found), color=colour, height=0.7)
        low, high = interval(found)
        axes.plot([low, high], [at, at], color="#1b1f24", lw=1.2)
        end = min(high, WIDEST) + 0.04
        axes.text(end, at, f"{median(found):.2f}", va="center", fontsize=9)
    labels = [f"{stack}: {level}" for stack, level in map(name, subjects)]
    axes.set_yticks(range(len(subjects)), labels, fontsize=9)
    for label, subject in zip(axes.get_yticklabels(), subjects, strict=True):
        label.set_fontweight("bold" if subject == OURS else "normal")
    axes.axvline(1, color="#1a7f4b", lw=1, ls=":")
    axes.set_title(
        "CPU a request beside this template with everything on (line: where the median is)",
        fontsize=10,
        loc="right",
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.margins(y=0.01)
    axes.set_xlim(0, WIDEST + 0.4)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def targets(rounds: list[Any]) -> str:
    """The goals, and where they stand."""
    tuned = [s for s in rounds[0] if s.endswith("tuned")]
    best = min(tuned, key=lambda s: median(ratios(rounds, s)))
    checks = [
        ("bare aiohttp under gunicorn", "aiohttp bare", 1.10),
        (f"the best peer tuned by hand ({name(best)[0]})", best, 1.05),
        ("Starlette as documented", "starlette full", 0.40),
        ("FastAPI as documented", "fastapi full", 0.30),
    ]
    rows = ["| ours beside | measured | range | goal | |", "|---|---|---|---|---|"]
    for words, subject, goal in checks:
        found = [1 / ratio for ratio in ratios(rounds, subject)]
        low, high = interval(found)
        reached = "reached" if high <= goal else "missed" if low > goal else "open"
        rows.append(
            f"| {words} | {median(found):.2f} | {low:.2f} to {high:.2f}"
            f" | at most {goal:.2f} | {reached} |"
        )
    return "\n".join(rows)


def write(kept: Path, docs: Path) -> None:
    found = json.loads(kept.read_text())
    rounds = found["rounds"]
    turns = [len(ratios(rounds, subject)) for subject in rounds[0]]
    plot(rounds, docs / "performance.svg")
    named = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    text = (Path(__file__).with_name("performance.md")).read_text()
    values = {
        "machine": found["machine"],
        "versions": named,
        "turns": f"{min(turns)} to {max(turns)}" if len(set(turns)) > 1 else str(turns[0]),
        "targets": targets(rounds),
        "table": table(rounds),
        "order": order(rounds),
        "breakdown": measured(kept.with_name("breakdown.json")),
        "growth": measured(kept.with_name("growth.json")),
    }
    page = re.sub(r"\[\[(\w+)\]\]", lambda match: values[match[1]], text)
    (docs / "performance.md").write_text(page)


def measured(kept: Path) -> str:
    if not kept.exists():
        return f"Not measured yet: `make bench NAME={kept.stem}`."
    text: str = json.loads(kept.read_text())["text"]
    return text


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
