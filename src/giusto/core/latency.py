"""The shape of a step and what it costs.

Three forms of a model, all fitted or stated offline, saved in a profile and refined online by one
running correction: `LinearLatency`, linear in the shape's terms (a constant, work per token, memory
traffic per token of context); `TableLatency`, measured step times by tokens in the step, plus such
terms; `RooflineLatency`, reading the weights or computing the tokens, whichever is longer, plus
such terms. Standard library only: the largest system has some twenty unknowns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from math import hypot
from typing import Protocol, Self


@dataclass(frozen=True, slots=True)
class BatchShape:
    """What a step computes. Tokens and sequences; `kv` terms count context tokens read.

    prefill_kv is the sum over prompt chunks of chunk length x context before it; kv_tokens is the
    sum of the contexts of the sequences that decode; nodes are speculated tokens to verify.
    """

    prefill_tokens: int = 0
    prefill_kv: int = 0
    decode_seqs: int = 0
    kv_tokens: int = 0
    nodes: int = 0
    draft_steps: int = 0
    draft_tokens: int = 0
    swapped_blocks: int = 0

    @property
    def features(self) -> tuple[float, ...]:
        """The terms that have coefficients, the constant first."""
        return (
            1.0,
            self.prefill_tokens,
            self.prefill_kv,
            self.decode_seqs,
            self.kv_tokens,
            self.nodes,
            self.draft_steps,
            self.draft_tokens,
            self.swapped_blocks,
        )

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model."""
        return self.prefill_tokens + self.decode_seqs + self.nodes


class LatencyModel(Protocol):
    """Predicts the seconds a step takes from its shape, and learns from what steps took."""

    def step_time(self, shape: BatchShape) -> float: ...
    def learn(self, shape: BatchShape, seconds: float) -> None: ...


#: Names of the coefficients, in the order of `BatchShape.features`.
TERMS = ("constant", *(f.name for f in fields(BatchShape)))
NUM_TERMS = len(TERMS)

FREE = (0.0,) * NUM_TERMS


def terms(**seconds: float) -> tuple[float, ...]:
    """Put coefficients that are given by name in order; those not named are 0.

    Raises ValueError for a name that is not in TERMS.
    """
    if unknown := seconds.keys() - set(TERMS):
        raise ValueError(f"no term {', '.join(sorted(unknown))}; there are {', '.join(TERMS)}")
    return tuple(seconds.get(name, 0.0) for name in TERMS)


@dataclass(slots=True)
class CorrectedLatency(ABC):
    """What the forms share: seconds = what the form says, times a correction learned online.

    The correction is one factor, an exponential average of measured over predicted: it follows a
    machine that slows down as a whole and cannot be destabilised by a lopsided batch mix, as a
    full online refit can.
    """

    rate: float = field(default=0.05, kw_only=True)
    correction: float = field(default=1.0, kw_only=True)

    @abstractmethod
    def raw(self, shape: BatchShape) -> float:
        """Seconds of one step, uncorrected."""

    def step_time(self, shape: BatchShape) -> float:
        """Predict the seconds of one step."""
        return self.correction * self.raw(shape)

    def learn(self, shape: BatchShape, seconds: float) -> None:
        """Move the correction towards what one step took; outliers beyond 4x count as 4x."""
        raw = self.raw(shape)
        if raw <= 0:
            return
        ratio = min(max(seconds / raw, self.correction / 4), self.correction * 4)
        self.correction += self.rate * (ratio - self.correction)

    def scaled(self, factor: float = 1.0) -> Self:
        """Make a model of its own that has learned nothing but that all takes `factor` times."""
        return replace(self, correction=factor)


@dataclass(slots=True)
class LinearLatency(CorrectedLatency):
    """Seconds = coefficients . features."""

    coefficients: tuple[float, ...]

    def __post_init__(self) -> None:
        _check(self.coefficients)

    def raw(self, shape: BatchShape) -> float:
        return _linear(self.coefficients, shape)

    def drafting(self, per_step: float, per_token: float) -> LinearLatency:
        """The same with the seconds of a pass of a draft model, and of each token in it."""
        seconds = dict(zip(TERMS, self.coefficients, strict=True))
        seconds |= {"draft_steps": per_step, "draft_tokens": per_token}
        return replace(self, coefficients=terms(**seconds))

    @classmethod
    def fit(cls, samples: Iterable[tuple[BatchShape, float]]) -> LinearLatency:
        """Fit by relative least squares with coefficients >= 0.

        Each sample is weighted by 1/seconds, so that short steps are fitted as well as long ones.
        Raises ValueError without samples.
        """
        rows = [(shape.features, seconds) for shape, seconds in samples if seconds > 0]
        return cls(tuple(_fit(rows)))


