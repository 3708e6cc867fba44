"""From timed steps to a model of step times, with how far off it is and how much steps vary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median

from giusto.core.latency import BatchShape, LatencyModel, TableLatency
from giusto.profiles.profile import Residual

#: Tokens at which the table of step times may bend.
KNOTS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True, slots=True)
class Timing:
    """The seconds that one step took, each time it was run."""

    kind: str
    shape: BatchShape
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)


def fit_latency(timings: Sequence[Timing]) -> TableLatency:
    """Fit a table of tokens, and terms beside it, to the medians.

    Raises ValueError without timings.
    """
    most = max((timing.shape.num_tokens for timing in timings), default=0)
    knots = [knot for knot in KNOTS if knot <= most] or KNOTS[:1]
    return TableLatency.fit(((timing.shape, timing.median) for timing in timings), knots)


def residuals(model: LatencyModel, timings: Sequence[Timing]) -> dict[str, Residual]:
    """How far the model is off the medians, per kind of step."""
    found = {}
    for kind, group in groupby(sorted(timings, key=lambda t: t.kind), key=lambda t: t.kind):
        errors = sorted(abs(model.step_time(t.shape) / t.median - 1) for t in group)
        p90 = errors[math.ceil(0.9 * len(errors)) - 1]
        found[kind] = Residual(len(errors), round(median(errors), 4), round(p90, 4))
    return found


def noise(timings: Sequence[Timing]) -> float:
    """Standard deviation of the logarithm of a step's time around its shape's median.

    Half of what lies between the 16th and the 84th percentile of all steps, so that a neighbour's
    burst does not count as noise. 0 where each step was run once.
    """
    spread = sorted(
        # A median of n is nearer to each of them than the true one is.
        math.log(seconds / t.median) * math.sqrt(len(t.seconds) / (len(t.seconds) - 1))
        for t in timings
        if len(t.seconds) > 1
        for seconds in t.seconds
    )
    if not spread:
        return 0.0
    low, high = (spread[round(share * (len(spread) - 1))] for share in (0.16, 0.84))
    return (high - low) / 2
