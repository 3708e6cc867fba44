"""Length bounds from the finished requests of a class; no features, no training.

The bound is a quantile of the lengths seen, conditional on what was emitted: of the past requests
that came at least this far, how long did they get? (The idea of a predictor without a model is
tokasaurus's.) Without history an eighth of the cap stands in, then twice what was emitted: a
bound that calls every deadline hopeless would not see one finish.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque

from giusto.core.events import Arrived, Finished, Rejected
from giusto.core.request import FinishReason, RequestView

#: Fewer samples than this beyond the current length say nothing: the bound then doubles.
MIN_SAMPLES = 4
#: Of the cap, expected before anything has finished.
PRIOR_SHARE = 8


class Histogram:
    """Sorted sliding windows of output lengths by service class; a look-up is two bisections."""

    def __init__(self, quantile: float = 0.7, window: int = 500) -> None:
        if not 0 < quantile < 1:
            raise ValueError(f"quantile must lie between 0 and 1, got {quantile}")
        self.quantile = quantile
        self.window = window
        self._sorted: dict[str, list[int]] = {}
        self._recent: dict[str, deque[int]] = {}
        self._open: dict[str, RequestView] = {}

    def remaining(self, request: RequestView) -> float:
        emitted = request.num_output_tokens
        lengths = self._sorted.get(request.service_class, [])
        first = bisect_right(lengths, emitted)
        beyond = len(lengths) - first
        if beyond >= MIN_SAMPLES:
            return lengths[first + int(self.quantile * (beyond - 1))] - emitted
        prior = 0.0 if lengths else request.cap / PRIOR_SHARE - emitted
        return max(1.0, prior, min(request.cap - emitted, emitted))

    def observe(self, event: object) -> None:
        match event:
            case Arrived(request):
                self._open[request.id] = request
            case Finished(request_id, _, reason):
                ended = self._open.pop(request_id, None)
                answered = reason in (FinishReason.STOP, FinishReason.LENGTH)
                if ended is not None and answered and ended.num_output_tokens:
                    self._learn(ended.service_class, ended.num_output_tokens)
            case Rejected(request_id):
                self._open.pop(request_id, None)

    def _learn(self, name: str, length: int) -> None:
        lengths = self._sorted.setdefault(name, [])
        recent = self._recent.setdefault(name, deque())
        insort(lengths, length)
        recent.append(length)
        if len(recent) > self.window:
            oldest = recent.popleft()
            del lengths[bisect_left(lengths, oldest)]
