"""Speculation of one engine or replica: draft, choose, learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from giusto.core.latency import BatchShape, LatencyModel
from giusto.core.plan import Plan, Spec
from giusto.core.request import Request
from giusto.spec.drafter import Ask, Drafter
from giusto.spec.guessing import Computing
from giusto.spec.select import Select
from giusto.spec.tree import TokenTree


@dataclass(slots=True)
class Speculator:
    """One drafter and one rule of choice, over one latency model."""

    drafter: Drafter
    select: Select
    latency: LatencyModel

    def draft(self, plan: Plan, requests: Mapping[str, Request]) -> dict[str, TokenTree]:
        """Candidates for each grant that may speculate, where the drafter has any."""
        asks = [
            ask_for(requests[grant.request_id], grant.spec)
            for grant in plan.grants
            if grant.spec is not None
        ]
        trees = self.drafter.draft(asks) if asks else []
        return {
            ask.request_id: tree for ask, tree in zip(asks, trees, strict=True) if len(tree) > 0
        }

    def take_work(self) -> tuple[int, int]:
        """Passes of a draft model, and tokens in them, since this was asked last."""
        return self.drafter.take_work() if isinstance(self.drafter, Computing) else (0, 0)

    def choose(
        self, drafts: Mapping[str, TokenTree], plan: Plan, shape: BatchShape
    ) -> dict[str, TokenTree]:
        """The parts of the trees that this step verifies; `shape` is the step's without them."""
        chosen = self.select(drafts, plan, shape, self.latency)
        return {name: drafts[name].take(nodes) for name, nodes in chosen.items() if nodes}

    def learn(self, drafts: Mapping[str, TokenTree], drawn: Mapping[str, Sequence[int]]) -> None:
        """Compare all candidates, verified or not, with what the target drew."""
        for request_id, tree in drafts.items():
            self.drafter.learn(request_id, tree, drawn[request_id])

    def forget(self, request_id: str) -> None:
        self.drafter.forget(request_id)


def ask_for(request: Request, spec: Spec) -> Ask:
    """Ask for candidates after a request's last known token.

    The target's next token comes in any case: what follows it has room up to the cap.
    """
    room = request.sampling.max_tokens - request.num_output_tokens - 1
    return Ask(
        request.id,
        request.token_ids,
        spec,
        room,
        position=request.num_output_tokens,
        service_class=request.service_class,
        is_private=bool(request.cache_salt),
    )
