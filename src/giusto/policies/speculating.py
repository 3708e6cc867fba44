"""Speculation beside any policy: its plan first, then candidates with the room that it leaves.

Certain work and its order are the policy's alone. What may be verified beside it is asked here;
which candidates are, is decided between drafting and verification (`spec.select`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from giusto.core.latency import LatencyModel
from giusto.core.pack import speculate
from giusto.core.plan import Plan, Policy, Spec, View
from giusto.core.request import RequestView
from giusto.core.shape import shape_of
from giusto.core.slo import is_missed, owed


class Speculating:
    """A policy whose decodes speculate.

    `spec` is the most that one of them asks for; `nodes` is what all of a step share.
    """

    def __init__(self, policy: Policy, spec: Spec, nodes: int, latency: LatencyModel) -> None:
        self.policy = policy
        self._spec = spec
        self._nodes = nodes
        self._latency = latency

    def plan(self, view: View) -> Plan:
        plan = self.policy.plan(view)
        decodes = [request for request in _granted(plan, view) if _is_decode(request)]
        if not decodes:
            return plan
        step_time = self._latency.step_time(shape_of(plan, view.request))
        # What falls due while the next step runs must come with this one.
        until = view.now + 2 * step_time
        each = min(self._spec.max_nodes, max(1, self._nodes // len(decodes)))
        return speculate(
            plan,
            view,
            (
                (r.id, replace(self._spec, max_nodes=each, need=_need(r, view.now, until)))
                for r in decodes
            ),
        )

    def observe(self, event: object) -> None:
        self.policy.observe(event)

    def __getattr__(self, name: str) -> Any:
        """What else the policy has to say, such as its explanations."""
        return getattr(self.policy, name)


def _granted(plan: Plan, view: View) -> Iterator[RequestView]:
    return (view.request(grant.request_id) for grant in plan.grants)


def _is_decode(request: RequestView) -> bool:
    """Whether it only has its last token to compute, which is an output of its own."""
    return (
        request.num_output_tokens > 0
        and request.num_remaining_tokens == 1
        and not request.num_in_flight_tokens
    )


def _need(request: RequestView, now: float, until: float) -> float:
    """Tokens that are due until then; one comes in any case, and a missed promise owes no more."""
    if request.is_demoted or is_missed(request.slo, request, now):
        return 1.0
    return float(max(1, owed(request.slo, request, until)))
