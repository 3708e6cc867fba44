"""What is drawn of a chapter: figures by rate and by class, distributions, and courses of runs.

`giusto bench --plots` draws a chapter of one run, `giusto report` any number of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from giusto.bench.pages import cases
from giusto.bench.pages.cases import ALL, Case, Chapter, Line, Rate
from giusto.bench.pages.intervals import Estimate, estimate
from giusto.bench.pages.measures import ATTAINMENT, BY_RATE, GAIN, Measure
from giusto.bench.results import Result
from giusto.metrics.distributions import QUANTILES, STEPS, distributions, timeline
from giusto.metrics.records import Record

# Files only: no window system is asked for.
matplotlib.use("agg")

#: Told apart with every common colour blindness: Okabe and Ito's set without its yellow, which is
#: faint on white, and Tol's wine. Marks and dashes tell lines apart without colour.
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7"),
    *("#e69f00", "#56b4e9", "#882255", "#555555"),
)
MARKS = "osD^vPX*"
DASHES = ("-", "--", ":")
FAINT = "#999999"

STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9.0,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.0,
    "text.parse_math": False,
}
DPI = 110
#: Characters in a row of a legend.
LEGEND = 120
WIDTH = 10.0

#: Axes of the distributions, in the order of `QUANTILES`, with milliseconds of their unit.
LATENCIES = (("TTFT, s", 1000.0), ("TPOT, ms", 1.0), ("E2E, s", 1000.0))

#: Spans of a timeline that are drawn as one where single spans hold few arrivals.
MERGED = 4

#: Latencies whose highest is so many times the lowest have a logarithmic axis.
LOG_FROM = 20


#: Makes a figure; called in the common style.
Draw = Callable[[], Figure]


def plot(run: Result, records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw all plots of a run into `folder`, which is made; returns the files."""
    measured = {"distributions": distributions(records), "timeline": timeline(records)}
    chapter = cases.chapters([cases.case(folder, run | measured)])[0]
    rate = chapter.rates[0]
    title = f"{chapter.lines[0].label}, {rate_name(rate)}"
    drawn: dict[str, Draw] = {
        "attainment": partial(by_class, chapter, rate, ATTAINMENT),
        "gain": partial(by_class, chapter, rate, GAIN),
        "latency": partial(latencies, chapter, rate),
        "timeline": partial(courses, chapter, rate),
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, draw in drawn.items():
        path = folder / f"{name}.png"
        path.write_bytes(png(partial(_titled, draw, title)))
        files.append(path)
    return files


def png(draw: Draw) -> bytes:
    """Draw a figure in the common style; the same figure gives the same bytes."""
    image = BytesIO()
    with matplotlib.rc_context(STYLE):
        draw().savefig(image, format="png", dpi=DPI)
    return image.getvalue()


def rate_name(rate: Rate) -> str:
    """A request rate in words."""
    if rate is None:
        return "recorded times"
    return "all at once" if math.isinf(rate) else f"{rate:g} requests/s"


def by_rate(chapter: Chapter) -> Figure:
    """Every measure of `BY_RATE` that is recorded: means over seeds, with their range.

    Lines over the rate, or bars where there is only one.
    """
    measures = [m for m in BY_RATE if any(c.value(m.key) is not None for c in chapter.cases)]
    rates = [rate for rate in chapter.rates if rate is not None and math.isfinite(rate)]
    is_bars = len(rates) < 2
    rows = math.ceil(len(measures) / 2)
    height = 0.9 + 0.25 * len(chapter.lines) if is_bars else 2.7
    figure = Figure(figsize=(WIDTH, rows * height + 0.4), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False)
    for axes, measure in zip(grid.flat, measures, strict=False):
        if is_bars:
            _bars_of_lines(axes, chapter, measure)
        else:
            _lines_over_rates(axes, chapter, rates, measure)
    for axes in grid.flat[len(measures) :]:
        axes.set_axis_off()
    if not is_bars:
        _legend(figure, grid.flat)
    return figure


def by_class(chapter: Chapter, rate: Rate, measure: Measure) -> Figure:
    """Grouped bars, a group per class and a bar per line: means over seeds, with their range."""
    lines, classes = chapter.lines_at(rate), [*chapter.classes, ALL]
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(lines)
    for index, line in enumerate(lines):
        places = np.arange(len(classes)) + (index - (len(lines) - 1) / 2) * width
        rows = [list(chapter.by_seed(line, rate, measure.key, c).values()) for c in classes]
        means, spread = _means_and_range(rows, measure.scale)
        bars = axes.bar(places, means, 0.92 * width, label=line.label, **_fill(line))
        if np.nansum(spread) > 0:
            axes.errorbar(places, means, spread, fmt="none", ecolor="black", elinewidth=0.8)
        elif len(lines) * len(classes) <= 16:
            axes.bar_label(bars, ["" if math.isnan(m) else f"{m:.0f}" for m in means], padding=1)
    axes.set_xticks(range(len(classes)), classes)
    axes.grid(visible=False, axis="x")
    axes.set(xlim=(-0.5, len(classes) - 0.5), ylim=(0, 108), ylabel=measure.title)
    _legend(figure, [axes])
    return figure


def latencies(chapter: Chapter, rate: Rate) -> Figure:
    """Cumulative shares of offered requests: a curve that ends below 1 was not answered.

    A row per class with a curve per line; a single line has a curve per class instead.
    """
    lines = chapter.lines_at(rate)
    classes = [*chapter.classes, ALL]
    # Rows of curves: whose runs, of which class, drawn as which line.
    rows = {name: [(line, name, line) for line in lines] for name in classes}
    if len(lines) == 1:
        (only,) = lines
        rows = {only.label: [(only, name, Line(name, k)) for k, name in enumerate(classes)]}
    figure = Figure(figsize=(WIDTH, 0.6 + 2.1 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), 3, squeeze=False, sharex="col", sharey=True)
    for of_row, (row_name, curves) in zip(grid, rows.items(), strict=True):
        for owner, service_class, line in curves:
            kinds = [
                recorded[service_class]
                for recorded in chapter.recorded(owner, rate, "distributions")
                if service_class in recorded
            ]
            for axes, key, (_, unit) in zip(of_row, QUANTILES, LATENCIES, strict=True):
                _curve(axes, [kind[key] for kind in kinds], unit, line)
        of_row[0].set_ylabel(f"{row_name}\nshare of offered")
    for axes, (name, _) in zip(grid[-1], LATENCIES, strict=True):
        axes.set(xlabel=name, ylim=(0, 1.03))
        _scale_latency(axes)
    _legend(figure, grid.flat)
    return figure


def courses(chapter: Chapter, rate: Rate) -> Figure:
    """A row per line: requests under way, arrivals and those in time, and output tokens.

    Of the runs at this rate the one that `timeline_cases` names.
    """
    shown = timeline_cases(chapter, rate)
    figure = Figure(figsize=(WIDTH, 0.7 + 1.7 * max(1, len(shown))), layout="constrained")
    grid = figure.subplots(max(1, len(shown)), 3, squeeze=False, sharex=True, sharey="col")
    for row, (line, case) in zip(grid, shown.items(), strict=False):
        course = case.run["timeline"]
        span, hue = course["span_s"], _hue(line)
        start = np.arange(len(course["running"])) * span
        running, waiting = np.array(course["running"]), np.array(course["waiting"])
        row[0].stackplot(start, running, waiting, colors=[hue, FAINT], lw=0)
        offered, in_time, tokens = (
            _merged(course[name]) / (span * MERGED)
            for name in ("arrivals", "attained", "output_tokens")
        )
        edges = np.arange(len(offered) + 1) * span * MERGED
        row[1].stairs(offered, edges, fill=True, color=FAINT)
        row[1].stairs(in_time, edges, fill=True, color=hue)
        row[2].stairs(tokens, edges, color=hue)
        row[0].set_ylabel(line.label, fontweight="bold")
    titles = (
        "requests running, and waiting (grey)",
        "arrivals/s in time, and not in time (grey)",
        "output tokens/s",
    )
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize="medium")
        axes.set_ylim(bottom=0)
    for axes in grid[-1]:
        axes.set_xlabel("s since the first arrival")
    return figure


