"""Carry out a plan: one forward pass over a ragged batch, one draw per finished prompt or decode.

Called by `engine` between `schedule` and `commit`. Owns the model and the KV tensors, knows no
queue, no clock and no policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from giusto.core.latency import BatchShape
from giusto.core.plan import Plan, Yield
from giusto.core.request import FinishReason, Request
from giusto.engine.batch import build
from giusto.engine.model import Decoder
from giusto.engine.sampler import Draw, Sampler
from giusto.engine.stops import StopMatcher
from giusto.engine.tensors import KVCache
from giusto.engine.tokenizer import Detokenizer, Tokenizer


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

    def execute(self, plan: Plan, requests: Mapping[str, Request]) -> Execution:
        """Run the plan's tokens and draw the next ones. Does not change the requests."""
        batch = build(plan, requests, self.kv.block_size, self.decoder.device)
        logits = self.decoder.forward(batch.tensors, self.kv)
        draws = self.sampler.draw(batch.sampling, logits) if batch.sampling else []
        yields = {grant.request_id: Yield() for grant in plan.grants}
        for request, draw in zip(batch.sampling, draws, strict=True):
            yields[request.id] = self._yield(request, draw)
        return Execution(batch.shape, yields)

    def forget(self, request_id: str) -> None:
        """Drop what is remembered of a request that has ended."""
        self.sampler.forget(request_id)
        self._stops.pop(request_id, None)

    def _yield(self, request: Request, draw: Draw) -> Yield:
        finish = FinishReason.STOP if self._is_last(request, draw.token) else None
        logprobs = None
        if draw.logprob is not None:
            logprobs = ((draw.token, draw.logprob, draw.top),)
        return Yield(tokens=(draw.token,), finish=finish, logprobs=logprobs)

    def _is_last(self, request: Request, token: int) -> bool:
        params = request.sampling
        if request.num_output_tokens + 1 >= params.min_tokens:
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
