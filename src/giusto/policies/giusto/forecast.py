"""What to expect of a request: how long it gets, when its call is due, whether it is lost."""

from __future__ import annotations

from typing import NamedTuple

from giusto.core.events import Stepped
from giusto.core.plan import StepOutcome
from giusto.core.request import RequestView
from giusto.core.slo import LATE_TOKENS_PER, Program, due
from giusto.policies.giusto.cost import Cost
from giusto.predict.base import LengthPredictor
from giusto.programs.base import ProgramMatcher

#: Weight of the newest step in the running mean of what steps take.
RATE = 0.02


class Ahead(NamedTuple):
    """What a call's program has before it, the call included: calls, and seconds of their work."""

    calls: float
    work: float


class Forecast:
    """Length bounds and outlooks, turned into instants.

    `level` is the chance of the bounds on lengths; `pace` is the seconds that a step takes lately,
    0 before the first; `stride` the tokens that a decode gets of a step, 1 without speculation.
    """

    def __init__(self, lengths: LengthPredictor, programs: ProgramMatcher, level: float) -> None:
        self.lengths = lengths
        self.level = level
        self._programs = programs
        self.pace = 0.0
        self.stride = 1.0

    def observe(self, event: object) -> None:
        if isinstance(event, Stepped):
            outcome = event.outcome
            took = outcome.ended - outcome.started
            self.pace += (RATE if self.pace else 1.0) * (took - self.pace)
            if outcome.shape.decode_seqs:
                self.stride += RATE * (_mean_yield(outcome) - self.stride)

    def remaining(self, request: RequestView) -> float:
        """Output tokens to come, a bound."""
        return self.lengths.remaining(request, self.level)

    def steps(self, request: RequestView) -> float:
        """Steps to come in which it decodes, a bound."""
        return self.remaining(request) / self.stride

    def is_lost(self, request: RequestView) -> bool:
        """Demoted, or a stream with more late tokens than its likely length forgives."""
        if request.is_demoted or not request.late_tokens:
            return request.is_demoted
        length = request.num_output_tokens + self.lengths.remaining(request)
        return request.late_tokens > length / LATE_TOKENS_PER

    def call_due(self, request: RequestView) -> float:
        """When a call must end for its program to make it: the time left, split by what is to come.

        By the tokens of this call and of the longest way through those that history foretells,
        tools left out.
        """
        when = due(request.slo, request)
        if not isinstance(request.slo, Program):
            return when
        outlook = self._programs.outlook(request)
        own = request.num_output_tokens + self.remaining(request)
        share = own / (own + outlook.path_tokens)
        return request.arrival + max(0.0, when - request.arrival - outlook.tool_time) * share

    def ahead(self, request: RequestView, cost: Cost) -> Ahead:
        """The calls that are still to be answered for the promise, and the work of all but this."""
        if not isinstance(request.slo, Program):
            return Ahead(1.0, 0.0)
        outlook = self._programs.outlook(request)
        steps = outlook.output_tokens / self.stride
        work = outlook.prompt_tokens * cost.per_prefill + steps * cost.per_decode
        return Ahead(1.0 + outlook.calls, work)


def _mean_yield(outcome: StepOutcome) -> float:
    """Tokens per request that got any."""
    if not outcome.shape.nodes:
        return 1.0
    counts = [len(made.tokens) for made in outcome.yields.values() if made.tokens]
    return sum(counts) / len(counts) if counts else 1.0