def timeline_cases(chapter: Chapter, rate: Rate) -> dict[Line, Case]:
    """One run per line that has a timeline: of the lowest seed that all have, where there is one.

    Lines without a timeline at this rate are left out.
    """
    found = {
        line: {c.seed: c for c in reversed(chapter.cells[line, rate]) if "timeline" in c.run}
        for line in chapter.lines_at(rate)
    }
    found = {line: by_seed for line, by_seed in found.items() if by_seed}
    shared = set.intersection(*(set(by_seed) for by_seed in found.values())) if found else set()
    return {
        line: by_seed[min(shared or by_seed, key=seed_order)] for line, by_seed in found.items()
    }


def seed_order(seed: str | None) -> tuple[bool, float, str]:
    """Numbers first, by value."""
    text = seed or ""
    return (not text.isdecimal(), float(text) if text.isdecimal() else 0.0, text)


def _lines_over_rates(
    axes: Any, chapter: Chapter, rates: Sequence[float], measure: Measure
) -> None:
    # Side by side around their rate, so that the ranges do not hide each other.
    gap = min(b - a for a, b in pairwise(rates))
    dodge = min(0.25 * gap, 0.04 * (rates[-1] - rates[0])) / len(chapter.lines)
    for index, line in enumerate(chapter.lines):
        shift = (index - (len(chapter.lines) - 1) / 2) * dodge
        rows = [list(chapter.by_seed(line, rate, measure.key).values()) for rate in rates]
        kept = [(rate, estimate(row)) for rate, row in zip(rates, rows, strict=True) if row]
        axes.errorbar(
            [rate + shift for rate, _ in kept],
            [e.mean * measure.scale for _, e in kept],
            _spread([e for _, e in kept], measure.scale),
            label=line.label,
            marker=_of(MARKS, line),
            elinewidth=0.8,
            **_stroke(line),
        )
    axes.set(xlabel="request rate, requests/s", ylabel=measure.title)
    axes.set_ylim(bottom=0, top=103 if measure.is_share else None)


