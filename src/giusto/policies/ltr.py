"""Rank by predicted remaining length; who was passed over for long is promoted for a while.

Residents first, then the queue, each the shortest first. A request that none of the last
`threshold` steps served goes before all that are not promoted, for `quantum` steps of its own.

Source: Fu et al., "Efficient LLM scheduling by learning to rank" (arXiv 2408.15792). Differs: ranks
are bounds of the length predictor on the tokens to come, not scores of a trained ranker for whole
answers; nobody in the queue takes a resident's place; and whoever has waited half a starvation
span for a first token gets a twentieth of the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import nsmallest
from itertools import chain

from giusto.core.events import Arrived, Finished, Rejected, Stepped
from giusto.core.pack import pack
from giusto.core.plan import Plan, View, Want
from giusto.core.request import RequestView
from giusto.policies.base import Dependencies, Remembered, with_floor


@dataclass(frozen=True, slots=True)
class Parameters:
    """threshold: steps without service after which a request is promoted; quantum: steps of
    service until it is no longer."""

    threshold: int = 200
    quantum: int = 10

    def __post_init__(self) -> None:
        for name in ("threshold", "quantum"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class Ltr:
    """See the module. Counts steps: who was last served when, and what is left of a promotion."""

    def __init__(self, parameters: Parameters, deps: Dependencies) -> None:
        self.parameters = parameters
        self.lengths = Remembered(deps.lengths)
        self._next_step = 0
        self._idle_since: dict[str, int] = {}
        self._quanta: dict[str, int] = {}

    def observe(self, event: object) -> None:
        self.lengths.observe(event)
        match event:
            case Arrived(request):
                self._idle_since[request.id] = self._next_step
            case Stepped(outcome):
                self._next_step = outcome.step + 1
                for request_id in outcome.yields:
                    self._serve(request_id, outcome.step)
            case Finished(request_id) | Rejected(request_id):
                self._idle_since.pop(request_id, None)
                self._quanta.pop(request_id, None)

    def _serve(self, request_id: str, step: int) -> None:
        """Book a step of service: it is paid from the quantum of who was promoted."""
        if request_id in self._idle_since:
            left = self._quanta.pop(request_id, 0)
            if step - self._idle_since[request_id] >= self.parameters.threshold:
                left = self.parameters.quantum
            if left > 1:
                self._quanta[request_id] = left - 1
            self._idle_since[request_id] = step + 1

    def plan(self, view: View) -> Plan:
        latest = view.step - self.parameters.threshold
        idle_since, quanta, remaining = self._idle_since, self._quanta, self.lengths.remaining

        def rank(request: RequestView) -> tuple[bool, float]:
            request_id = request.id
            is_promoted = request_id in quanta or idle_since.get(request_id, view.step) <= latest
            return not is_promoted, remaining(request)

        # `pack` reads no further than the slots, the first that does not fit, and the floor's.
        waiting = nsmallest(view.free_slots + 2, view.waiting, key=rank)
        order = chain(sorted(view.running, key=rank), waiting)
        return pack(with_floor((Want(request.id) for request in order), view), view)


def make(parameters: Parameters, deps: Dependencies) -> Ltr:
    return Ltr(parameters, deps)
