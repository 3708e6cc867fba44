"""Runs of several policies, rates and seeds as one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Result = dict[str, Any]

Read = Callable[[Result], float | None]

#: Column: how a run's figure is read; means over the seeds are shown.
COLUMNS: dict[str, Read] = {
    "kept": lambda run: run["attainment"],
    "gain": lambda run: run["service_gain_ratio"],
    "kept/s": lambda run: run["slo_request_goodput"],
    "TTFT p95": lambda run: _seconds(run["p95_ttft_offered_ms"]),
    "TPOT p50": lambda run: _seconds(run["median_tpot_ms"]),
    "E2E p95": lambda run: _seconds(run["p95_e2el_offered_ms"]),
}
_SHARES = ("kept", "gain")


def policies_table(runs: Sequence[Result]) -> RenderableType:
    """A row per policy and rate, means over the seeds; a second table has the classes."""
    first = runs[0]
    title = f"{first['workload']} on {first['profile']}"
    if first["replicas"] > 1:
        title += f", {first['replicas']} replicas behind {first['router']}"
    # Titles stand above their tables, which would break them at their own width.
    parts: list[RenderableType] = [Text(f"{title}; times in seconds"), _table(runs, COLUMNS)]
    classes = dict.fromkeys(name for run in runs for name in run["by_class"] if name != "all")
    if len(classes) > 1:
        kept = {name: partial(_kept, name) for name in classes}
        parts += [Text("Kept promises by class"), _table(runs, kept)]
    seeds = len({run["seed"] for run in runs})
    if seeds > 1:
        parts.append(Text(f"Means over {seeds} seeds; ± is half the span between them."))
    return Group(*parts)


def _table(runs: Sequence[Result], columns: Mapping[str, Read]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("policy", no_wrap=True)
    table.add_column("rate", justify="right", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    cells: dict[tuple[str, float | None], list[Result]] = {}
    for run in runs:
        cells.setdefault((run["policy"], run["request_rate"]), []).append(run)
    last = None
    for (policy, rate), rows in sorted(cells.items(), key=lambda cell: cell[0][1] or 0.0):
        if last is not None and rate != last:
            table.add_section()
        last = rate
        shown = (
            _shown([read(row) for row in rows], is_share=columns is not COLUMNS or name in _SHARES)
            for name, read in columns.items()
        )
        table.add_row(_label(policy), "own" if rate is None else f"{rate:g}", *shown)
    return table


def _label(policy: str) -> str:
    """A policy from a file goes by the file's name."""
    return Path(policy).stem if policy.endswith(".py") else policy


def _kept(name: str, run: Result) -> float | None:
    attainment: float | None = run["by_class"].get(name, {}).get("attainment")
    return attainment


def _shown(values: Sequence[float | None], *, is_share: bool) -> str:
    known = [value for value in values if value is not None]
    if not known or (len(known) < len(values) and not is_share):
        return "-" if is_share else "∞"
    scale = 100 if is_share else 1
    digits = 1 if is_share else 3 if max(known) < 1 else 2 if max(known) < 10 else 0
    text = f"{scale * mean(known):,.{digits}f}"
    if is_share and len(known) > 1:
        text += f" ±{scale * (max(known) - min(known)) / 2:.{digits}f}"
    return text + ("%" if is_share else "")


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
