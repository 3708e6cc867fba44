"""A run as PNG files: attainment and gain by class, distributions, and the course of the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from giusto.bench.results import Result
from giusto.core.slo import is_attained
from giusto.metrics.records import Record

# Files only: no window system is asked for.
matplotlib.use("agg")

#: Buckets of the timeline.
SPANS = 30


def plot(run: Result, records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw all plots of a run into `folder`, which is made; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{run['policy'] or run['model_id']}, {run['request_rate']} requests/s"
    drawn = {
        "attainment": _bars(run, "attainment", "Attainment over offered", title),
        "gain": _bars(run, "service_gain_ratio", "Service gain, earned / possible", title),
        "latency": _distributions(records, title),
        "timeline": _timeline(records, title),
    }
    files = []
    for name, figure in drawn.items():
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=120)
        files.append(path)
    return files


def _bars(run: Result, key: str, label: str, title: str) -> Figure:
    rows = {name: row[key] for name, row in run["by_class"].items() if row[key] is not None}
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    bars = axes.bar(list(rows), list(rows.values()))
    axes.bar_label(bars, fmt=lambda share: f"{share:.0%}")
    axes.set(ylim=(0, 1.1), ylabel=label, title=title)
    return figure


def _distributions(records: Sequence[Record], title: str) -> Figure:
    """Cumulative shares over offered requests: a curve that ends below 1 was not answered."""
    measures: dict[str, Callable[[Record], float]] = {
        "TTFT": lambda record: record.delivery.ttft,
        "TPOT": lambda record: record.delivery.tpot if record.is_answered else math.inf,
        "E2E": lambda record: record.delivery.e2e,
    }
    figure = Figure(figsize=(12, 4), layout="constrained")
    offered = [record for record in records if not record.is_cancelled]
    for axes, (name, measure) in zip(figure.subplots(1, 3), measures.items(), strict=True):
        for service_class in _classes(records):
            values = sorted(measure(r) for r in offered if r.service_class == service_class)
            finite = [value for value in values if math.isfinite(value)]
            shares = [(k + 1) / len(values) for k in range(len(finite))]
            axes.step(finite, shares, where="post", label=service_class)
        axes.set(xlabel=f"{name}, s", ylabel="share of offered", ylim=(0, 1.02), title=title)
        axes.locator_params(axis="x", nbins=5)
        _legend(axes)
    return figure


def _timeline(records: Sequence[Record], title: str) -> Figure:
    """Requests under way, and the share of those that arrived in a span which were in time."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    start = min((record.arrival for record in records), default=0.0)
    end = max((record.closed or record.arrival for record in records), default=1.0)
    span = (end - start) / SPANS or 1.0
    edges = [start + k * span for k in range(SPANS)]
    for service_class in _classes(records):
        mine = [record for record in records if record.service_class == service_class]
        above.plot(edges, [_under_way(mine, edge) for edge in edges], label=service_class)
        shares = [_share(mine, edge, edge + span) for edge in edges]
        below.plot(edges, shares, marker="o", markersize=3, label=service_class)
    above.set(ylabel="requests under way", title=title)
    below.set(ylabel="in time, by arrival", xlabel="s since the start", ylim=(0, 1.05))
    _legend(above)
    return figure


def _legend(axes: Any) -> None:
    """A legend where there is something to name; matplotlib warns of an empty one."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend()


def _under_way(records: Sequence[Record], now: float) -> int:
    return sum(r.arrival <= now and (r.closed is None or now < r.closed) for r in records)


def _share(records: Sequence[Record], since: float, until: float) -> Any:
    mine = [r for r in records if since <= r.arrival < until and not r.is_cancelled]
    met = sum(is_attained(r.slo, r.delivery, r.origin) for r in mine)
    return met / len(mine) if mine else math.nan


def _classes(records: Sequence[Record]) -> list[str]:
    return sorted({record.service_class for record in records})