def _bars_of_lines(axes: Any, chapter: Chapter, measure: Measure) -> None:
    """A bar per line and rate; of rates there is one at most that is a number."""
    cells = [(line, rate) for rate in chapter.rates for line in chapter.lines_at(rate)]
    rows = [list(chapter.by_seed(line, rate, measure.key).values()) for line, rate in cells]
    means, spread = _means_and_range(rows, measure.scale)
    names = [
        line.label if len(chapter.rates) == 1 else f"{line.label}, {rate_name(rate)}"
        for line, rate in cells
    ]
    places = range(len(cells))
    axes.barh(places, means, 0.7, color=[_hue(line) for line, _ in cells])
    axes.errorbar(means, places, xerr=spread, fmt="none", ecolor="black", elinewidth=0.8)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(measure.title)
    axes.set_xlim(left=0, right=103 if measure.is_share else None)


def _means_and_range(rows: Sequence[Sequence[float]], scale: float) -> tuple[Any, Any]:
    """Means, NaN where there is nothing, and the distances to the lowest and the highest."""
    made = [estimate(row or [math.nan]) for row in rows]
    return np.array([e.mean * scale for e in made]), _spread(made, scale)


def _spread(made: Sequence[Estimate], scale: float) -> Any:
    """Distances from the means to the lowest and to the highest value."""
    below = [(e.mean - e.low) * scale for e in made]
    above = [(e.high - e.mean) * scale for e in made]
    return np.array([below, above])


def _curve(axes: Any, functions: Sequence[Sequence[float | None]], unit: float, line: Line) -> None:
    """The mean over runs of the share that is at most x, from quantile functions in ms."""
    kept = [[value / unit for value in f if value is not None] for f in functions if f]
    if not kept:
        return
    places = np.unique(np.concatenate(kept))
    shares = [np.searchsorted(f[1:], places, side="right") / STEPS for f in kept]
    axes.step(places, np.mean(shares, axis=0), where="post", label=line.label, **_stroke(line))


def _scale_latency(axes: Any) -> None:
    """Logarithmic where the latencies are orders of magnitude apart, in plain numbers."""
    low, high = axes.dataLim.minposx, axes.dataLim.x1
    if low * LOG_FROM < high:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if high < 1000 * low else (1,)))
        axes.xaxis.set_minor_formatter("")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _merged(counts: Sequence[float]) -> Any:
    return np.add.reduceat(counts, range(0, len(counts), MERGED)) if counts else np.array([])


def _titled(draw: Draw, title: str) -> Figure:
    figure = draw()
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium")
    return figure


def _legend(figure: Figure, grid: Any) -> None:
    """One legend above all axes, each name once, where there is something to tell apart."""
    named: dict[str, Any] = {}
    for axes in grid:
        handles, labels = axes.get_legend_handles_labels()
        for handle, label in zip(handles, labels, strict=True):
            named.setdefault(label, handle)
    if len(named) > 1:
        columns = min(len(named), max(1, LEGEND // (max(map(len, named)) + 6)))
        figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=columns)


def _of(choices: Sequence[str], line: Line) -> str:
    return choices[line.colour % len(choices)]


def _hue(line: Line) -> str:
    return _of(COLOURS, line)


def _stroke(line: Line) -> dict[str, Any]:
    dash = DASHES[line.colour // len(COLOURS) % len(DASHES)]
    return {"color": _hue(line), "linestyle": dash}


def _fill(line: Line) -> dict[str, Any]:
    return {"color": _hue(line), "hatch": "//" if line.colour >= len(COLOURS) else None}
