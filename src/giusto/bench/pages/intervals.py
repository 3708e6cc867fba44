"""Means over seeds with their 95 % intervals, and differences that are larger than theirs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev, variance

#: Student's t at 97.5 % for 1, 2, … degrees of freedom, from the usual tables.
T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, half its 95 % interval (None of one value), the range, and how many values."""

    mean: float
    half: float | None
    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean difference and half its 95 % interval; unpaired where too few seeds are shared."""

    mean: float
    half: float | None
    is_paired: bool

    @property
    def is_clear(self) -> bool:
        """Whether it is larger than its interval."""
        return self.half is not None and abs(self.mean) > self.half


def estimate(values: Sequence[float]) -> Estimate:
    """Estimate the mean of at least one value; an infinite one makes it infinite."""
    half = None
    if len(values) > 1 and all(map(math.isfinite, values)):
        half = student(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Estimate(fmean(values), half, min(values), max(values), len(values))


def difference(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Difference | None:
    """Compare two sets of values by seed: paired where two seeds or more are shared, else Welch.

    None where a value is infinite or a side is empty: there is nothing to subtract.
    """
    if not ours or not theirs or not all(map(math.isfinite, [*ours.values(), *theirs.values()])):
        return None
    shared = [seed for seed in ours if seed in theirs]
    if len(shared) > 1 or ours.keys() == theirs.keys():
        paired = estimate([ours[seed] - theirs[seed] for seed in shared])
        return Difference(paired.mean, paired.half, is_paired=True)
    mean = fmean(ours.values()) - fmean(theirs.values())
    return Difference(mean, _welch(list(ours.values()), list(theirs.values())), is_paired=False)


def student(freedom: float) -> float:
    """Student's t at 97.5 %, for fractions the next lower degree: wider rather than narrower."""
    whole = max(1, math.floor(freedom))
    return T_975[whole - 1] if whole <= len(T_975) else 1.96 + 2.5 / whole


def _welch(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Half the interval of a difference of means with unequal variances (Welch, 1947)."""
    if min(len(ours), len(theirs)) < 2:
        return None
    a, b = variance(ours) / len(ours), variance(theirs) / len(theirs)
    if a + b == 0:
        return 0.0
    freedom = (a + b) ** 2 / (a**2 / (len(ours) - 1) + b**2 / (len(theirs) - 1))
    return student(freedom) * math.sqrt(a + b)
