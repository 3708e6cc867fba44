"""Keep as many promises as the time allows: urgency by slack, then gain density, paced steps.

Every promise is a pace: a stream states its own, a deadline needs its likely remaining tokens
within the time left. A step may last as long as the tightest pace allows; streams that ran ahead
have slack, and half of it may be spent on prompts that would come late otherwise, a quarter on
work that nobody waits for. Prompts are chosen so that most promises are kept, by what the kept
decodes leave of the time; whoever is missed, hopeless or without a promise gets the rest.

Source: the choice is Moore and Hodgson's rule for the fewest late jobs (1968) with two changes:
the machine's speed is what decoding leaves, and jobs are dropped by gain density (value per second
of work to come, after Tempo, arXiv 2504.20068). The time of a program is split over its calls as
Tempo does, by what history foretells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from giusto.core.events import Arrived
from giusto.core.pack import Budget, PreemptFor, pack
from giusto.core.plan import Plan, Refusal, View, Want
from giusto.core.slo import Streaming
from giusto.policies.base import Dependencies, with_floor
from giusto.policies.giusto.choice import Job, Supply, choose
from giusto.policies.giusto.cost import Cost
from giusto.policies.giusto.decodes import Batch, Decodes
from giusto.policies.giusto.demand import Demand
from giusto.policies.giusto.forecast import Forecast
from giusto.policies.giusto.parameters import Parameters
from giusto.policies.giusto.prompts import Prompts, leftovers, num_uncached
from giusto.policies.giusto.step import Step
from giusto.policies.shedding import Shedding, demotions

__all__ = ["Giusto", "Parameters", "make"]


class Giusto:
    """See the module."""

    def __init__(self, parameters: Parameters, deps: Dependencies) -> None:
        self.parameters = parameters
        self.latency = deps.latency
        self.forecast = Forecast(deps.lengths, deps.programs, parameters.level)
        self._decodes = Decodes(self.forecast)
        self._prompts = Prompts(self.forecast, parameters)
        self._shedding = Shedding(deps.latency)
        self._demand = Demand()
        self._ttfts: dict[str, float] = {}
        self._tpots: dict[str, float] = {}

    # Learning

    def observe(self, event: object) -> None:
        self.forecast.observe(event)
        self._prompts.observe(event)
        self._shedding.observe(event)
        self._demand.observe(event)
        if isinstance(event, Arrived):
            slo = event.request.slo
            if isinstance(slo, Streaming):
                for known, target in ((self._ttfts, slo.ttft), (self._tpots, slo.tpot)):
                    if target is not None:
                        known[event.request.service_class] = target

    # Deciding

    def plan(self, view: View) -> Plan:
        step = self._step(view)
        batch = step.batch
        chosen, dropped = self._choose(view, step)
        seated, is_short = self._seated(view, batch, chosen)
        spending = step.spend(chosen)
        order = chain(
            map(Want, batch.kept),
            (Want(job.id) for job in seated),
            map(Want, batch.rest[: spending.num_rest]),
            () if is_short else map(Want, leftovers(view, batch, chosen, dropped)),
        )
        plan = pack(
            with_floor(order, view, max_tokens=spending.floor),
            view,
            budget=Budget(max_prefill_tokens=max(_least(view), spending.prefill)),
            preempt_for=PreemptFor.ANYBODY if is_short else PreemptFor.RUNNING,
            reject=self._refusals(view) if self.parameters.sheds else (),
        )
        return replace(plan, demote=demotions(view.running, view.now))

    def _refusals(self, view: View) -> list[Refusal]:
        """Waiting requests that nothing could save; they may come back when the line is done."""
        lost = self._shedding.lost(view)
        gone = {request.id for request in lost}
        staying = (request for request in view.waiting if request.id not in gone)
        return self._shedding.refusals(lost, staying, view)

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
        step = self._step(view)
        batch = step.batch
        chosen, dropped = self._choose(view, step)
        groups = {
            "decodes to keep in time": batch.kept,
            "prompts to finish in time": [job.id for job in chosen],
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
            "step_decodes_s": step.base,
            "step_most_s": step.most,
        }
        for job in (*chosen, *dropped):
            if job.id == request_id:
                facts["job"] = {**job._asdict(), "due": job.due - view.now}
        return facts

    def _step(self, view: View) -> Step:
        """What the residents need of a step, and how long it may last for others."""
        cost = Cost.of(self.latency, view.running)
        keep_up = self._keep_up(cost, view.now)
        batch = self._decodes.part(view, cost, keep_up)
        limit = view.limits.max_num_batched_tokens
        base = cost.step_time(len(batch.kept))
        full = cost.step_time(len(batch.kept), limit)
        most = min(full, self._step_time(batch, base, self.parameters.headroom))
        some = min(self._step_time(batch, base, self.parameters.spare), batch.pace)
        some = min(most, max(some, keep_up))
        return Step(cost, batch, base, most, some, limit, view.caps.pause)

    def _choose(self, view: View, step: Step) -> tuple[list[Job], list[Job]]:
        cost, batch = step.cost, step.batch
        share = batch.share_left(cost, step.limit)
        first = cost.prompt_tokens(len(batch.kept), step.most, step.limit) * cost.per_prefill
        jobs = self._prompts.jobs(view, batch, share, cost)
        return choose(jobs, view.now, Supply(step.most, first, share))

    def _keep_up(self, cost: Cost, now: float) -> float:
        """Seconds that no deadline may make steps shorter than; 0 where streams bear no more."""
        longest = self.parameters.keep_up * min(self._tpots.values(), default=0.0)
        return self._demand.pace(cost, self.forecast.stride, longest, now) if longest else 0.0

    def _step_time(self, batch: Batch, base: float, share: float) -> float:
        """How long a step may last that spends `share` of the tightest slack."""
        blocking = self.parameters.blocking * min(self._ttfts.values(), default=math.inf)
        return max(base, min(share * batch.slack, max(blocking, 2 * base)))


def _blocks(view: View, request_id: str) -> int:
    """Blocks that a waiting request takes for all that it has to compute."""
    return view.cost(request_id, num_uncached(view.request(request_id), view)).total


def _least(view: View) -> int:
    """Prompt tokens of a step at least: something must move even when streams leave no time."""
    return 1 if view.running else view.limits.block_size


def make(parameters: Parameters, deps: Dependencies) -> Giusto:
    return Giusto(parameters, deps)
