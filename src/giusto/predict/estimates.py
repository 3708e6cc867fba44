"""Length bounds from answers that a model gave off the step path, told by `Estimated` events."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from giusto.core.events import LEVELS, Arrived, Estimated, Finished, Rejected, Stepped
from giusto.core.request import RequestView
from giusto.predict.base import REFRESH, LengthPredictor


class ForestPredictor:
    """Bounds from the newest `Estimated` of a request; until there is one, a stand-in's.

    An answer is a distribution of the whole length at `LEVELS`, straight between them, and straight
    in the logarithm from the last one to the cap. The bound is its quantile among the lengths
    beyond what was emitted, so that an answer is refined between two refreshes too; a request that
    outlives it goes back to the stand-in.
    """

    def __init__(self, stand_in: LengthPredictor, quantile: float = 0.7) -> None:
        if not 0 < quantile < 1:
            raise ValueError(f"quantile must lie between 0 and 1, got {quantile}")
        self.stand_in = stand_in
        self.quantile = quantile
        self._answers: dict[str, tuple[float, ...]] = {}
        self._open: set[str] = set()

    def remaining(self, request: RequestView, quantile: float | None = None) -> float:
        answer = self._answers.get(request.id)
        emitted, cap = request.num_output_tokens, request.cap
        if answer is None or emitted >= min(answer[-1], cap):
            return self.stand_in.remaining(request, quantile)
        passed = _share_within(answer, emitted)
        level = self.quantile if quantile is None else quantile
        total = _length_at(answer, passed + level * (1 - passed), cap)
        return max(1.0, min(total, cap) - emitted)

    def observe(self, event: object) -> None:
        self.stand_in.observe(event)
        match event:
            case Arrived(request):
                self._open.add(request.id)
            case Estimated(request_id, lengths):
                # An answer may come after the end.
                if request_id in self._open:
                    self._answers[request_id] = lengths
            case Finished(request_id) | Rejected(request_id):
                self._open.discard(request_id)
                self._answers.pop(request_id, None)


class Refresh:
    """Whom to ask a model about now: who arrived, and who emitted another `every` tokens since."""

    def __init__(self, every: int = REFRESH) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 token, got {every}")
        self._every = every
        self._open: dict[str, RequestView] = {}
        self._next: dict[str, int] = {}
        self._due: dict[str, RequestView] = {}

    def observe(self, event: object) -> None:
        match event:
            case Stepped(outcome):
                for request_id in outcome.yields:
                    request = self._open.get(request_id)
                    if request is not None and request.num_output_tokens >= self._next[request_id]:
                        self._put(request)
            case Arrived(request):
                self._open[request.id] = request
                self._put(request)
            case Finished(request_id) | Rejected(request_id):
                self._open.pop(request_id, None)
                self._next.pop(request_id, None)
                self._due.pop(request_id, None)

    def take(self) -> list[RequestView]:
        """Hand over who is due; each is due once for a milestone, however far it got since."""
        due, self._due = list(self._due.values()), {}
        return due

    def _put(self, request: RequestView) -> None:
        self._due[request.id] = request
        milestone = request.num_output_tokens // self._every
        self._next[request.id] = (milestone + 1) * self._every


def _share_within(answer: Sequence[float], tokens: int) -> float:
    """The chance of a length of at most `tokens`, which is below the last of `answer`."""
    index = bisect_right(answer, tokens)
    if index == 0:
        return 0.0
    low, high = answer[index - 1], answer[index]
    return LEVELS[index - 1] + (LEVELS[index] - LEVELS[index - 1]) * (tokens - low) / (high - low)


def _length_at(answer: Sequence[float], level: float, cap: int) -> float:
    """The quantile at `level`."""
    index = bisect_left(LEVELS, level)
    if index == 0:
        return answer[0]
    below, low = LEVELS[index - 1], answer[index - 1]
    if index == len(LEVELS):
        share = (min(level, 1.0) - below) / (1.0 - below)
        return low * math.exp(share * math.log(max(low, cap) / low))
    return low + (answer[index] - low) * (level - below) / (LEVELS[index] - below)
