"""Length bounds from the finished requests of a class or app; no features, no training.

The bound is a quantile of the lengths seen, conditional on what was emitted: of the past requests
that came at least this far, how long did they get? (The idea of a predictor without a model is
tokasaurus's.) Without history an eighth of the cap stands in, then twice what was emitted: a
bound that calls every deadline hopeless would not see one finish.

An output that was cut at `max_tokens` says only that it would have been longer. It counts with
what it got, for that is what such a request costs whoever plans; and no bound exceeds the cap,
where the next one would be cut too.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque
from collections.abc import Sequence

from giusto.core.request import RequestView
from giusto.predict.endings import Endings

#: Fewer samples than this beyond the current length say nothing: the bound then doubles.
MIN_SAMPLES = 4
#: Fewer samples than this of an app say less than all of its class: the 0.95 bound needs 19.
APP_SAMPLES = 30
#: Apps are named by clients: of more than this the one not heard of for longest is forgotten.
MAX_APPS = 256
#: Of the cap, expected before anything has finished.
PRIOR_SHARE = 8


class Histogram:
    """Sorted sliding windows of output lengths, by service class and by its apps.

    A look-up is two bisections. The own level is a plain quantile of the sample, for planning; a
    stated one is conservative for a finite sample: of n lengths the ceil((n + 1) q)-th bounds the
    next with a chance of at least q, where n allows it.
    """

    def __init__(self, quantile: float = 0.7, window: int = 500) -> None:
        if not 0 < quantile < 1:
            raise ValueError(f"quantile must lie between 0 and 1, got {quantile}")
        self.quantile = quantile
        self.window = window
        self._classes: dict[str, _Window] = {}
        self._apps: OrderedDict[tuple[str, str], _Window] = OrderedDict()
        self._endings = Endings()

    def remaining(self, request: RequestView, quantile: float | None = None) -> float:
        emitted = request.num_output_tokens
        left = request.cap - emitted
        lengths = self._lengths(request, emitted)
        first = bisect_right(lengths, emitted)
        beyond = len(lengths) - first
        if beyond >= MIN_SAMPLES:
            if quantile is None:
                index = int(self.quantile * (beyond - 1))
            else:
                index = min(math.ceil(quantile * (beyond + 1)), beyond) - 1
            return max(1, min(lengths[first + index] - emitted, left))
        prior = 0.0 if lengths else request.cap / PRIOR_SHARE - emitted
        return max(1.0, prior, min(left, emitted))

    def _lengths(self, request: RequestView, emitted: int) -> Sequence[int]:
        """Past lengths to compare with: the app's where enough of them came this far."""
        name, app = request.service_class, request.app
        if app is not None and (window := self._apps.get((name, app))) is not None:
            lengths = window.ordered
            if len(lengths) >= APP_SAMPLES and lengths[-MIN_SAMPLES] > emitted:
                return lengths
        window = self._classes.get(name)
        return () if window is None else window.ordered

    def observe(self, event: object) -> None:
        if (ended := self._endings.of(event)) is not None:
            self._learn(ended)

    def _learn(self, ended: RequestView) -> None:
        name, app, length = ended.service_class, ended.app, ended.num_output_tokens
        if name not in self._classes:
            self._classes[name] = _Window(self.window)
        self._classes[name].add(length)
        if app is None:
            return
        key = (name, app)
        if key not in self._apps:
            self._apps[key] = _Window(self.window)
            if len(self._apps) > MAX_APPS:
                self._apps.popitem(last=False)
        self._apps.move_to_end(key)
        self._apps[key].add(length)


class _Window:
    """The last so many lengths, sorted."""

    __slots__ = ("_recent", "_size", "ordered")

    def __init__(self, size: int) -> None:
        self.ordered: list[int] = []
        self._recent: deque[int] = deque()
        self._size = size

    def add(self, length: int) -> None:
        insort(self.ordered, length)
        self._recent.append(length)
        if len(self._recent) > self._size:
            del self.ordered[bisect_left(self.ordered, self._recent.popleft())]
