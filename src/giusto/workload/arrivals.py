"""When requests arrive: gaps drawn from an injected generator, so a seed fixes them."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat

from giusto.core.errors import ConfigError


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


def mmpp(
    rate: float,
    rng: random.Random,
    *,
    burst: float = 10.0,
    quiet: float = 20.0,
    ratio: float = 10.0,
) -> Iterator[float]:
    """Yield arrival times of a two-state Markov-modulated Poisson process of mean rate `rate`.

    Bursts last `burst` seconds on average, the quiet between them `quiet`; in a burst `ratio`
    times as many arrive per second. The first state is drawn from the long-run shares. Defaults
    are milder than Azure's code trace of 2023, whose windows of 2 s above the mean come in runs of
    10 s with 9.8 arrivals/s, those below in runs of 22 s with 0.13/s.
    """
    if not rate > 0 or not all(0 < value < math.inf for value in (burst, quiet, ratio)):
        raise ValueError(
            f"rate, burst, quiet and ratio must be above 0, got {rate}, {burst}, {quiet}, {ratio}"
        )
    if math.isinf(rate):
        yield from repeat(0.0)
    in_quiet = rate * (burst + quiet) / (burst * ratio + quiet)
    is_burst = rng.random() * (burst + quiet) < burst
    start = 0.0
    while True:
        span = rng.expovariate(1 / (burst if is_burst else quiet))
        # Gaps have no memory, so each state may begin with a fresh one.
        for offset in arrivals(in_quiet * ratio if is_burst else in_quiet, rng):
            if offset > span:
                break
            yield start + offset
        start += span
        is_burst = not is_burst


def diurnal(
    rate: float, rng: random.Random, *, period: float = 600.0, depth: float = 0.4
) -> Iterator[float]:
    """Yield arrival times of a Poisson process whose rate is a wave, `rate` over whole periods.

    At time t it is rate * (1 + depth * sin(2 pi t / period)), by thinning. The default period is a
    day pressed into ten minutes; the default depth that of ServeGen's m-small, whose busiest hour
    of the day has 2.3 times the requests of the calmest.
    """
    if not rate > 0 or not 0 < period < math.inf or not 0 <= depth <= 1:
        raise ValueError(
            f"rate and period must be above 0 and depth 0 to 1, got {rate}, {period} and {depth}"
        )
    for now in arrivals(rate * (1 + depth), rng):
        wave = 1 + depth * math.sin(2 * math.pi * now / period)
        if rng.random() * (1 + depth) < wave:
            yield now


PROCESSES = ("poisson", "gamma", "mmpp", "diurnal")


@dataclass(frozen=True, slots=True)
class Process:
    """A law of arrivals by name, with its defaults; `burstiness` is that of gamma gaps."""

    name: str = "poisson"
    burstiness: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in PROCESSES:
            raise ConfigError(f"no arrival process {self.name!r}; there are {', '.join(PROCESSES)}")
        if not 0 < self.burstiness < math.inf:
            raise ConfigError(f"burstiness must be above 0 and finite, got {self.burstiness}")
        if self.burstiness != 1.0 and self.name != "gamma":
            raise ConfigError(f"burstiness is for gamma arrivals; leave it out for {self.name}")

    def times(self, rate: float, rng: random.Random) -> Iterator[float]:
        """Yield arrival times in seconds, `rate` per second on average, without end."""
        if not rate > 0:
            raise ConfigError(f"the rate of arrivals must be above 0 per second, got {rate}")
        match self.name:
            case "mmpp":
                return mmpp(rate, rng)
            case "diurnal":
                return diurnal(rate, rng)
            case _:
                return arrivals(rate, rng, burstiness=self.burstiness)


POISSON = Process()
