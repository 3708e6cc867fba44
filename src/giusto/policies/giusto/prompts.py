"""Prompts as jobs: whose promise can still be kept, and what keeping it takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from heapq import nsmallest
from itertools import chain, islice

from giusto.core.events import Finished, Rejected
from giusto.core.plan import View
from giusto.core.request import RequestView
from giusto.core.slo import Streaming, due, is_missed
from giusto.policies.giusto.choice import Job
from giusto.policies.giusto.cost import Cost
from giusto.policies.giusto.decodes import MARGIN, Batch
from giusto.policies.giusto.forecast import Forecast
from giusto.policies.giusto.parameters import Parameters
from giusto.policies.giusto.shares import Shares

#: Of all time that a deadline's prompt may count on, at least.
LEAST_SHARE = 0.25


class Prompts:
    """Jobs of a view's prompts. Remembers when waiting requests are due."""

    def __init__(self, forecast: Forecast, parameters: Parameters) -> None:
        self.forecast = forecast
        self._parameters = parameters
        self.shares = Shares()
        self._dues: dict[str, float] = {}

    def observe(self, event: object) -> None:
        self.shares.observe(event)
        if isinstance(event, Finished | Rejected):
            self._dues.pop(event.request_id, None)

    def jobs(self, view: View, batch: Batch, share: float, cost: Cost) -> list[Job]:
        """Prompts whose promise can still be kept: residents and the tightest of those waiting."""
        parameters = self._parameters
        has_room = view.free_slots or (parameters.yields and batch.rest)
        window = parameters.window if has_room else 0
        waiting = nsmallest(window, self._promised(view, cost)) if window else []
        usual = max(2 * cost.base, batch.tightest if batch.tightest < math.inf else 0.0)
        favours = self.shares.favours()
        jobs = []
        for request in chain(batch.prompts, (view.waiting[index] for _, index in waiting)):
            job = self._job(request, view, batch, usual, share, cost)
            if job is not None:
                favour = favours.get(request.tenant, 1.0)
                jobs.append(job._replace(density=job.density * favour))
        jobs.sort()
        return jobs

    def _promised(self, view: View, cost: Cost) -> Iterator[tuple[float, int]]:
        """Due times and places in line of waiting requests that could make it if alone.

        Goes over the whole line, so it asks for one length per class only.
        """
        memo, now = self._dues, view.now
        needs: dict[str, float] = {}
        for index, request in enumerate(view.waiting):
            when = memo.get(request.id)
            if when is None or request.num_output_tokens:
                when = memo[request.id] = due(request.slo, request)
            if when < now or when == math.inf:
                continue
            need = needs.get(request.service_class)
            if need is None:
                is_stream = isinstance(request.slo, Streaming)
                left = 0.0 if is_stream else self.forecast.steps(request)
                need = needs[request.service_class] = left * cost.base
            if now + need <= when:
                yield when, index

    def _job(
        self,
        request: RequestView,
        view: View,
        batch: Batch,
        usual: float,
        share: float,
        cost: Cost,
    ) -> Job | None:
        """The prompt of a request as a job; None without a promise that could be kept.

        `share` of all time is for prompts; `usual` is the pace of streams.
        """
        forecast = self.forecast
        when = due(request.slo, request)
        missed = is_missed(request.slo, request, view.now)
        if missed or math.isinf(when) or forecast.is_lost(request):
            return None
        work = max(1, num_uncached(request, view)) * cost.per_prefill
        left = forecast.steps(request)
        extra = 0.0
        if isinstance(request.slo, Streaming):
            rate = 1 / (request.slo.tpot * forecast.stride) if request.slo.tpot else 0.0
        else:
            when = forecast.call_due(request)
            # The pace of streams if there is time for it, else what its prompt leaves.
            reach = 2 * cost.base + work / max(share, LEAST_SHARE)
            pace = min(usual, (when - view.now - reach) / (left + MARGIN))
            if pace < max(cost.base, batch.keep_up):
                return None
            rate = 1 / pace
            when -= (left + MARGIN) * pace
            # What shorter steps cost, shared by all whose deadlines need them.
            extra = cost.base * (1 - pace / usual) / (1 + batch.num_timed)
        if when < view.now + work:
            return None
        own = work + left * (cost.per_decode + extra)
        density = request.weight / (own + forecast.later(request, cost))
        return Job(when, request.id, work, rate * (cost.per_decode + extra), density)


def num_uncached(request: RequestView, view: View) -> int:
    """Tokens that a request has to compute still, after any prefix hit."""
    tokens = request.num_remaining_tokens
    if request.resident_since is None:
        tokens -= view.cost(request.id, 1).cached_tokens
    return tokens


def leftovers(
    view: View, batch: Batch, chosen: Sequence[Job], dropped: Sequence[Job]
) -> Iterator[str]:
    """Prompts that are not chosen: those given up for now, then missed promises and best effort,
    residents before the line, each in order of arrival."""
    jobs = {job.id for job in (*chosen, *dropped)}
    yield from (job.id for job in dropped)
    yield from (r.id for r in batch.prompts if r.id not in jobs)
    yield from islice((r.id for r in view.waiting if r.id not in jobs), view.free_slots)
