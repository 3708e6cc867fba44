"""What a policy may ask about an output that nobody has seen the end of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from giusto.core.request import RequestView

#: Tokens after which a model of lengths is asked again about a request that runs on.
REFRESH = 50


class LengthPredictor(Protocol):
    """Bounds the output tokens still to come, given those already emitted."""

    def remaining(self, request: RequestView, quantile: float | None = None) -> float:
        """Output tokens to come, given those emitted: a bound that holds with chance `quantile`.

        At least 1 while the request runs. None asks at the predictor's own level.
        """
        ...

    def observe(self, event: object) -> None:
        """Learn from `Arrived`, `Stepped` and `Finished`; other events are ignored."""
        ...


class TrueLengths(Protocol):
    """What only a simulator knows."""

    def output_tokens(self, request_id: str) -> int:
        """The whole output of a request, in tokens."""
        ...


@dataclass(frozen=True, slots=True)
class Constant:
    """Always the same total; for tests and ablations."""

    output_tokens: float

    def remaining(self, request: RequestView, quantile: float | None = None) -> float:
        return max(1.0, self.output_tokens - request.num_output_tokens)

    def observe(self, event: object) -> None:
        """Nothing to learn."""


@dataclass(frozen=True, slots=True)
class Oracle:
    """The true length at every level; for experiments that ask what prediction is worth."""

    truth: TrueLengths

    def remaining(self, request: RequestView, quantile: float | None = None) -> float:
        return max(1.0, self.truth.output_tokens(request.id) - request.num_output_tokens)

    def observe(self, event: object) -> None:
        """Nothing to learn."""