@dataclass(slots=True)
class TableLatency(CorrectedLatency):
    """Seconds = table(tokens in the step) + coefficients . features.

    `points` are (tokens, seconds), tokens ascending. Between them the table is a straight line,
    below the first flat, beyond the last as steep as before it.
    """

    points: tuple[tuple[int, float], ...]
    coefficients: tuple[float, ...] = FREE
    _tokens: list[int] = field(init=False, repr=False, compare=False)
    _slopes: list[float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check(self.coefficients)
        if not self.points:
            raise ValueError("a table needs at least one point")
        if any(left[0] >= right[0] for left, right in pairwise(self.points)):
            raise ValueError("the tokens of a table's points must ascend")
        self._tokens = [tokens for tokens, _ in self.points]
        slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(self.points)]
        self._slopes = [*slopes, slopes[-1] if slopes else 0.0]

    def raw(self, shape: BatchShape) -> float:
        tokens = shape.prefill_tokens + shape.decode_seqs + shape.nodes
        at = max(bisect_right(self._tokens, tokens) - 1, 0)
        start, seconds = self.points[at]
        along = max(tokens - start, 0) * self._slopes[at]
        return seconds + along + _linear(self.coefficients, shape)

    @classmethod
    def fit(cls, samples: Iterable[tuple[BatchShape, float]], knots: Sequence[int]) -> TableLatency:
        """Fit as `LinearLatency.fit` does: a table that never falls, and terms beside it.

        The unknowns of the table are its first value and the rise from each knot to the next. It
        prices every token, so the constant and `prefill_tokens` stay 0: other terms are what a
        sequence, a node or a token of context costs on top of a prompt's token. Raises ValueError
        without samples, or unless `knots` ascend.
        """
        kept = [TERMS.index(name) for name in TERMS if name not in ("constant", "prefill_tokens")]
        rows = []
        for shape, seconds in samples:
            if seconds > 0:
                beside = [shape.features[i] for i in kept]
                rows.append(([*_ramps(shape.num_tokens, knots), *beside], seconds))
        found = _fit(rows)
        rises, beside = found[: len(knots)], found[len(knots) :]
        points = tuple((knot, sum(rises[: at + 1])) for at, knot in enumerate(knots))
        return cls(points, terms(**{TERMS[i]: c for i, c in zip(kept, beside, strict=True)}))


@dataclass(slots=True)
class RooflineLatency(CorrectedLatency):
    """Seconds = hypot(memory, compute x tokens in the step) + coefficients . features.

    memory: seconds to read the weights once. compute: seconds of arithmetic per token. The longer
    of the two rules far from the knee where they are equal; hypot rounds that knee, as real
    machines do.

    Source: Williams, Waterman, Patterson, Roofline (CACM 52(4), 2009). Differs: the knee is
    rounded, and attention stands beside the matrix products, not under the same roof.
    """

    memory: float
    compute: float
    coefficients: tuple[float, ...] = FREE

    def __post_init__(self) -> None:
        _check(self.coefficients)

    def raw(self, shape: BatchShape) -> float:
        tokens = shape.prefill_tokens + shape.decode_seqs + shape.nodes
        products = hypot(self.memory, self.compute * tokens)
        return products + _linear(self.coefficients, shape)


def _check(coefficients: tuple[float, ...]) -> None:
    if len(coefficients) != NUM_TERMS:
        raise ValueError(f"expected {NUM_TERMS} coefficients, got {len(coefficients)}")


def _linear(coefficients: tuple[float, ...], shape: BatchShape) -> float:
    # Asked at least once per simulated step: spelt out, which takes a quarter of a loop's time.
    constant, prefill, prefill_kv, decode, kv, nodes, steps, draft, swapped = coefficients
    return (
        constant
        + prefill * shape.prefill_tokens
        + prefill_kv * shape.prefill_kv
        + decode * shape.decode_seqs
        + kv * shape.kv_tokens
        + nodes * shape.nodes
        + steps * shape.draft_steps
        + draft * shape.draft_tokens
        + swapped * shape.swapped_blocks
    )


def _ramps(tokens: int, knots: Sequence[int]) -> list[float]:
    """1, and per further knot how far `tokens` is on the way to it, the last way without end."""
    ways = [max(0.0, (tokens - a) / (b - a)) for a, b in pairwise(knots)]
    return [1.0, *(min(way, 1.0) for way in ways[:-1]), *ways[-1:]]


def _fit(rows: Sequence[tuple[Sequence[float], float]]) -> list[float]:
    """Coefficients >= 0 that minimise the squared relative errors."""
    if not rows:
        raise ValueError("cannot fit a latency model without measured steps")
    scaled = [[x / y for x in features] for features, y in rows]
    return _nonnegative_least_squares(scaled, [1.0] * len(rows))


def _nonnegative_least_squares(
    rows: Sequence[Sequence[float]], targets: Sequence[float], sweeps: int = 2000
) -> list[float]:
    """Coordinate descent on the normal equations; exact enough for a handful of unknowns."""
    n = len(rows[0])
    scale = [max((abs(row[j]) for row in rows), default=0.0) or 1.0 for j in range(n)]
    gram = [
        [sum(r[i] * r[j] for r in rows) / (scale[i] * scale[j]) for j in range(n)] for i in range(n)
    ]
    rhs = [sum(r[i] * t for r, t in zip(rows, targets, strict=True)) / scale[i] for i in range(n)]
    x = [0.0] * n
    for _ in range(sweeps):
        moved = 0.0
        for j in range(n):
            if gram[j][j] <= 1e-12:
                continue
            residual = rhs[j] - sum(gram[j][i] * x[i] for i in range(n) if i != j)
            new = max(0.0, residual / gram[j][j])
            moved = max(moved, abs(new - x[j]))
            x[j] = new
        if moved < 1e-12:
            break
    return [x[j] / scale[j] for j in range(n)]
