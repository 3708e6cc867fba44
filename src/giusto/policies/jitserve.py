"""Most goodput per second of generation first, batched by prompt length; exchanged when it pays.

Goodput is value in time and nothing late: who cannot make it any more comes last, and is refused if
it never began. At the start of each frame a batch is chosen among all who are nearly as dense as
the last that would fit (GMAX): the run of neighbours in prompt length that is densest in all. A
few of them may evict a resident each, if that brings more within the frame than its stall costs.

Source: JITServe (arXiv 2504.20068, version 3), with `giusto.policies.density`. Differs: bounds,
refinement, shares of deadlines and the test of preemption follow the paper where the released code
does not; missed promises do not age; nobody is refused before a whole frame in the line; best
effort evicts nobody; and whoever has waited half a starvation span for a first token gets a
twentieth of the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import accumulate, islice

from giusto.core.events import Finished, Preempted, Stepped
from giusto.core.latency import BatchShape
from giusto.core.plan import Plan, Refusal, View
from giusto.core.request import FinishReason, RequestView
from giusto.core.slo import BestEffort
from giusto.policies.base import Dependencies
from giusto.policies.density import Densities, Ranking
from giusto.policies.frames import Frames, exchange, serve
from giusto.policies.shedding import reason

CANDIDATES = ("p", "k")
#: What p is tuned among, and where it starts.
ARMS = (0.80, 0.85, 0.90, 0.95, 1.00)
FIRST_ARM = 3
#: Requests refused in one plan, at most: a flood would else be refused all at once.
REFUSALS = 100
#: Frames from one step of the tuning to the next.
TRIAL = 10


@dataclass(frozen=True, slots=True)
class Parameters(Ranking):
    """As `Ranking`; and frame, frame_time: steps, and seconds of them, after either of which a
    frame ends; gmax: whether neighbours in prompt length are batched; candidates: p for all who
    are as dense as p times the last that would fit, k for as many as k batches; p: from 0 to 1, or
    0 to tune it by goodput; swaps: residents that may be exchanged in a frame; drop: whether who
    has waited too long, or cannot make it, is refused; waiting_time: seconds that are too long.
    """

    alpha: float = math.inf
    delta: float = 0.01
    frame: int = 50
    frame_time: float = 0.3
    gmax: bool = True
    candidates: str = "p"
    p: float = 0.0
    k: int = 1
    swaps: int = 3
    drop: bool = True
    waiting_time: float = 5.0

    def __post_init__(self) -> None:
        Ranking.__post_init__(self)
        if self.candidates not in CANDIDATES:
            raise ValueError(f"candidates must be p or k, got {self.candidates!r}")
        if not 0 <= self.p <= 1:
            raise ValueError(f"p must lie in [0, 1], got {self.p}")
        for name in ("frame", "k"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("frame_time", "waiting_time"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.swaps < 0:
            raise ValueError(f"swaps must be at least 0, got {self.swaps}")


class Climb:
    """Tunes p: one arm on after each trial, and back again when that brought less per second."""

    def __init__(self) -> None:
        self._arm = FIRST_ARM
        self._way = 1
        self._frames = 0
        self._seconds = 0.0
        self._earned = 0.0
        self._last = 0.0

    @property
    def p(self) -> float:
        return ARMS[self._arm]

    def spend(self, seconds: float) -> None:
        self._seconds += seconds

    def earn(self, value: float) -> None:
        self._earned += value

    def end_frame(self) -> None:
        """Count a frame; with the last of a trial another arm is tried."""
        self._frames += 1
        if self._frames < TRIAL or not self._seconds:
            return
        rate = self._earned / self._seconds
        if rate < self._last:
            self._way = -self._way
        if not 0 <= self._arm + self._way < len(ARMS):
            self._way = -self._way
        self._arm += self._way
        self._last = rate
        self._frames, self._seconds, self._earned = 0, 0.0, 0.0


class Jitserve:
    """See the module."""

    def __init__(self, parameters: Parameters, deps: Dependencies) -> None:
        self.parameters = parameters
        self.latency = deps.latency
        self.frames = Frames(parameters.frame, parameters.frame_time)
        self.densities = Densities(parameters, deps, self.frames)
        self.climb = Climb()
        self._num_swaps = 0

    # Learning

    def observe(self, event: object) -> None:
        match event:
            case Stepped(outcome):
                self.climb.spend(outcome.ended - outcome.started)
            case Finished(request_id, now, FinishReason.STOP | FinishReason.LENGTH):
                self.climb.earn(self.densities.earned(request_id, now))
            case Preempted():
                self._num_swaps += 1
        number = self.frames.number
        self.densities.observe(event)
        if self.frames.number != number:
            self._num_swaps = 0
            self.climb.end_frame()

    # Deciding

    def plan(self, view: View) -> Plan:
        densities = self.densities
        densities.settle(view.now)
        if not self.frames.is_opening(view):
            # `pack` reads no further than the slots, the first that does not fit, and the floor's.
            most = view.free_slots + 2 if view.free_slots else 0
            return serve(view, densities.rank, densities.first_waiting(view, most))
        lost = self._lost(view)
        gone = {request.id for request in lost}
        waiting = [request for request in view.waiting if request.id not in gone]
        chosen = self._batch([*view.running, *waiting], view.limits.max_num_seqs)
        entrants = sorted((r for r in waiting if r.id in chosen), key=densities.rank)
        victims = [request for request in densities.evictable(view) if request.id not in chosen]
        victims.sort(key=densities.rank, reverse=True)

        def pays(new: RequestView, old: RequestView) -> bool:
            return self._pays(new, old, view)

        most = self.parameters.swaps - self._num_swaps
        entering, leaving = exchange(view, entrants, victims, pays, most)
        refusals = [Refusal(request.id, reason(request, view.now)) for request in lost]
        return serve(view, densities.rank, entering, leaving, refusals)

    def _lost(self, view: View) -> list[RequestView]:
        """Who was never served and waited too long, or cannot make it any more after a whole frame.

        Judged by the promise as it is: a program's stage may be late without the program being so.
        """
        if not self.parameters.drop:
            return []
        oldest, spent = view.now - self.parameters.waiting_time, self.densities.spent
        frames = self.densities.waits.frames
        lost = (
            request
            for request in view.waiting
            if (request.arrival < oldest or request.id in spent)
            and request.first_scheduled is None
            and not request.has_begun
            and not isinstance(request.slo, BestEffort)
            and frames(request.id) > 1
        )
        return list(islice(lost, REFUSALS))

    def _batch(self, everyone: Sequence[RequestView], size: int) -> set[str]:
        """Who should be resident, `size` at most."""
        if len(everyone) <= size:
            return {request.id for request in everyone}
        density, rank, asked = self.densities.density, self.densities.rank, self.parameters
        if not asked.gmax:
            return {request.id for request in nsmallest(size, everyone, key=rank)}
        if asked.candidates == "k":
            few: Sequence[RequestView] = nsmallest(asked.k * size, everyone, key=rank)
        else:
            last = nsmallest(size, everyone, key=rank)[-1]
            least = (asked.p or self.climb.p) * density(last)
            few = [request for request in everyone if density(request) >= least]
        return {request.id for request in best_window(few, size, density)}

    def _pays(self, new: RequestView, old: RequestView, view: View) -> bool:
        """Whether one for the other brings more weighted tokens in this frame than the whole batch
        loses while it stalls."""
        span, gain = self.frames.span, self.densities.gain
        rate = self.parameters.w_decode * len(view.running) / self.frames.tau
        return gain(new, span) - gain(old, span) > self._stall(old, view) * rate

    def _stall(self, victim: RequestView, view: View) -> float:
        """Seconds that its blocks take out and in again, or else its tokens to compute anew."""
        num_blocks = view.held(victim.id)
        if view.caps.swap and num_blocks <= view.free_host_blocks:
            shape = BatchShape(swapped_blocks=2 * num_blocks)
        else:
            shape = BatchShape(prefill_tokens=victim.num_computed_tokens)
        return self.latency.step_time(shape) - self.latency.step_time(BatchShape())


def best_window(
    candidates: Sequence[RequestView], size: int, density: Callable[[RequestView], float]
) -> Sequence[RequestView]:
    """Of neighbours in prompt length, `size` of them, those with the largest sum of densities.

    Of equal sums the shorter prompts; O(n log n).
    """
    by_length = sorted(candidates, key=lambda request: request.num_prompt_tokens)
    sums = [0.0, *accumulate(map(density, by_length))]
    starts = range(max(1, len(by_length) - size + 1))
    start = max(starts, key=lambda i: sums[min(i + size, len(by_length))] - sums[i])
    return by_length[start : start + size]


def make(parameters: Parameters, deps: Dependencies) -> Jitserve:
    return Jitserve(parameters, deps)
