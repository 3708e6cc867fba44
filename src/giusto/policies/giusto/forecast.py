"""What to expect of a request: how long it gets, when its call is due, whether it is lost."""

from __future__ import annotations

from giusto.core.events import Stepped
from giusto.core.plan import StepOutcome
from giusto.core.request import RequestView
from giusto.core.slo import LATE_TOKENS_PER, Program, due
from giusto.policies.giusto.cost import Cost
from giusto.predict.base import LengthPredictor
from giusto.programs.base import ProgramMatcher

#: Weight of the newest step in the running mean of what decodes get of it.
RATE = 0.02


class Forecast:
    """Length bounds and outlooks, turned into instants.

    `level` is the chance of the bounds on lengths; `stride` the tokens that a decode gets of a step
    lately, 1 without speculation.
    """

    def __init__(self, lengths: LengthPredictor, programs: ProgramMatcher, level: float) -> None:
        self.lengths = lengths
        self.level = level
        self._programs = programs
        self.stride = 1.0

    def observe(self, event: object) -> None:
        if isinstance(event, Stepped):
            outcome = event.outcome
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

    def later(self, request: RequestView, cost: Cost) -> float:
        """Seconds of work of the calls that are still to come for its promise to be kept."""
        if not isinstance(request.slo, Program):
            return 0.0
        outlook = self._programs.outlook(request)
        steps = outlook.output_tokens / self.stride
        return outlook.prompt_tokens * cost.per_prefill + steps * cost.per_decode


def _mean_yield(outcome: StepOutcome) -> float:
    """Tokens per request that got any."""
    if not outcome.shape.nodes:
        return 1.0
    counts = [len(made.tokens) for made in outcome.yields.values() if made.tokens]
    return sum(counts) / len(counts) if counts else 1.0
