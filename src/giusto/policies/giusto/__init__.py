"""Keep as many promises as the time allows: urgency by slack, then gain density, paced steps.

Every promise is a pace: a stream states its own, a deadline needs its likely remaining tokens
within the time left. A step may last as long as the tightest pace allows; streams that ran ahead
have slack, and half of it may be spent on prompts that would come late otherwise, a quarter on
work that nobody waits for. Prompts are chosen so that most promises are kept, by what the kept
decodes leave of the time; whoever is missed, hopeless or without a promise gets the rest.

Source: the choice is Moore and Hodgson's rule for the fewest late jobs (1968) with two changes:
the machine's speed is what decoding leaves, and jobs are dropped by gain density (value per second
of work to come, after Tempo, arXiv 2504.20068). The time of a program is split over its calls as
Tempo does, by what history foretells; streams that are ahead skip steps that deadlines need short.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from giusto.core.events import Arrived, Finished, Rejected
from giusto.core.pack import Budget, PreemptFor, pack
from giusto.core.plan import Plan, View, Want
from giusto.core.slo import BestEffort, Streaming
from giusto.policies.base import FLOOR_SHARE, Dependencies, with_floor
from giusto.policies.giusto.choice import Job, Supply, choose
from giusto.policies.giusto.cost import Cost
from giusto.policies.giusto.decodes import Batch, Decodes
from giusto.policies.giusto.forecast import Forecast
from giusto.policies.giusto.parameters import Parameters
from giusto.policies.giusto.prompts import Prompts, others

__all__ = ["Giusto", "Parameters", "make"]

#: What takes no more than this share of a step costs nothing.
FREE_SHARE = 0.01


class Giusto:
    """See the module."""

    def __init__(self, parameters: Parameters, deps: Dependencies) -> None:
        self.parameters = parameters
        self.latency = deps.latency
        self.forecast = Forecast(deps.lengths, deps.programs)
        self._decodes = Decodes(self.forecast, parameters)
        self._prompts = Prompts(self.forecast, parameters)
        self._ttfts: dict[str, float] = {}
        self._has_promises = False

    # Learning

    def observe(self, event: object) -> None:
        self.forecast.observe(event)
        match event:
            case Arrived(request):
                self._has_promises |= not isinstance(request.slo, BestEffort)
                if isinstance(request.slo, Streaming) and request.slo.ttft is not None:
                    self._ttfts[request.service_class] = request.slo.ttft
            case Finished(request_id) | Rejected(request_id):
                self._prompts.forget(request_id)

    # Deciding

    def plan(self, view: View) -> Plan:
        cost, batch, base, most = self._step(view)
        some = min(most, self._step_time(batch, base, self.parameters.spare), batch.pace)
        chosen, dropped = self._choose(view, cost, batch, base, most)
        ids = {job.id for job in (*chosen, *dropped)}
        soon = view.now + self.parameters.eager * min(self._ttfts.values(), default=math.inf)
        wanted = sum(job.work for job in chosen if job.due < soon)
        left = max(0.0, some - base)
        num_rest = int(max(FLOOR_SHARE * most, left - wanted) / cost.per_decode)
        rest = batch.rest[:num_rest] if view.caps.pause else batch.rest
        prefill = max(min(wanted, most - base), left - len(rest) * cost.per_decode)
        prefill = max(prefill, FREE_SHARE * base)
        floor = int(max(FLOOR_SHARE * most, prefill - wanted) / cost.per_prefill)
        seated, is_short = self._seated(view, batch, chosen)
        order = chain(
            map(Want, batch.kept),
            (Want(job.id) for job in seated),
            (Want(request_id, 0) for request_id in batch.paused),
            map(Want, rest),
            () if is_short else self._leftovers(view, batch, ids, dropped),
        )
        return pack(
            with_floor(order, view, max_tokens=max(1, floor)),
            view,
            budget=Budget(max_prefill_tokens=_tokens(prefill, view, cost)),
            preempt_for=PreemptFor.ANYBODY if is_short else PreemptFor.RUNNING,
        )

    def _leftovers(
        self, view: View, batch: Batch, ids: set[str], dropped: Sequence[Job]
    ) -> Iterator[Want]:
        """Prompts of those who have no promise that is worth its time now."""
        reserve = self.parameters.reserve if self._has_promises else 0.0
        yield from (Want(job.id) for job in dropped)
        yield from map(Want, others(view, batch, ids, reserve))

    def _seated(
        self, view: View, batch: Batch, chosen: Sequence[Job]
    ) -> tuple[Sequence[Job], bool]:
        """Those of the chosen that find a place, and whether somebody has to yield it to them.

        Only decodes without a promise to keep yield, and nobody else is let in at such a step.
        """
        waiting = [job.id for job in chosen if view.request(job.id).resident_since is None]
        slots, blocks = view.free_slots, view.free_blocks
        costs = {name: _blocks(view, name) for name in waiting}
        if not self.parameters.yields or (len(waiting) <= slots and sum(costs.values()) <= blocks):
            return chosen, False
        pin = view.pin.request_id if view.pin else None
        for request_id in batch.rest:
            if request_id != pin and (freed := view.freeable(request_id)):
                slots += 1
                blocks += freed
        seated = []
        for job in chosen:
            if job.id in costs:
                slots -= 1
                blocks -= costs[job.id]
                if slots < 0 or blocks < 0:
                    break
            seated.append(job)
        return seated, True

    def explain(self, view: View, request_id: str) -> dict[str, Any]:
        """In which group a request stands, in which place of it, and what the group is up against.

        Seconds; `density` is value per second of work to come.
        """
        cost, batch, base, most = self._step(view)
        chosen, dropped = self._choose(view, cost, batch, base, most)
        groups = {
            "decodes to keep in time": batch.kept,
            "prompts to finish in time": [job.id for job in chosen],
            "streams that are ahead": batch.paused,
            "decodes without a promise": batch.rest,
            "prompts given up for now": [job.id for job in dropped],
        }
        named = ((name, ids) for name, ids in groups.items() if request_id in ids)
        group, ids = next(named, ("prompts without a promise", [request_id]))
        facts: dict[str, Any] = {
            "group": group,
            "place": ids.index(request_id),
            "of": len(ids),
            "remaining_tokens": self.forecast.remaining(view.request(request_id)),
            "step_decodes_s": base,
            "step_most_s": most,
        }
        for job in (*chosen, *dropped):
            if job.id == request_id:
                facts["job"] = {**job._asdict(), "due": job.due - view.now}
        return facts

    def _step(self, view: View) -> tuple[Cost, Batch, float, float]:
        """What the residents need of a step: prices, who decodes, seconds at least and at most."""
        cost = Cost.of(self.latency, view.running)
        batch = self._decodes.part(view, cost)
        base = cost.decode_time(len(batch.kept))
        full = base + view.limits.max_num_batched_tokens * cost.per_prefill
        return cost, batch, base, min(full, self._step_time(batch, base, self.parameters.headroom))

    def _choose(
        self, view: View, cost: Cost, batch: Batch, base: float, most: float
    ) -> tuple[list[Job], list[Job]]:
        jobs = self._prompts.jobs(view, batch, cost)
        return choose(jobs, view.now, Supply(most, base, batch.share_left(cost)))

    def _step_time(self, batch: Batch, base: float, share: float) -> float:
        """How long a step may last that spends `share` of the tightest slack."""
        blocking = self.parameters.blocking * min(self._ttfts.values(), default=math.inf)
        return max(base, min(share * batch.slack, max(blocking, 2 * base)))


def _blocks(view: View, request_id: str) -> int:
    """Blocks that a waiting request takes for all that it has to compute."""
    cached = view.cost(request_id, 1).cached_tokens
    return view.cost(request_id, view.request(request_id).num_remaining_tokens - cached).total


def _tokens(prefill: float, view: View, cost: Cost) -> int:
    """Seconds of prefill as tokens; something must move even when streams leave no time."""
    tokens = int(min(prefill / cost.per_prefill, view.limits.max_num_batched_tokens))
    return max(1 if view.running else view.limits.block_size, tokens)


def make(parameters: Parameters, deps: Dependencies) -> Giusto:
    return Giusto(parameters, deps)
