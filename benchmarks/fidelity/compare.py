"""Simulated beside measured: which figures, how far off, and whether that is within the bar."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from steps import Step

from giusto.metrics.summary import percentile

LOADS = ("light", "knee", "overload")
#: A run counts when the calibration loops before and after it differ by at most this share.
STEADY = 0.05
#: An unsteady run is repeated so many times.
REPEATS = 3

#: How far off medians may be, as shares; p90s; and attainment, in points.
MEDIANS = {"step time": 0.05, "TPOT": 0.10, "E2E": 0.10, "TTFT": 0.15}
P90 = 0.20
POINTS = 5.0
#: Under overload one figure has a bar and the rest is reported.
OVERLOAD = {"E2E median": 0.20}

_KEYS = {"TPOT": "tpot_ms", "E2E": "e2el_ms", "TTFT": "ttft_ms"}

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of a load: over engine runs and over simulated ones, in ms or percent.

    `bar` is the error that is allowed: a share for milliseconds, points for percentages, None for
    a figure that is only reported.
    """

    figure: str
    engine: tuple[float, ...]
    simulated: tuple[float, ...]
    bar: float | None
    is_percent: bool = False

    @property
    def error(self) -> float:
        """Of the median, against the engine's."""
        return self._distance(median(self.simulated), median(self.engine))

    @property
    def spread(self) -> float:
        """Between the engine's own runs, highest and lowest."""
        return self._distance(max(self.engine), min(self.engine))

    @property
    def is_met(self) -> bool | None:
        """Within the bar, or within the engine's own spread where that is larger."""
        return None if self.bar is None else self.error <= max(self.bar, self.spread)

    def _distance(self, a: float, b: float) -> float:
        if a == b:  # two infinities too
            return 0.0
        if self.is_percent:
            return abs(a - b)
        middle = median(self.engine)
        return abs(a - b) / middle if 0 < middle < math.inf else math.inf


def figures(result: Mapping[str, Any], steps: Sequence[Step]) -> Figures:
    """What is compared of a run: latencies over offered requests and all steps, ms; attainment, %.

    A request that was refused or failed has infinite latencies.
    """
    seconds = [step.seconds for step in steps]
    latencies = result["distributions"]["all"]
    found: Figures = {}
    for name, q in (("median", 50), ("p90", 90)):
        found[f"step time {name}"] = 1000 * (percentile(seconds, q) or 0.0)
        for measure, key in _KEYS.items():
            ms = latencies[key][q]
            found[f"{measure} {name}"] = math.inf if ms is None else ms
    for service_class, part in result["by_class"].items():
        if service_class != "all":
            found[f"attainment {service_class}"] = 100 * (part["attainment"] or 0.0)
    return found


def lines(load: str, engine: Sequence[Figures], simulated: Sequence[Figures]) -> list[Line]:
    """One line for each figure that all runs have."""
    shared = [name for name in engine[0] if all(name in run for run in (*engine, *simulated))]
    return [
        Line(
            name,
            tuple(run[name] for run in engine),
            tuple(run[name] for run in simulated),
            bar(load, name),
            is_percent=name.startswith("attainment"),
        )
        for name in shared
    ]


def bar(load: str, figure: str) -> float | None:
    """The error that a figure may have under a load; None when it is only reported."""
    if load == "overload":
        return OVERLOAD.get(figure)
    if figure.startswith("attainment"):
        return POINTS
    measure, _, which = figure.rpartition(" ")
    return P90 if which == "p90" else MEDIANS[measure]


def row(line: Line) -> list[str]:
    """A line as text."""

    def share(value: float) -> str:
        return f"{value:.1f} points" if line.is_percent else f"{value:.1%}"

    verdict = {None: "", True: "met", False: "NOT met"}[line.is_met]
    return [
        f"{line.figure}, {'%' if line.is_percent else 'ms'}",
        f"{median(line.engine):.1f}",
        f"{min(line.engine):.1f} to {max(line.engine):.1f}",
        f"{median(line.simulated):.1f}",
        share(line.error),
        "reported" if line.bar is None else share(line.bar),
        share(line.spread),
        verdict,
    ]


def is_steady(before: float, after: float) -> bool:
    """Whether the machine was as fast after a run as before it."""
    return abs(after / before - 1) <= STEADY


def steady(
    wait: Callable[[], None],
    run: Callable[[], None],
    loop: Callable[[], float],
    say: Callable[[str], None],
) -> tuple[float, float]:
    """Run between two loops, again when they differ; the loops' seconds of the run that counts.

    `wait` returns once the machine is quiet; nobody waits for that after a run, for whoever slowed
    the run's end shall slow the loop. SystemExit when the machine does not keep its speed through
    any of `1 + REPEATS` runs.
    """
    for _ in range(1 + REPEATS):
        wait()
        before = loop()
        run()
        after = loop()
        if is_steady(before, after):
            return before, after
        say(f"loop {before:.3f} s before, {after:.3f} s after: this run does not count")
    raise SystemExit("the machine does not keep its speed; start again later, it goes on from here")
