"""A request as numbers, for models of its length: what is known when it arrives, and its progress.

Names and tokens are hashed, always the same way, so that rows stored by one run fit the next. A
plain tuple is made without numpy, on the thread that schedules: tens of microseconds a request.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from functools import lru_cache

from giusto.core.request import RequestView

#: Signed counters of the prompt's tokens.
BUCKETS = 32
#: Tokens of the prompt that are looked at, from its end: what is asked stands there, behind the
#: system prompt and whatever is quoted.
MAX_PROMPT_IDS = 256
#: Prompt length, stage, two numbers each for class and app, and the buckets.
NUM_FEATURES = 6 + BUCKETS

#: Knuth's multiplicative hash: the upper bits of the product are well mixed.
_FACTOR = 2_654_435_761


def features(request: RequestView, prompt_ids: Sequence[int] = ()) -> tuple[float, ...]:
    """What is known of a request when it arrives; `prompt_ids` where the driver has text.

    Any whole numbers will do as ids, as long as a word has the same each time.
    """
    stage = request.stage
    return (
        round(math.log1p(request.num_prompt_tokens), 4),
        -1.0 if stage is None else float(stage),
        *_place(request.service_class),
        *_place(request.app or ""),
        *_bag(prompt_ids[-MAX_PROMPT_IDS:]),
    )


def row(known: Sequence[float], emitted: int) -> tuple[float, ...]:
    """What a model is fitted to and asked with: progress, then `features`."""
    return (math.log1p(emitted), *known)


@lru_cache(maxsize=1024)
def _place(name: str) -> tuple[float, float]:
    """Two numbers from 0 to 1 for a name: a few splits of a tree single it out."""
    hashed = zlib.crc32(name.encode())
    return round((hashed & 0xFFFF) / 0xFFFF, 4), round((hashed >> 16) / 0xFFFF, 4)


def _bag(tokens: Sequence[int]) -> list[float]:
    """Counts of tokens by bucket, half of them negative, over the root of their number."""
    counts = [0] * BUCKETS
    for token in tokens:
        hashed = (token * _FACTOR) & 0xFFFFFFFF
        counts[hashed >> 27] += 1 if hashed & 0x4000000 else -1
    scale = math.sqrt(len(tokens)) or 1.0
    return [round(count / scale, 4) for count in counts]
