"""What a step costs around the present batch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from giusto.core.latency import BatchShape, LatencyModel
from giusto.core.request import RequestView

#: Sequences and prompt tokens over which the slopes are taken.
_MORE_DECODES, _MORE_TOKENS = 8, 256
_TINY = 1e-7
#: A context, tokens, where nobody decodes that could tell.
_CONTEXT = 128


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a step by the latency model, and the price of a little more of it.

    base: seconds of a step with one decode; per_decode, per_prefill: slopes at the batch that
    decodes now. Where the slopes are taken matters: a GPU that reads its weights anyway takes a
    prompt's first tokens for next to nothing, and one that computes already pays for each. What
    fits into a step is asked of the model itself.
    """

    latency: LatencyModel
    context: int
    base: float
    per_decode: float
    per_prefill: float

    @classmethod
    def of(cls, latency: LatencyModel, running: Sequence[RequestView]) -> Cost:
        some = sample(running)
        contexts = [r.num_tokens for r in some if r.num_output_tokens]
        context = sum(contexts) // len(contexts) if contexts else _CONTEXT
        num_decodes = max(1, len(contexts) * len(running) // max(1, len(some)))

        def seconds(decodes: int, prefill: int = 0) -> float:
            return latency.step_time(BatchShape(prefill, 0, decodes, decodes * context))

        here = seconds(num_decodes)
        per_decode = max((seconds(num_decodes + _MORE_DECODES) - here) / _MORE_DECODES, _TINY)
        per_prefill = max((seconds(num_decodes, _MORE_TOKENS) - here) / _MORE_TOKENS, _TINY)
        return cls(latency, context, seconds(1), per_decode, per_prefill)

    def step_time(self, num_decodes: int, prefill_tokens: int = 0) -> float:
        """Seconds of a step; also of an empty one."""
        shape = BatchShape(prefill_tokens, 0, num_decodes, num_decodes * self.context)
        return self.latency.step_time(shape)

    def prompt_tokens(self, num_decodes: int, seconds: float, most: int) -> int:
        """Prompt tokens, at most so many, that fit beside decodes into a step of `seconds`."""
        return _fit(seconds, most, lambda n: self.step_time(num_decodes, n))

    def decodes(self, seconds: float, most: int, prefill_tokens: int = 0) -> int:
        """Decodes, at most so many, that fit beside prompt tokens into a step of `seconds`."""
        return _fit(seconds, most, lambda n: self.step_time(n, prefill_tokens))


def _fit(seconds: float, most: int, takes: Callable[[int], float]) -> int:
    """The largest number from 0 to `most` that takes no longer than `seconds`, else 0."""
    return max(0, bisect_right(range(most + 1), seconds, key=takes) - 1)


def sample(requests: Sequence[RequestView]) -> Sequence[RequestView]:
    """Every so many of them, some dozens at most: enough for a mean."""
    return requests[:: 1 + len(requests) // 32]
