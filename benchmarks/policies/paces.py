"""Which deadlines are kept, by the pace they needed: seconds of their deadline per token they got.

    giusto simulate --workload tempo-mix --profile llama-3.1-8b-a100 --duration 300 --seed 11 \\
        --request-rate 16 --policy giusto --records records
    python benchmarks/policies/paces.py records/*.jsonl.gz [--warmup 60]

A machine that serves all that comes in cannot decode faster, for long, than the step in which as
many tokens come out as are asked for; who needs more than that is lost whatever the policy. The
table shows where that edge lies, and who is lost on the right side of it.
"""

from __future__ import annotations

import argparse
import gzip
import json
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

#: Milliseconds a token at which the rows begin.
EDGES = (0, 10, 20, 25, 30, 35, 40, 50, 75, 100)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path, nargs="+", help="what `--records` wrote")
    parser.add_argument("--warmup", type=float, default=60.0, help="seconds that do not count")
    given = parser.parse_args(arguments)
    for path in given.records:
        with gzip.open(path, "rt") as file:
            rows = [json.loads(line) for line in file]
        report(path.name, [row for row in rows if row["arrival_s"] >= given.warmup])


def report(title: str, rows: Sequence[dict[str, Any]]) -> None:
    timed = [r for r in rows if r["slo"]["kind"] == "deadline" and r["token_times_s"]]
    if not timed:
        raise SystemExit(f"{title} has no answered request with a deadline")
    table = Table(title=f"{title}: {len(timed)} deadlines", title_justify="left")
    for heading in ("needed, ms/token", "share", "kept", "TTFT s", "got, ms/token", "tokens"):
        table.add_column(heading, justify="right")
    parts: list[list[dict[str, Any]]] = [[] for _ in EDGES]
    for row in timed:
        needed = 1000 * row["slo"]["deadline_s"] / len(row["token_times_s"])
        parts[bisect_right(EDGES, needed) - 1].append(row)
    for low, high, part in zip(EDGES, (*EDGES[1:], None), parts, strict=True):
        if part:
            name = f"{low} to {high}" if high else f"{low} and more"
            table.add_row(name, f"{len(part) / len(timed):.1%}", *figures(part))
    Console().print(table)


def figures(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Share kept; medians of TTFT and of milliseconds between tokens; mean tokens."""
    spans = [(r["arrival_s"], r["token_times_s"], r["slo"]["deadline_s"]) for r in rows]
    kept = [times[-1] - arrival <= deadline for arrival, times, deadline in spans]
    first = median(times[0] - arrival for arrival, times, _ in spans)
    paces = [1000 * (t[-1] - t[0]) / max(1, len(t) - 1) for _, t, _ in spans]
    tokens = sum(len(times) for _, times, _ in spans) / len(rows)
    return [f"{sum(kept) / len(kept):.0%}", f"{first:.2f}", f"{median(paces):.1f}", f"{tokens:.0f}"]


if __name__ == "__main__":
    main()
