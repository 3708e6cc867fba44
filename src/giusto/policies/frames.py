"""Frames, for `tempo` and `jitserve`: spans of steps at whose start residents may be exchanged.

Between two starts the batch is kept and freed slots are filled. A plan must not change anything, so
frames are counted by the steps that were committed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from statistics import fmean

from giusto.core.events import Admitted, Arrived, Finished, Preempted, Rejected, Resumed
from giusto.core.pack import Budget, PreemptFor, pack
from giusto.core.plan import Plan, Refusal, StepOutcome, View, Want
from giusto.core.request import RequestView
from giusto.core.slo import BestEffort
from giusto.policies.base import with_floor

#: Seconds per step before any frame has ended.
FIRST_TAU = 0.02
#: Frames over whose means the seconds per step are averaged.
TAU_FRAMES = 10
#: Steps may be said to take no time; a density must be a number all the same.
LEAST_TAU = 1e-6
#: Tokens for a resident prompt in a step that exchanges residents: who enters gets the rest.
TRICKLE = 2

#: A place in an order; the smaller comes first.
Rank = tuple[float, float]


class Frames:
    """Spans of steps at whose start batches are formed: so many steps, or seconds of them, each.

    tau: seconds per step, the mean of the last frames' means; number: frames that have ended.
    """

    def __init__(self, steps: int, seconds: float = math.inf) -> None:
        self.steps = steps
        self.seconds = seconds
        self.number = 0
        self.tau = FIRST_TAU
        self._means: deque[float] = deque(maxlen=TAU_FRAMES)
        self._first = 0
        self._num_steps = 0
        self._took = 0.0

    @property
    def span(self) -> float:
        """Seconds that a frame lasts."""
        return min(self.steps * self.tau, self.seconds)

    def is_opening(self, view: View) -> bool:
        """Whether this plan is the frame's first.

        With a step in flight it is the first few: who is to lose its blocks must land before.
        """
        return view.step - self._first <= 2 * view.caps.lookahead

    def count(self, outcome: StepOutcome) -> bool:
        """Book a step; True when the frame ends with it."""
        self._num_steps += 1
        self._took += outcome.ended - outcome.started
        if self._num_steps < self.steps and self._took < self.seconds:
            return False
        self._means.append(self._took / self._num_steps)
        self.tau = max(LEAST_TAU, fmean(self._means))
        self.number += 1
        self._first = outcome.step + 1
        self._num_steps, self._took = 0, 0.0
        return True


class Waits:
    """Frames that each open request has waited, in all its spells in the line."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._since: dict[str, int] = {}
        self._before: dict[str, int] = {}

    def frames(self, request_id: str) -> int:
        since = self._since.get(request_id)
        return self._before.get(request_id, 0) if since is None else self._frames.number - since

    def observe(self, event: object) -> None:
        match event:
            case Arrived(request):
                self._since[request.id] = self._frames.number
            case Admitted(request_id) | Resumed(request_id):
                self._before[request_id] = self.frames(request_id)
                self._since.pop(request_id, None)
            case Preempted(request_id):
                self._since[request_id] = self._frames.number - self._before.pop(request_id, 0)
            case Finished(request_id) | Rejected(request_id):
                self._since.pop(request_id, None)
                self._before.pop(request_id, None)


def exchange(
    view: View,
    entrants: Sequence[RequestView],
    victims: Iterable[RequestView],
    pays: Callable[[RequestView, RequestView], bool],
    most: int,
) -> tuple[Sequence[RequestView], Sequence[RequestView]]:
    """Tell who enters and who leaves for it: at most one victim for each, `most` in all.

    Both are taken in order, up to the first entrant that finds neither room nor a victim that it
    `pays` to evict and that leaves room enough. Best effort evicts nobody. Where nobody leaves, all
    may try to enter.
    """
    entering: list[RequestView] = []
    leaving: list[RequestView] = []
    slots, blocks = view.free_slots, view.free_blocks
    line = iter(victims)
    for request in entrants:
        blocks -= _first_cost(request, view)
        if slots and blocks >= 0:
            slots -= 1
        else:
            victim = next(line, None) if len(leaving) < most else None
            if victim is None or isinstance(request.slo, BestEffort):
                break
            blocks += view.held(victim.id)
            if blocks < 0 or not pays(request, victim):
                break
            leaving.append(victim)
        entering.append(request)
    return (entering, leaving) if leaving else (entrants, ())


def _first_cost(request: RequestView, view: View) -> int:
    """Blocks for the first chunk of a request that waits."""
    tokens = request.num_remaining_tokens - view.cost(request.id, 1).cached_tokens
    return view.cost(request.id, max(1, min(tokens, view.limits.max_num_batched_tokens))).total


def serve(
    view: View,
    rank: Callable[[RequestView], Rank],
    entering: Sequence[RequestView],
    leaving: Sequence[RequestView] = (),
    reject: Iterable[Refusal] = (),
) -> Plan:
    """Keep the batch, in order of rank, and let `entering` in; for them alone `leaving` may go."""
    gone = {request.id for request in leaving}
    staying = [request for request in view.running if request.id not in gone]
    staying.sort(key=rank)
    num_decodes = sum(request.num_remaining_tokens == 1 for request in staying)
    # What is in the batch goes on: a prompt takes no resident's next token.
    budget = Budget(max_prefill_tokens=max(0, view.limits.max_num_batched_tokens - num_decodes))
    if not leaving:
        wants = (Want(request.id) for request in chain(staying, entering))
        return pack(with_floor(wants, view), view, budget=budget, reject=reject)
    kept = (Want(r.id, TRICKLE if r.num_remaining_tokens > 1 else None) for r in staying)
    # Not to be served at all is what lets those in flight land, to be evicted by the next plan.
    tail = () if view.caps.pause else leaving
    rest = (Want(request.id) for request in chain(entering, tail))
    order = with_floor(chain(kept, rest), view)
    return pack(order, view, budget=budget, preempt_for=PreemptFor.ANYBODY, reject=reject)
