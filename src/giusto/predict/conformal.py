"""Length bounds that hold as often as they say: a predictor asked at a corrected level.

A predictor's 0.95 quantile holds less often than it says when lengths drift or its model is wrong,
and more often when many outputs end at a cap. So every request that ended by itself tells at which
level its bound would have been just enough, and of those levels a quantile is asked for: split
conformal prediction on a sliding window. Which quantile adapts: up after a bound that did not
hold, down a little after one that did, until the share of misses is the one meant.

Source: Gibbs and Candès, "Adaptive conformal inference under distribution shift"
(arXiv 2106.00263). Differs: levels adapt by service class; a request is judged when it ends, so
that the step shrinks with the number still open; beyond the predictor's highest useful level its
bound is stretched.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from giusto.core.events import Arrived, Estimated, Finished, Rejected
from giusto.core.request import FinishReason, RequestView
from giusto.predict.base import LengthPredictor
from giusto.predict.coverage import WINDOW, Coverage, CoverageRow

#: Chances at which bounds are judged and corrected.
JUDGED = (0.9, 0.95)
#: Step of the adapting quantile per ending. The paper takes 0.005; what swings less is narrower,
#: and most drift is followed by the window of scores already.
RATE = 0.002
#: Requests open at which the step is halved. What a correction does shows only in requests that
#: arrive after it: with hundreds open a full step would be made over and over before that.
OPEN = 100
#: Endings of a class before its bounds tell anything: until then a predictor guesses.
WARM_UP = 30
#: Scores of a class before they correct anything, and how many are kept.
MIN_SCORES, MAX_SCORES = 30, 500
#: Levels at which a predictor is asked when a request arrives; a score lies between two of them.
#: So fine because the wanted level is low, and counts, where most outputs are cut at the cap.
GRID = (*(x / 40 for x in range(1, 40)), 0.99)
#: Beyond this level quantiles of small samples tell nothing: its bound is stretched by a factor.
#: A level of TOP + x stands for the factor exp(x), an infinite one for the cap.
TOP = GRID[-1]


class Calibrated:
    """Wraps a predictor, passes events on to it, and asks it at corrected levels.

    Judged are requests that ended by themselves: one that was cut at its cap is bounded by that,
    and a cancelled one has no length. So a bound is one for outputs that end by themselves. It is
    judged as given at arrival, by the newest `Estimated` before the first token. Asked at its own
    level (None) or below the lowest level judged, the predictor is not corrected, but for the
    order: a bound of a lesser chance never exceeds one of a greater.
    """

    def __init__(
        self,
        inner: LengthPredictor,
        levels: Sequence[float] = JUDGED,
        window: int = WINDOW,
    ) -> None:
        if not levels or not all(a < b for a, b in pairwise((0.0, *levels, 1.0))):
            raise ValueError(f"levels must rise and lie between 0 and 1, got {levels}")
        self.inner = inner
        self.levels = tuple(levels)
        self.coverage = Coverage(window)
        self._classes: dict[str, _Scores] = {}
        self._open: dict[str, _Given] = {}
        self._num_open: Counter[str] = Counter()
        self._num_ended: Counter[str] = Counter()

    def remaining(self, request: RequestView, quantile: float | None = None) -> float:
        if quantile is None:
            return self.inner.remaining(request)
        level = self.corrected(request.service_class, quantile)
        if level <= TOP:
            return self.inner.remaining(request, level)
        left = float(request.cap - request.num_output_tokens)
        if level < math.inf:
            left = min(left, self.inner.remaining(request, TOP) * math.exp(level - TOP))
        return max(1.0, left)

    def corrected(self, service_class: str, quantile: float) -> float:
        """The level at which the predictor is asked for a bound of this chance; `TOP` says more."""
        scores = self._classes.get(service_class)
        if scores is None or not scores.are_enough:
            return quantile
        meant, adapted = self.levels, scores.adapted
        if quantile < meant[0]:
            return min(quantile, scores.level(adapted[0]))
        index = bisect_right(meant, quantile) - 1
        low, gap = adapted[index], 1.0 - meant[index]
        high = max(low, 1.0)
        if index + 1 < len(meant):
            high, gap = adapted[index + 1], meant[index + 1] - meant[index]
        return scores.level(min(high, low + (high - low) * (quantile - meant[index]) / gap))

    def report(self) -> list[CoverageRow]:
        """Coverage and width of the bounds given at arrival, by class and level."""
        return self.coverage.report()

    def observe(self, event: object) -> None:
        self.inner.observe(event)
        match event:
            case Arrived(request):
                self._num_open[request.service_class] += request.id not in self._open
                self._open[request.id] = self._give(request)
            case Estimated(request_id):
                given = self._open.get(request_id)
                if given is None or given.request.num_output_tokens:
                    return
                # What was told may be this predictor's own answer, and change nothing.
                if given.bounds != self._bounds(given.request):
                    self._open[request_id] = self._give(given.request)
            case Finished(request_id, _, reason):
                self._close(request_id, reason)
            case Rejected(request_id):
                self._close(request_id, None)

    def _bounds(self, request: RequestView) -> tuple[float, ...]:
        return tuple(self.remaining(request, level) for level in self.levels)

    def _give(self, request: RequestView) -> _Given:
        bounds = self._bounds(request)
        if self._num_ended[request.service_class] < WARM_UP:
            return _Given(request, bounds, (), False)
        grid = [self.inner.remaining(request, level) for level in GRID]
        scores = self._classes.get(request.service_class)
        return _Given(request, bounds, grid, scores is not None and scores.are_enough)

    def _close(self, request_id: str, reason: FinishReason | None) -> None:
        given = self._open.pop(request_id, None)
        if given is None:
            return
        name, length = given.request.service_class, given.request.num_output_tokens
        self._num_open[name] -= 1
        if not length or reason not in (FinishReason.STOP, FinishReason.LENGTH):
            return
        self._num_ended[name] += 1
        if reason is not FinishReason.STOP:
            return
        for level, bound in zip(self.levels, given.bounds, strict=True):
            self.coverage.add(name, level, bound, length)
        if given.grid:
            scores = self._classes.setdefault(name, _Scores(self.levels))
            step = RATE / (1 + self._num_open[name] / OPEN)
            if given.is_corrected:
                scores.adapt([length <= bound for bound in given.bounds], step)
            scores.add(_score(given.grid, length))


@dataclass(frozen=True, slots=True)
class _Given:
    """What was said of a request when it arrived: its bounds, and those of the predictor alone."""

    request: RequestView
    bounds: tuple[float, ...]
    grid: Sequence[float]
    is_corrected: bool


class _Scores:
    """The newest scores of a class, sorted, and which quantiles of them are asked for."""

    __slots__ = ("_meant", "_moving", "_recent", "adapted", "ordered")

    def __init__(self, meant: Sequence[float]) -> None:
        self._meant = meant
        self._moving = list(meant)
        self._recent: deque[float] = deque()
        self.adapted = list(meant)
        self.ordered: list[float] = []

    @property
    def are_enough(self) -> bool:
        return len(self.ordered) >= MIN_SCORES

    def level(self, chance: float) -> float:
        """The least level that was enough for this share of the scores, and for the next one."""
        rank = math.ceil(chance * (len(self.ordered) + 1))
        return self.ordered[max(rank, 1) - 1] if rank <= len(self.ordered) else math.inf

    def adapt(self, held: Sequence[bool], step: float) -> None:
        """Move each quantile by whether its bound held; never falling from one to the next."""
        for i, (chance, is_covered) in enumerate(zip(self._meant, held, strict=True)):
            moved = self._moving[i] + step * ((not is_covered) - (1 - chance))
            # At 1 the bound is the cap, which always holds: more would only delay the way back.
            self._moving[i] = min(max(moved, 0.0), 1.0 + RATE)
        self.adapted = list(accumulate(self._moving, max))

    def add(self, score: float) -> None:
        insort(self.ordered, score)
        self._recent.append(score)
        if len(self._recent) > MAX_SCORES:
            del self.ordered[bisect_left(self.ordered, self._recent.popleft())]


def _score(grid: Sequence[float], length: int) -> float:
    """The least level at which the bound at arrival would have been enough; beyond `TOP` a factor.

    Straight between two levels of the grid.
    """
    index = bisect_left(grid, length)
    if index == 0:
        return GRID[0]
    if index == len(grid):
        return TOP + math.log(length / grid[-1]) + 1e-9  # rounding must not undo it
    share = (length - grid[index - 1]) / (grid[index] - grid[index - 1])
    return GRID[index - 1] + (GRID[index] - GRID[index - 1]) * share
