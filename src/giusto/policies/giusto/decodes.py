"""Who decodes: promises to keep by urgency, and the rest; what the former need of the steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import chain

from giusto.core.plan import View
from giusto.core.request import RequestView
from giusto.core.slo import Streaming, due, is_missed
from giusto.policies.giusto.cost import Cost
from giusto.policies.giusto.forecast import Forecast

#: Tokens that a deadline is ahead of its schedule, against noise.
MARGIN = 2


@dataclass(slots=True)
class Batch:
    """Residents: ids of decodes to serve now and later, what the former need, and prompts.

    kept: promises to keep, the most urgent first; rest: decodes without a promise that could be
    kept, the most hopeful first. slack: seconds until the tightest stream's next token is due;
    pace: seconds that a step may last for the tightest deadline, tightest for the tightest stream;
    rate: decodes a second that all of them need; num_timed: how many of them have deadlines;
    keep_up: seconds that no deadline may make steps shorter than.
    """

    kept: list[str] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)
    prompts: list[RequestView] = field(default_factory=list)
    slack: float = math.inf
    pace: float = math.inf
    tightest: float = math.inf
    rate: float = 0.0
    num_timed: int = 0
    keep_up: float = 0.0

    def share_left(self, cost: Cost, most: int) -> float:
        """Seconds of prefill a second, by its price, that decoding the kept at their pace leaves.

        `most` prompt tokens fit into a step. Above 1 where they cost next to nothing.
        """
        pace = min(self.pace, self.tightest)
        if pace == math.inf:
            return 1.0
        num_decodes = math.ceil(self.rate * pace)
        return cost.prompt_tokens(num_decodes, pace, most) * cost.per_prefill / pace


class Decodes:
    """Parts the residents of a view."""

    def __init__(self, forecast: Forecast) -> None:
        self.forecast = forecast

    def part(self, view: View, cost: Cost, keep_up: float) -> Batch:
        now, forecast, batch = view.now, self.forecast, Batch(keep_up=keep_up)
        streams: list[tuple[float, str]] = []
        timed: list[RequestView] = []
        rest: list[tuple[float, float, str]] = []
        num_decodes = 0
        for request in view.running:
            num_remaining = request.num_remaining_tokens
            if num_remaining != 1 or not request.num_output_tokens:
                if num_remaining:
                    batch.prompts.append(request)
                continue
            num_decodes += 1
            slo = request.slo
            when = due(slo, request)
            if when == math.inf:
                rest.append((2.0, request.arrival, request.id))
            elif is_missed(slo, request, now) or forecast.is_lost(request):
                rest.append((1.0, request.arrival, request.id))
            elif isinstance(slo, Streaming):
                streams.append((when - now, request.id))
                pace = (slo.tpot or math.inf) * forecast.stride
                batch.tightest = min(batch.tightest, pace)
                batch.rate += 1 / pace
            else:
                timed.append(request)
        batch.slack = min(streams, default=(math.inf, ""))[0]
        fastest = max(cost.step_time(num_decodes - len(rest)), keep_up)
        kept = sorted(chain(streams, self._deadlines(timed, now, fastest, batch, rest)))
        rest.sort()
        batch.kept = [request_id for _, request_id in kept]
        batch.rest = [request_id for _, _, request_id in rest]
        return batch

    def _deadlines(
        self,
        timed: list[RequestView],
        now: float,
        fastest: float,
        batch: Batch,
        rest: list[tuple[float, float, str]],
    ) -> list[tuple[float, str]]:
        """Those that can still be kept with steps no shorter than `fastest`, and their slack; the
        others go to the rest."""
        forecast, kept = self.forecast, []
        for request in timed:
            span = forecast.call_due(request) - now
            left = forecast.steps(request)
            pace = span / (left + MARGIN)
            if pace < fastest:
                rest.append((0.0, request.arrival, request.id))
                continue
            batch.pace = min(batch.pace, pace)
            batch.rate += 1 / pace
            kept.append((span - left * fastest, request.id))
        batch.num_timed = len(kept)
        return kept
