"""Length bounds, for `tempo` and `jitserve`: refined as tokens come, or the mean of all answers."""

from __future__ import annotations

from giusto.core.events import Estimated, Finished, Rejected
from giusto.core.request import RequestView
from giusto.policies.base import RENEWAL
from giusto.predict.base import LengthPredictor
from giusto.predict.endings import Endings

#: Output tokens expected before any answer was seen, at most.
FIRST_LENGTH = 1024


class MeanLengths:
    """Expects of every answer the mean of all answers so far: no analyzer, for ablations."""

    def __init__(self) -> None:
        self._endings = Endings()
        self._num_tokens = 0
        self._num_answers = 0

    def remaining(self, request: RequestView, quantile: float | None = None) -> float:
        mean = self.mean or float(min(FIRST_LENGTH, request.cap))
        return max(1.0, mean - request.num_output_tokens)

    @property
    def mean(self) -> float:
        """Tokens of an answer; 0 before the first."""
        return self._num_tokens / self._num_answers if self._num_answers else 0.0

    def observe(self, event: object) -> None:
        if (ended := self._endings.of(event)) is not None:
            self._num_tokens += ended.num_output_tokens
            self._num_answers += 1


class Bounds:
    """Bounds of whole outputs: asked anew every so many tokens, when outlived, as others end."""

    def __init__(self, lengths: LengthPredictor, quantile: float, refresh: int) -> None:
        self._lengths = lengths
        self._quantile = quantile
        self._refresh = refresh
        self.num_renewals = 0
        self._known: dict[str, tuple[float, float, int]] = {}
        self._num_ended = 0

    def total(self, request: RequestView) -> float:
        """Tokens, at least one more than were emitted."""
        emitted = request.num_output_tokens
        last, total, renewal = self._known.get(request.id, (-1.0, 0.0, 0))
        if emitted > last or renewal != self.num_renewals:
            left = self._lengths.remaining(request, quantile=self._quantile)
            total = emitted + max(1.0, left)
            last = min(total - 1, emitted + self._refresh - 1)
            self._known[request.id] = (last, total, self.num_renewals)
        return total

    def observe(self, event: object) -> None:
        match event:
            case Estimated(request_id) | Rejected(request_id):
                self._known.pop(request_id, None)
            case Finished(request_id):
                self._known.pop(request_id, None)
                self._num_ended += 1
                self.num_renewals = self._num_ended // RENEWAL
