"""What a step costs around the present batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from giusto.core.latency import BatchShape, LatencyModel
from giusto.core.request import RequestView

#: Sequences and prompt tokens over which the slopes are taken.
_MORE_DECODES, _MORE_TOKENS = 8, 256
_TINY = 1e-7


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a step by the latency model, as a plane through the batch that decodes now.

    Where it matters: a GPU that reads its weights anyway takes a prompt's first tokens for
    nothing, and one that computes already pays for each.
    """

    base: float
    per_decode: float
    per_prefill: float

    @classmethod
    def of(cls, latency: LatencyModel, running: Sequence[RequestView]) -> Cost:
        some = sample(running)
        contexts = [r.num_tokens for r in some if r.num_output_tokens]
        context = sum(contexts) // len(contexts) if contexts else 128
        num_decodes = max(1, len(contexts) * len(running) // max(1, len(some)))

        def seconds(decodes: int, prefill: int = 0) -> float:
            shape = BatchShape(prefill, 0, decodes, decodes * context)
            return latency.step_time(shape)

        here = seconds(num_decodes)
        per_decode = max((seconds(num_decodes + _MORE_DECODES) - here) / _MORE_DECODES, _TINY)
        per_prefill = max((seconds(num_decodes, _MORE_TOKENS) - here) / _MORE_TOKENS, _TINY)
        return cls(max(here - num_decodes * per_decode, _TINY), per_decode, per_prefill)

    def decode_time(self, num_decodes: float) -> float:
        return self.base + num_decodes * self.per_decode


def sample(requests: Sequence[RequestView]) -> Sequence[RequestView]:
    """Every so many of them, some dozens at most: enough for a mean."""
    return requests[:: 1 + len(requests) // 32]
