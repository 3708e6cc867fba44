"""A result as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from giusto.bench.results import Result

#: Lag of the client, in milliseconds at the 99th percentile, beyond which it says so.
LAG_WARNING_MS = 100.0


def tables(run: Result) -> RenderableType:
    """Attainment and gain by class, latencies by class, and the run as a whole."""
    parts: list[RenderableType] = [_promises(run), _latencies(run), _whole(run)]
    parts += [Text(line, style="yellow") for line in _warnings(run)]
    return Group(*parts)


def _promises(run: Result) -> Table:
    return _by_class(
        run,
        "Kept promises",
        {
            "offered": lambda row: _count(row["offered"]),
            "met": lambda row: _percent(row["attainment"]),
            "strict": lambda row: _percent(row["strict_attainment"]),
            "failed": lambda row: _count(row["failed"]),
            "SLO req/s": lambda row: _number(row["slo_request_goodput"], 2),
            "SLO tok/s": lambda row: _number(row["slo_token_goodput"], 1),
            "gain": lambda row: _percent(row["service_gain_ratio"]),
            "mean": lambda row: _percent(row["service_gain_mean_normalised"]),
        },
    )


def _latencies(run: Result) -> Table:
    def pair(name: str) -> Callable[[Result], str]:
        return lambda row: f"{row[f'median_{name}_ms']:,.0f} / {row[f'p99_{name}_ms']:,.0f}"

    return _by_class(
        run,
        "Latency, ms: median / p99 of answers; p95 over everything offered",
        {
            "TTFT": pair("ttft"),
            "TPOT": pair("tpot"),
            "ITL": pair("itl"),
            "E2E": pair("e2el"),
            "TTFT p95": lambda row: _milliseconds(row, "p95_ttft_offered_ms"),
            "E2E p95": lambda row: _milliseconds(row, "p95_e2el_offered_ms"),
        },
    )


def _whole(run: Result) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    rows = {
        "policy": run["policy"] or "unknown",
        "duration": f"{run['duration']:,.1f} s",
        "answered, failed": f"{run['completed']:,}, {run['failed']:,}",
        "requests, output tokens per second": (
            f"{run['request_throughput']:,.2f}, {run['output_throughput']:,.1f}"
        ),
        "attained without best effort": _percent(run["attainment_without_best_effort"]),
        "service gain": (
            f"{run['service_gain']:,.0f} of {run['service_gain_possible']:,.0f}"
            f" ({_percent(run['service_gain_estimated_share'])} of it estimated)"
        ),
    }
    if "request_goodput" in run:
        rows["request goodput (--goodput)"] = f"{run['request_goodput']:,.2f} /s"
    if run["cancelled"]:
        rows["cancelled in time, not counted"] = _count(run["cancelled"])
    if run["best_effort_longest_wait_s"] is not None:
        rows["longest wait of best effort"] = f"{run['best_effort_longest_wait_s']:,.1f} s"
    for name, text in rows.items():
        table.add_row(name, str(text))
    return table


def _warnings(run: Result) -> Iterable[str]:
    if run["is_interrupted"]:
        yield "Interrupted: what was under way counts as cancelled unless it was late already."
    if run["client_lag_p99_ms"] > LAG_WARNING_MS:
        yield (
            f"The client itself was late: requests left {run['client_lag_p99_ms']:,.0f} ms after "
            "their time (p99). Figures are those of an overloaded client."
        )
    for message, count in run["errors"].items():
        yield f"{count} × {message}"


def _by_class(run: Result, title: str, columns: dict[str, Callable[[Result], str]]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("class", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right")
    for name, row in run["by_class"].items():
        if name == "all":
            table.add_section()
        table.add_row(name, *(show(row) for show in columns.values()))
    return table


def _milliseconds(row: Result, key: str) -> str:
    value = row[key]
    if value is not None:
        return f"{value:,.0f}"
    return "∞" if row["offered"] else "-"


def _percent(share: Any) -> str:
    return "-" if share is None else f"{share:.1%}"


def _number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}"


def _count(value: int) -> str:
    return f"{value:,}"
