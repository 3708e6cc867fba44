"""Shortest job first, by predicted length: residents first, then who waits with the least work.

Work is the prompt still to compute and the length bound of the answer, in tokens. With
`preemptive=true` residents compete too: a shorter request may take a longer one's place.

Source: shortest job first, and with `preemptive` shortest remaining processing time (Schrage
1968). Differs: lengths are bounds of the predictor, and whoever has waited half a starvation span
for a first token gets a twentieth of the step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import nsmallest
from itertools import chain

from giusto.core.pack import PreemptFor, pack
from giusto.core.plan import Plan, View, Want
from giusto.core.request import RequestView
from giusto.policies.base import Dependencies, Remembered, with_floor


@dataclass(frozen=True, slots=True)
class Parameters:
    """preemptive: whether a shorter request that waits may take the place of a resident."""

    preemptive: bool = False


class Sjf:
    """See the module."""

    def __init__(self, parameters: Parameters, deps: Dependencies) -> None:
        self.parameters = parameters
        self.lengths = Remembered(deps.lengths)

    def observe(self, event: object) -> None:
        self.lengths.observe(event)

    def plan(self, view: View) -> Plan:
        if self.parameters.preemptive:
            order: Iterable[RequestView] = sorted(chain(view.running, view.waiting), key=self._work)
            preempt_for = PreemptFor.ANYBODY
        else:
            # `pack` reads no further than the slots, the first that does not fit, and the floor's.
            waiting = nsmallest(view.free_slots + 2, view.waiting, key=self._work)
            order = chain(view.running, waiting)
            preempt_for = PreemptFor.RUNNING
        wants = (Want(request.id) for request in order)
        return pack(with_floor(wants, view), view, preempt_for=preempt_for)

    def _work(self, request: RequestView) -> float:
        """Tokens to come."""
        if request.resident_since is None:
            return request.num_prompt_tokens + self.lengths.total(request)
        return request.num_remaining_tokens + self.lengths.remaining(request)


def make(parameters: Parameters, deps: Dependencies) -> Sjf:
    return Sjf(parameters, deps)
