"""When requests arrive: gaps drawn from an injected generator, so a seed fixes them."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator


def arrivals(rate: float, rng: random.Random, *, burstiness: float = 1.0) -> Iterator[float]:
    """Yield arrival times in seconds from 0, without end, `rate` per second on average.

    Gaps are gamma distributed with shape `burstiness`, as vLLM's flag of that name: 1 is Poisson,
    below 1 bursty, above 1 even. An infinite rate yields 0 for ever.
    """
    if not rate > 0 or not 0 < burstiness < math.inf:
        raise ValueError(f"rate and burstiness must be above 0, got {rate} and {burstiness}")
    now = 0.0
    scale = 0.0 if math.isinf(rate) else 1 / (rate * burstiness)
    while True:
        now += rng.gammavariate(burstiness, 1.0) * scale
        yield now
