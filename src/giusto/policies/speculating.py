"""Speculation beside any policy: its plan first, then candidates with the room that it leaves.

Certain work and its order are the policy's alone. What may be verified beside it is asked here;
which candidates are, is decided between drafting and verification (`spec.select`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from giusto.core.latency import BatchShape
from giusto.core.pack import speculate
from giusto.core.plan import Plan, Policy, Spec, View
from giusto.core.request import RequestView
from giusto.core.shape import shape_of


class Wish(Protocol):
    """What decodes ask for in one step; `spec.wishes` has the ways."""

    def specs(
        self, decodes: Sequence[RequestView], now: float, shape: BatchShape
    ) -> tuple[int, list[Spec]]:
        """Nodes that all may have together, and what each decode asks for."""
        ...

    def observe(self, event: object) -> None: ...


class Speculating:
    """A policy whose decodes speculate."""

    def __init__(self, policy: Policy, wish: Wish) -> None:
        self.policy = policy
        self.wish = wish

    def plan(self, view: View) -> Plan:
        plan = self.policy.plan(view)
        decodes = [request for request in _granted(plan, view) if _is_decode(request)]
        if not decodes:
            return plan
        nodes, specs = self.wish.specs(decodes, view.now, shape_of(plan, view.request))
        asked = zip((request.id for request in decodes), specs, strict=True)
        return speculate(plan, view, asked, max_nodes=nodes)

    def observe(self, event: object) -> None:
        self.policy.observe(event)
        self.wish.observe(event)

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
