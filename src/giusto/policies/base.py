"""What policies share: dependencies, orders that two of them use, the floor against starving."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import chain
from typing import Protocol

from giusto.core.events import Finished
from giusto.core.latency import LatencyModel
from giusto.core.plan import Caps, View, Want
from giusto.core.request import RequestView
from giusto.core.slo import BestEffort, due, is_missed
from giusto.predict.base import LengthPredictor
from giusto.programs.base import ProgramMatcher, Unforeseen

#: Share of a step's tokens kept for the request that has waited longest for its first token.
FLOOR_SHARE = 0.05
DEFAULT_STARVATION = BestEffort().starvation
#: Lengths are asked anew about every so many endings: predictors learn no faster.
RENEWAL = 32


class TrueLengths(Protocol):
    """What only a simulator knows; for reference policies that say so with `IS_ORACLE`."""

    def output_tokens(self, request_id: str) -> int:
        """The whole output of a request, in tokens."""
        ...


#: The embedded engine's.
PLAIN = Caps()


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What a policy may be built with; one that needs more than it is given fails to build."""

    latency: LatencyModel
    lengths: LengthPredictor
    truth: TrueLengths | None = None
    caps: Caps = PLAIN
    programs: ProgramMatcher = field(default_factory=Unforeseen)


class Stateless:
    """A policy that learns nothing."""

    def observe(self, event: object) -> None:
        """Nothing to learn."""


class Remembered:
    """A length predictor that is asked once per request, and again when outlived or renewed.

    So that ten thousand waiting requests can be ranked in every step: with each ending the oldest
    few of its answers are forgotten, so that no step has to ask for all of them anew.
    """

    def __init__(self, lengths: LengthPredictor) -> None:
        self._lengths = lengths
        self._totals: OrderedDict[str, float] = OrderedDict()

    def total(self, request: RequestView) -> float:
        """Bound of the whole output, some `RENEWAL` endings old at most; a look-up."""
        total = self._totals.get(request.id)
        return self._ask(request) if total is None else total

    def remaining(self, request: RequestView) -> float:
        """Bound of the output to come; at least 1."""
        left = self.total(request) - request.num_output_tokens
        return left if left >= 1 else self._ask(request) - request.num_output_tokens

    def _ask(self, request: RequestView) -> float:
        total = request.num_output_tokens + self._lengths.remaining(request)
        self._totals[request.id] = total
        self._totals.move_to_end(request.id)
        return total

    def observe(self, event: object) -> None:
        """Forget as requests end; the predictor itself learns elsewhere."""
        if isinstance(event, Finished):
            self._totals.pop(event.request_id, None)
            for _ in range(-(-len(self._totals) // RENEWAL)):
                self._totals.popitem(last=False)


def earliest_due(view: View, waiting: Iterable[RequestView]) -> list[RequestView]:
    """Residents and who of `waiting` may be admitted now: earliest due first, missed ones after
    all that can still be kept, best effort last."""
    now = view.now

    def urgency(request: RequestView) -> tuple[int, float, float]:
        when = due(request.slo, request)
        if when == math.inf:
            return 2, request.arrival, 0.0
        # Before its first token a request is missed once that, or its deadline, is past due.
        has_begun = request.num_output_tokens
        is_late = is_missed(request.slo, request, now) if has_begun else now > when
        return int(is_late or request.is_demoted), when, request.arrival

    # `pack` reads no further than the slots, the first that does not fit, and the floor's.
    waiting = nsmallest(view.free_slots + 2, waiting, key=urgency)
    return sorted(chain(view.running, waiting), key=urgency)


def prompts_first(view: View) -> Iterable[RequestView]:
    """First come, first served, in steps of prompts alone as long as one fits, else of decodes."""
    prompts = [request for request in view.running if request.num_remaining_tokens > 1]
    if prompts or (view.waiting and _fits(view.waiting[0], view)):
        return chain(prompts, view.waiting)
    return view.running


def _fits(request: RequestView, view: View) -> bool:
    """Whether a waiting prompt, as far as one step may take it, finds a slot and blocks."""
    tokens = request.num_remaining_tokens - view.cost(request.id, 1).cached_tokens
    tokens = min(tokens, view.limits.max_num_batched_tokens)
    return view.free_slots > 0 and view.cost(request.id, tokens).total <= view.free_blocks


def with_floor(
    wants: Iterable[Want], view: View, *, max_tokens: int | None = None
) -> Iterator[Want]:
    """Put the request that has waited longest for a first token in front, once it is due.

    From half of its starvation span on it gets a twentieth of the step, so that its first token
    comes in time whenever arrivals leave that share of capacity. One at a time: a flood of best
    effort takes no more. A policy that counts steps in time states what a twentieth is.
    """
    starved = _starved(view)
    if starved is None:
        return iter(wants)
    if max_tokens is None:
        max_tokens = max(1, int(FLOOR_SHARE * view.limits.max_num_batched_tokens))
    floor = Want(starved.id, max_tokens)
    return chain([floor], (want for want in wants if want.request_id != starved.id))


def _starved(view: View) -> RequestView | None:
    """Who is due for the floor: best effort, which was promised it, before missed promises."""
    prompts = (r for r in view.running if r.first_token is None and r.num_remaining_tokens)
    due = ((_floor_due(r), r) for r in chain(prompts, view.unanswered))
    starved = [(when, r) for when, r in due if when[1] < view.now]
    return min(starved, key=lambda pair: pair[0])[1] if starved else None


def _floor_due(request: RequestView) -> tuple[bool, float]:
    """Whether a request only borrows the floor, and from when on."""
    slo = request.slo
    if isinstance(slo, BestEffort):
        return False, request.arrival + slo.starvation / 2
    return True, request.arrival + DEFAULT_STARVATION / 2
