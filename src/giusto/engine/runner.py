"""Carry out a plan: one forward pass over a ragged batch, draws for finished prompts and decodes.

Called by `engine` between `schedule` and `commit`. Owns the model and the KV tensors, knows no
queue, no clock and no policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from giusto.core.latency import BatchShape
from giusto.core.plan import Plan, Yield
from giusto.core.request import Request
from giusto.engine.batch import NO_TREES, build, slot
from giusto.engine.model import Decoder
from giusto.engine.sampler import Sampler
from giusto.engine.stops import StopMatcher
from giusto.engine.tensors import KVCache
from giusto.engine.tokenizer import Detokenizer, Tokenizer
from giusto.engine.walk import Walk, walk
from giusto.spec.tree import TokenTree


@dataclass(frozen=True, slots=True)
class Execution:
    """What one pass produced: a yield per grant, and the shape of the batch."""

    shape: BatchShape
    yields: dict[str, Yield]


class ModelRunner:
    """Executes plans on one model."""

    def __init__(
        self, decoder: Decoder, kv: KVCache, sampler: Sampler, tokenizer: Tokenizer
    ) -> None:
        self.decoder = decoder
        self.kv = kv
        self.sampler = sampler
        self.tokenizer = tokenizer
        self._stops: dict[str, tuple[Detokenizer, StopMatcher]] = {}

    def execute(
        self,
        plan: Plan,
        requests: Mapping[str, Request],
        trees: Mapping[str, TokenTree] = NO_TREES,
    ) -> Execution:
        """Run the plan's tokens and draw the next ones; verify `trees` of decodes beside them.

        Does not change the requests. What was accepted of a tree lies in the cache as if it had
        been decoded.
        """
        batch = build(plan, requests, self.kv.block_size, self.decoder.device, trees)
        logits = self.decoder.forward(batch.tensors, self.kv)
        walks = walk(batch.heads, logits, self.sampler, self._is_last) if batch.heads else []
        self._keep(walks)
        yields = {grant.request_id: Yield() for grant in plan.grants}
        for way in walks:
            yields[way.head.request.id] = _yield(way)
        return Execution(batch.shape, yields)

    def forget(self, request_id: str) -> None:
        """Drop what is remembered of a request that has ended."""
        self.sampler.forget(request_id)
        self._stops.pop(request_id, None)

    def _keep(self, walks: Sequence[Walk]) -> None:
        """Move what was accepted to where it belongs: behind the root, without gaps."""
        sources: list[int] = []
        targets: list[int] = []
        size = self.kv.block_size
        for way in walks:
            request = way.head.request
            behind = request.num_tokens  # where the first node lies
            for place, node in enumerate(way.nodes):
                if place != node:
                    sources.append(slot(request, behind + node, size))
                    targets.append(slot(request, behind + place, size))
        self.kv.move(sources, targets)

    def _is_last(self, request: Request, token: int, num_before: int) -> bool:
        params = request.sampling
        if request.num_output_tokens + num_before + 1 >= params.min_tokens:
            if token in params.stop_token_ids:
                return True
            if token in self.sampler.eos_token_ids and not params.ignore_eos:
                return True
        return bool(params.stop) and self._completes_stop(request, token)

    def _completes_stop(self, request: Request, token: int) -> bool:
        """Tell whether this token's text completes a stop string, across token borders."""
        if request.id not in self._stops:
            matcher = StopMatcher(request.sampling.stop)
            self._stops[request.id] = Detokenizer(self.tokenizer), matcher
        detokenizer, matcher = self._stops[request.id]
        matcher.feed(detokenizer.feed(token))
        return matcher.is_stopped


def _yield(way: Walk) -> Yield:
    logprobs = None
    if way.draws[0].logprob is not None:
        logprobs = tuple((draw.token, draw.logprob, draw.top) for draw in way.draws)
    return Yield(
        tokens=way.tokens,
        selected=len(way.head.tree),
        accepted=len(way.nodes),
        finish=way.finish,
        logprobs=logprobs,
    )
