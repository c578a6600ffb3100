"""The report of `make tune`: curves, the recommendation and its reason, as HTML and as PNG."""

import html
import io
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .advice import Advice, Point, doubt

COLOURS = {"uvloop": "#1f5fd1", "asyncio": "#d1691f"}
SOFT = "#5c6670"


@dataclass(frozen=True)
class Curve:
    title: str
    hint: str
    value: Callable[[Point], float]
    second: Callable[[Point], float] | None = None  # drawn dotted


CURVES = [
    Curve("Requests a second", "more is better", lambda p: p.throughput),
    Curve("Latency in ms", "line: p99, dots: p50", lambda p: p.p99 * 1e3, lambda p: p.p50 * 1e3),
    Curve("CPU a request in µs", "less is better; all processes", lambda p: p.cost * 1e6),
    Curve("Memory in MiB", "all processes", lambda p: p.memory / 2**20),
    Curve("Event loop late by ms", "the longest in a run", lambda p: p.lag * 1e3),
    Curve("Busiest worker's share", "1 is even", lambda p: p.fairness),
]


def draw(axes: Axes, curve: Curve, points: Sequence[Point], advice: Advice, cpus: float) -> None:
    """Filled marks are results; hollow ones, on thin lines, say nothing about the service."""
    for loop, colour in COLOURS.items():
        mine = sorted((p for p in points if p.loop == loop), key=lambda p: p.workers)
        if not mine:
            continue
        sound = [p for p in mine if not doubt(p, cpus)]
        values = [curve.value, *([curve.second] if curve.second else [])]
        for value, style in zip(values, ("-", ":"), strict=False):
            at = [p.workers for p in mine]
            axes.plot(at, [value(p) for p in mine], style, color=colour, alpha=0.35, lw=1.2)
            axes.plot(at, [value(p) for p in mine], "o", color=colour, mfc="white", ms=5)
            at = [p.workers for p in sound]
            axes.plot(at, [value(p) for p in sound], style, color=colour, lw=2)
            axes.plot(at, [value(p) for p in sound], "o", color=colour, ms=5)
        if curve is CURVES[0]:
            for p in mine:
                axes.plot([p.workers] * 2, [p.least, p.most], color=colour, alpha=0.5, lw=3)
    if advice.point is not None:
        at_point = ([advice.point.workers], [curve.value(advice.point)])
        axes.plot(*at_point, "o", ms=14, mfc="none", mec="#1a7f4b", mew=2, zorder=5)
    axes.set_title(curve.title, loc="left", fontsize=11, fontweight="bold", pad=20)
    axes.text(0, 1.04, curve.hint, transform=axes.transAxes, color=SOFT, fontsize=9)
    axes.set_xlabel("workers", color=SOFT, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.08)
    axes.margins(x=0.12)
    axes.grid(axis="y", color="#dfe3e8", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9, labelcolor=SOFT)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.yaxis.set_major_formatter(
        lambda value, _: f"{value:,.0f}" if value >= 100 else f"{value:.4g}"
    )


def svg(curve: Curve, points: Sequence[Point], advice: Advice, cpus: float) -> str:
    figure, axes = pyplot.subplots(figsize=(4.2, 2.9), layout="constrained")
    draw(axes, curve, points, advice, cpus)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    drawn = text.getvalue()
    drawn = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%"', drawn, count=1)
    return drawn[drawn.index("<svg") :]


def png(path: Path, points: Sequence[Point], advice: Advice, cpus: float) -> None:
    figure, grid = pyplot.subplots(2, 3, figsize=(12.8, 7.4), layout="constrained")
    for curve, axes in zip(CURVES, grid.flat, strict=True):
        draw(axes, curve, points, advice, cpus)
    figure.suptitle(f"{advice.title}\n", fontsize=15, fontweight="bold", ha="left", x=0.01)
    figure.text(0.01, 0.945, textwrap.shorten(advice.reason, 150), color=SOFT, fontsize=10)
    handles = [
        pyplot.Line2D([], [], color=colour, marker="o", label=loop)
        for loop, colour in COLOURS.items()
    ]
    figure.legend(handles=handles, loc="upper right", ncols=2, frameon=False)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def table(points: Sequence[Point], advice: Advice, cpus: float) -> str:
    heads = [
        "loop",
        "workers",
        "requests/s",
        "least to most",
        "p50 ms",
        "p99 ms",
        "CPUs used",
        "µs/request",
        "MiB",
        "late ms",
        "share",
        "generator",
        "",
    ]
    rows = []
    for p in sorted(points, key=lambda p: (p.loop != "uvloop", p.workers)):
        why = doubt(p, cpus)
        cells = [p.loop, p.workers, f"{p.throughput:,.0f}", f"{p.least:,.0f} to {p.most:,.0f}"]
        cells += [f"{p.p50 * 1e3:.1f}", f"{p.p99 * 1e3:.1f}", f"{p.cpu:.2f}"]
        cells += [f"{p.cost * 1e6:.0f}", f"{p.memory / 2**20:.0f}", f"{p.lag * 1e3:.0f}"]
        cells += [f"{p.fairness:.2f}", f"{p.generator:.0%}"]
        kind = "chosen" if p == advice.point else "doubted" if why else ""
        body = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr class="{kind}">{body}<td class="why">{html.escape(why)}</td></tr>')
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def write(
    folder: Path, points: Sequence[Point], advice: Advice, cpus: float, conditions: Sequence[str]
) -> None:
    """tune-report.html, which needs nothing beside it, and tune-report.png."""
    curves = "".join(
        f'<div class="card">{svg(curve, points, advice, cpus)}</div>' for curve in CURVES
    )
    blocks = "".join(
        f"<div><b>{html.escape(where)}</b><pre>{html.escape(what)}</pre></div>"
        for where, what in advice.lines.items()
    )
    keys = "".join(
        f'<span><i style="color:{colour}"></i> {loop}</span>' for loop, colour in COLOURS.items()
    )
    listed = "".join(f"<li>{html.escape(line)}</li>" for line in conditions)
    page = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    text = page.substitute(
        title=html.escape(advice.title),
        reason=html.escape(advice.reason),
        kind="" if advice.point else "none",
        lines=blocks,
        hidden="" if blocks else "hidden",
        keys=keys,
        curves=curves,
        table=table(points, advice, cpus),
        conditions=listed,
    )
    (folder / "tune-report.html").write_text(text, encoding="utf-8")
    png(folder / "tune-report.png", points, advice, cpus)
