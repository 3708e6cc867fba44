"""How long texts are: distributions of token counts. Every draw is at least 1."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

#: Standard deviations from the median of a normal law to its 95th percentile.
_TO_P95 = NormalDist().inv_cdf(0.95)


class Lengths(Protocol):
    """A distribution of token counts."""

    def draw(self, rng: random.Random) -> int: ...


def lognormal(rng: random.Random, median: float, p95: float) -> float:
    """Draw from the log-normal law with this median and 95th percentile."""
    return rng.lognormvariate(math.log(median), math.log(p95 / median) / _TO_P95)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Log-normal by median and 95th percentile, rounded and clipped to `low` to `high`."""

    median: float
    p95: float
    low: int = 1
    high: int = 1_000_000

    def __post_init__(self) -> None:
        if not 0 < self.median <= self.p95 < math.inf:
            raise ValueError(f"need 0 < median <= p95, got {self.median} and {self.p95}")
        _require_order(self.low, self.high)

    def draw(self, rng: random.Random) -> int:
        return min(max(round(lognormal(rng, self.median, self.p95)), self.low), self.high)


@dataclass(frozen=True, slots=True)
class Empirical:
    """Any of the counts of a sample, each as likely."""

    sample: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.sample or min(self.sample) < 1:
            raise ValueError("a sample needs counts, each at least 1")

    @classmethod
    def of(cls, counts: Iterable[int]) -> Empirical:
        """Take the positive counts: a trace's requests without any token are no lengths."""
        return cls(tuple(count for count in counts if count > 0))

    def draw(self, rng: random.Random) -> int:
        return rng.choice(self.sample)


@dataclass(frozen=True, slots=True)
class Uniform:
    """Each count from `low` to `high`, both included, as likely."""

    low: int
    high: int

    def __post_init__(self) -> None:
        _require_order(self.low, self.high)

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same count."""

    tokens: int

    def __post_init__(self) -> None:
        _require_order(self.tokens, self.tokens)

    def draw(self, rng: random.Random) -> int:
        return self.tokens


def _require_order(low: int, high: int) -> None:
    if not 1 <= low <= high:
        raise ValueError(f"token counts need 1 <= low <= high, got {low} and {high}")
