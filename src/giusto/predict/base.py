"""What a policy may ask about an output that nobody has seen the end of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from giusto.core.request import RequestView


class LengthPredictor(Protocol):
    """Bounds the output tokens still to come, given those already emitted."""

    def remaining(self, request: RequestView) -> float:
        """An upper bound on output tokens to come; at least 1 while the request runs."""
        ...

    def observe(self, event: object) -> None:
        """Learn from `Arrived`, `Stepped` and `Finished`; other events are ignored."""
        ...


@dataclass(frozen=True, slots=True)
class Constant:
    """Always the same total; for tests and ablations."""

    output_tokens: float

    def remaining(self, request: RequestView) -> float:
        return max(1.0, self.output_tokens - request.num_output_tokens)

    def observe(self, event: object) -> None:
        """Nothing to learn."""
