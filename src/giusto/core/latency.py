"""The shape of a step and what it costs.

`LinearLatency` is linear in the shape's terms: a constant, work per token, and memory traffic per
token of context. It is fitted by non-negative least squares on measured steps, refined online, and
saved as a profile. Standard library only: the system has eight unknowns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol


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
        """The terms of `LinearLatency`, the constant first."""
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


class LatencyModel(Protocol):
    """Predicts the seconds a step takes from its shape, and learns from what steps took."""

    def step_time(self, shape: BatchShape) -> float: ...
    def learn(self, shape: BatchShape, seconds: float) -> None: ...


NUM_TERMS = len(BatchShape().features)


@dataclass(slots=True)
class LinearLatency:
    """Seconds = coefficients . features, times a running correction learned online.

    The correction is one factor, an exponential average of measured over predicted: it follows a
    machine that slows down as a whole and cannot be destabilised by a lopsided batch mix, as a
    full online refit can.
    """

    coefficients: tuple[float, ...]
    rate: float = 0.05
    correction: float = field(default=1.0)

    def __post_init__(self) -> None:
        if len(self.coefficients) != NUM_TERMS:
            raise ValueError(f"expected {NUM_TERMS} coefficients, got {len(self.coefficients)}")

    def step_time(self, shape: BatchShape) -> float:
        """Predict the seconds of one step."""
        return self.correction * self._raw(shape)

    def learn(self, shape: BatchShape, seconds: float) -> None:
        """Move the correction towards what one step took; outliers beyond 4x count as 4x."""
        raw = self._raw(shape)
        if raw <= 0:
            return
        ratio = min(max(seconds / raw, self.correction / 4), self.correction * 4)
        self.correction += self.rate * (ratio - self.correction)

    def _raw(self, shape: BatchShape) -> float:
        return sum(c * x for c, x in zip(self.coefficients, shape.features, strict=True))

    @classmethod
    def fit(cls, samples: Iterable[tuple[BatchShape, float]]) -> LinearLatency:
        """Fit by relative least squares with coefficients >= 0.

        Each sample is weighted by 1/seconds, so that short steps are fitted as well as long ones.
        Raises ValueError without samples.
        """
        rows = [(shape.features, seconds) for shape, seconds in samples if seconds > 0]
        if not rows:
            raise ValueError("cannot fit a latency model without measured steps")
        scaled = [[x / y for x in features] for features, y in rows]
        return cls(tuple(_nonnegative_least_squares(scaled, [1.0] * len(rows))))


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
