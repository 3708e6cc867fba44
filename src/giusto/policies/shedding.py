"""Whose promise is lost for certain: who waits is refused, who has begun goes on without it.

Lost is a waiting request that even an idle machine would be too late for: what it needs at least,
its prompt by the latency model, no longer fits before it is due. How long an answer will be is not
guessed: a guess that refused a whole class would never be corrected.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from giusto.core.events import Finished, Rejected
from giusto.core.latency import BatchShape, LatencyModel
from giusto.core.plan import Refusal, View
from giusto.core.request import Reason, RequestView
from giusto.core.slo import due, is_missed


class Shedding:
    """Finds the lost in a line of thousands: remembers when each has to start at the latest."""

    def __init__(self, latency: LatencyModel) -> None:
        self.latency = latency
        self._latest: dict[str, float] = {}

    def observe(self, event: object) -> None:
        if isinstance(event, Finished | Rejected):
            self._latest.pop(event.request_id, None)

    def lost(self, view: View) -> list[RequestView]:
        """Waiting requests without an answer that would be late even if served alone from now.

        The latest start of each is looked at again when it has come: by then prefixes may be
        cached, or the machine faster.
        """
        now, latest, unknown = view.now, self._latest, -math.inf
        doubtful = [r for r in view.waiting if now > latest.get(r.id, unknown)]
        for request in doubtful:
            latest[request.id] = self._latest_start(request, view)
        return [request for request in doubtful if now > latest[request.id]]

    def refusals(
        self, lost: Sequence[RequestView], staying: Iterable[RequestView], view: View
    ) -> list[Refusal]:
        """Refuse the lost; they may come back when the prompts that stay in line are computed."""
        if not lost:
            return []
        chunk = view.limits.max_num_batched_tokens
        backlog = sum(request.num_prompt_tokens for request in staying)
        step = self.latency.step_time(BatchShape(prefill_tokens=chunk))
        retry_after = max(1.0, backlog / chunk * step)
        return [Refusal(r.id, reason(r, view.now), retry_after) for r in lost]

    def _latest_start(self, request: RequestView, view: View) -> float:
        """When it must be served, alone from then on, to be in time; inf for who is never shed."""
        when = due(request.slo, request)
        if when == math.inf or request.has_begun:
            return math.inf
        step_time = self.latency.step_time
        end, chunk = request.num_tokens, view.limits.max_num_batched_tokens
        kept = request.num_computed_tokens + view.cost(request.id, 1).cached_tokens
        for start in range(kept, end, chunk):
            tokens = min(chunk, end - start)
            when -= step_time(BatchShape(prefill_tokens=tokens, prefill_kv=tokens * start))
        return when


def demotions(requests: Iterable[RequestView], now: float) -> tuple[Refusal, ...]:
    """Those of `requests` that have begun and missed their promise, once each.

    Who has nothing left to compute ends as it is.
    """
    return tuple(
        Refusal(request.id, Reason.DEADLINE_PASSED)
        for request in requests
        if request.has_begun
        and not request.is_demoted
        and request.num_remaining_tokens
        and is_missed(request.slo, request, now)
    )


def reason(request: RequestView, now: float) -> Reason:
    """Why one that cannot be in time is refused."""
    is_past = now > due(request.slo, request)
    return Reason.DEADLINE_PASSED if is_past else Reason.DEADLINE_UNREACHABLE
