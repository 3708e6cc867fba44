"""Earliest due first, without the lost: who can no longer make it is refused, or demoted.

A waiting request that has sent nothing is refused as soon as even an idle machine would be too
late for it; its client may try again elsewhere. One that has sent a token ends, without its
promise. Best effort is never refused.

Source: ours; the order is that of `edf` (Liu and Layland 1973), the test whether what a request
needs at least, its prompt by the latency model, still fits before it is due. How long an answer
will be is not guessed: a guess that refused a whole class would never be corrected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from giusto.core.events import Finished, Rejected
from giusto.core.latency import BatchShape
from giusto.core.pack import pack
from giusto.core.plan import Plan, Refusal, View, Want
from giusto.core.request import Reason, RequestView
from giusto.core.slo import due, is_missed
from giusto.policies.base import Dependencies, earliest_due, with_floor


@dataclass(frozen=True, slots=True)
class Parameters:
    """Nothing to set."""


class EdfShed:
    """See the module."""

    def __init__(self, deps: Dependencies) -> None:
        self.latency = deps.latency
        self._latest: dict[str, float] = {}

    def observe(self, event: object) -> None:
        if isinstance(event, Finished | Rejected):
            self._latest.pop(event.request_id, None)

    def plan(self, view: View) -> Plan:
        lost = self._lost(view)
        waiting = view.waiting
        if lost:
            gone = {request.id for request in lost}
            waiting = [request for request in waiting if request.id not in gone]
        wants = (Want(request.id) for request in earliest_due(view, waiting))
        plan = pack(with_floor(wants, view), view, reject=self._refusals(lost, waiting, view))
        return replace(plan, demote=tuple(_demotions(view)))

    def _lost(self, view: View) -> list[RequestView]:
        """Waiting requests without an answer that would be late even if served alone from now.

        Ten thousand may wait, so the latest start of each is kept. It is looked at again when it
        has come: by then prefixes may be cached, or the machine faster.
        """
        now, latest, unknown = view.now, self._latest, -math.inf
        doubtful = [r for r in view.waiting if now > latest.get(r.id, unknown)]
        for request in doubtful:
            latest[request.id] = self._latest_start(request, view)
        return [request for request in doubtful if now > latest[request.id]]

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

    def _refusals(
        self, lost: Sequence[RequestView], waiting: Sequence[RequestView], view: View
    ) -> list[Refusal]:
        """Refuse the lost; they may come back when the prompts that wait now are computed."""
        if not lost:
            return []
        chunk = view.limits.max_num_batched_tokens
        backlog = sum(request.num_prompt_tokens for request in waiting)
        step = self.latency.step_time(BatchShape(prefill_tokens=chunk))
        retry_after = max(1.0, backlog / chunk * step)
        return [Refusal(r.id, _reason(r, view.now), retry_after) for r in lost]


def _reason(request: RequestView, now: float) -> Reason:
    is_past = now > due(request.slo, request)
    return Reason.DEADLINE_PASSED if is_past else Reason.DEADLINE_UNREACHABLE


def _demotions(view: View) -> list[Refusal]:
    """Who has begun and missed its promise; who has nothing left to compute ends as it is."""
    return [
        Refusal(request.id, Reason.DEADLINE_PASSED)
        for request in chain(view.running, view.waiting)
        if request.has_begun
        and not request.is_demoted
        and request.num_remaining_tokens
        and is_missed(request.slo, request, view.now)
    ]


def make(parameters: Parameters, deps: Dependencies) -> EdfShed:
    return EdfShed(deps)
