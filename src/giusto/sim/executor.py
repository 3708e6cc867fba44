"""Carries plans out in virtual time: how long a step takes, and which tokens it yields.

The true world: step times are the profile's with noise, not the policy's model of them, and output
lengths come from a private table.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random

from giusto.core.latency import BatchShape, LatencyModel
from giusto.core.plan import Plan, Yield
from giusto.core.request import FinishReason, Request
from giusto.sim.guesses import Guesses
from giusto.sim.link import Link
from giusto.sim.truth import Truth
from giusto.spec.speculator import Speculator
from giusto.spec.tree import ROOT, TokenTree

NOTHING = Yield()
A_TOKEN = Yield((0,))
LAST_TOKEN = Yield((0,), finish=FinishReason.STOP)


@dataclass(frozen=True, slots=True)
class Execution:
    """What a step came to. It took `seconds`, of which it waited `waited` for swapped blocks and
    drafted for `drafted`."""

    shape: BatchShape
    seconds: float
    yields: dict[str, Yield]
    waited: float = 0.0
    drafted: float = 0.0


@dataclass(frozen=True, slots=True)
class Speculation:
    """How a replica speculates, and what its guesses really are."""

    speculator: Speculator
    guesses: Guesses


class SimExecutor:
    """Steps of one replica. `noise` is the standard deviation of the log of a step's time.

    Neither it nor `speed` touches the `link`, over which what is swapped goes. A `speculation`,
    where one is set, guesses ahead.
    """

    def __init__(
        self,
        latency: LatencyModel,
        truth: Truth,
        rng: Random,
        *,
        noise: float = 0.0,
        speed: float = 1.0,
        link: Link | None = None,
    ) -> None:
        self._latency = latency
        self._truth = truth
        self._rng = rng
        self._noise = noise
        self._speed = speed
        self._link = link
        self.speculation: Speculation | None = None
        self._answers: dict[str, _Answer] = {}

    def execute(self, plan: Plan, requests: Mapping[str, Request], swapped: int = 0) -> Execution:
        """Run an applied plan; `swapped` blocks go over the link beside it."""
        prefill = prefill_kv = decodes = kv = 0
        yields: dict[str, Yield] = {}
        for request_id, num_tokens, _ in plan.grants:
            request = requests[request_id]
            end = request.num_computed_tokens + request.num_in_flight_tokens
            if num_tokens > 1:
                prefill += num_tokens
                prefill_kv += num_tokens * (end - num_tokens)
            else:
                decodes += 1
                kv += end
            yields[request_id] = self._yield(request, end)
        shape = BatchShape(prefill, prefill_kv, decodes, kv, swapped_blocks=swapped)
        if plan.node_budget and self.speculation is not None:
            shape = self._speculate(plan, requests, yields, shape)
        seconds = self._latency.step_time(shape) / self._speed
        drafted = self._draft_time(shape, seconds) if shape.draft_steps else 0.0
        if self._noise:
            seconds *= math.exp(self._rng.gauss(0.0, self._noise))
        waited = self._link.wait(swapped, seconds) if self._link else 0.0
        return Execution(shape, seconds + waited, yields, waited, drafted)

    def forget(self, request_id: str) -> None:
        """Drop what is known of a request that has ended."""
        self._answers.pop(request_id, None)
        if self.speculation is not None:
            self.speculation.speculator.forget(request_id)

    def _speculate(
        self,
        plan: Plan,
        requests: Mapping[str, Request],
        yields: dict[str, Yield],
        shape: BatchShape,
    ) -> BatchShape:
        """Draft, choose and verify; `yields` gets what came of it. Returns the step's shape."""
        assert self.speculation is not None
        speculator = self.speculation.speculator
        drafts = speculator.draft(plan, requests)
        trees = speculator.choose(drafts, plan, shape)
        drawn = {}
        for request_id, drafted in drafts.items():
            tree = trees.get(request_id)
            request = requests[request_id]
            drawn[request_id] = ranks = self._walk(request, tree or _NO_TREE)
            accepted = len(ranks) - 1
            made = yields[request_id]
            for _ in range(accepted):
                made = self._next(request, made)
            yields[request_id] = replace(
                made, drafted=len(drafted), selected=len(tree or ()), accepted=accepted
            )
        speculator.learn(drafts, drawn)
        depth = max((max(tree.depths) for tree in drafts.values()), default=0)
        return replace(
            shape,
            nodes=sum(map(len, trees.values())),
            draft_steps=depth,
            draft_tokens=sum(map(len, drafts.values())),
        )

    def _draft_time(self, shape: BatchShape, seconds: float) -> float:
        """Which part of a step that takes `seconds` is drafting."""
        undrafted = replace(shape, draft_steps=0, draft_tokens=0)
        return seconds - self._latency.step_time(undrafted) / self._speed

    def _walk(self, request: Request, tree: TokenTree) -> list[int]:
        """Which of the draft's choices the target's tokens are, as far as the tree has them."""
        assert self.speculation is not None
        guesses, name = self.speculation.guesses, request.service_class
        answer = self._answers[request.id]
        most = min(answer.length, request.sampling.max_tokens)
        position = request.num_output_tokens
        node: int | None = ROOT
        ranks: list[int] = []
        while node is not None and position < most:
            ranks.append(guesses.choice(request.id, position, name))
            node = tree.child(node, ranks[-1])
            position += 1
        return ranks

    def _next(self, request: Request, made: Yield) -> Yield:
        """One token more of the answer."""
        more = self._yield(request, sys.maxsize)
        return Yield(made.tokens + more.tokens, finish=more.finish)

    def _yield(self, request: Request, end: int) -> Yield:
        """The next token once all known ones are computed; recomputed ones yield nothing new."""
        answer = self._answers.get(request.id) or self._begin(request)
        drawn = answer.num_drawn
        if end < request.num_prompt_tokens + drawn:
            return NOTHING
        answer.num_drawn = drawn + 1
        is_last = drawn + 1 >= answer.length
        if answer.text is None:
            return LAST_TOKEN if is_last else A_TOKEN
        token = (answer.text + drawn,)
        return Yield(token, finish=FinishReason.STOP) if is_last else Yield(token)

    def _begin(self, request: Request) -> _Answer:
        length = self._truth.output_tokens(request.id)
        if length >= request.sampling.max_tokens:
            length = sys.maxsize  # the scheduler ends it there, as one that was cut
        text = request.sampling.seed
        answer = _Answer(length, None if text is None else text << 32)
        self._answers[request.id] = answer
        return answer


@dataclass(slots=True)
class _Answer:
    """An answer under way: its length, what it is made of where anyone quotes it (`sim.asks`)."""

    length: int
    text: int | None
    num_drawn: int = 0


_NO_TREE = TokenTree()
