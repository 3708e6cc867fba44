"""Arrival processes: mean rates, burstiness, waves, and names."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import islice, pairwise, takewhile
from statistics import mean, pvariance

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from giusto.core.errors import ConfigError
from giusto.workload.arrivals import PROCESSES, Process, arrivals, diurnal, mmpp

SPAN = 6_000.0


def until(times: Iterator[float], end: float = SPAN) -> list[float]:
    return list(takewhile(lambda now: now < end, times))


def counts(times: list[float], window: float, end: float = SPAN) -> list[int]:
    bins = [0] * int(end / window)
    for now in times:
        bins[int(now / window)] += 1
    return bins


def dispersion(times: list[float], window: float) -> float:
    """Variance of the arrivals per window over their mean: 1 for Poisson."""
    sample = counts(times, window)
    return pvariance(sample) / mean(sample)


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_keeps_its_mean_rate(name: str) -> None:
    """Over a long span as many arrive as the rate says.

    The standard error is 0.6 % for Poisson and 5 % for the default bursts, whose arrivals per long
    window have 76 times Poisson's variance.
    """
    times = until(Process(name).times(5.0, random.Random(3)))
    assert len(times) / SPAN == pytest.approx(5.0, rel=0.15 if name == "mmpp" else 0.02)


@given(name=st.sampled_from(PROCESSES), rate=st.floats(0.01, 100.0), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_times_grow_and_a_seed_fixes_them(name: str, rate: float, seed: int) -> None:
    """Times never go back, and equal generators give equal times."""
    first, second = (
        list(islice(Process(name).times(rate, random.Random(seed)), 60)) for _ in range(2)
    )
    assert first == second
    assert all(0 <= a <= b for a, b in pairwise(first))


@pytest.mark.parametrize("name", PROCESSES)
def test_an_infinite_rate_is_all_at_once(name: str) -> None:
    """Whatever the process, everything arrives at 0."""
    assert list(islice(Process(name).times(math.inf, random.Random(0)), 3)) == [0.0, 0.0, 0.0]


def test_bursts_are_seen_at_their_own_scale() -> None:
    """Windows of 10 s vary far more than Poisson's; equal rates in both states are Poisson."""
    bursty = until(mmpp(5.0, random.Random(1)))
    plain = until(mmpp(5.0, random.Random(1), ratio=1.0))
    assert dispersion(bursty, 10.0) > 10
    assert dispersion(plain, 10.0) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize(("burst", "quiet", "ratio"), [(1.0, 9.0, 50.0), (30.0, 5.0, 3.0)])
def test_bursts_of_any_shape_keep_the_mean_rate(burst: float, quiet: float, ratio: float) -> None:
    """The rates of both states follow from the mean."""
    times = until(mmpp(8.0, random.Random(2), burst=burst, quiet=quiet, ratio=ratio))
    assert len(times) / SPAN == pytest.approx(8.0, rel=0.08)


def test_a_wave_has_its_period_and_depth() -> None:
    """The half of the period above the mean has (1 + 2 depth / pi) of it, and so each period."""
    times = until(diurnal(10.0, random.Random(4), period=600.0, depth=0.8))
    halves = counts(times, 300.0)
    high, low = mean(halves[::2]) / 3000, mean(halves[1::2]) / 3000
    assert high == pytest.approx(1 + 1.6 / math.pi, rel=0.03)
    assert low == pytest.approx(1 - 1.6 / math.pi, rel=0.03)


def test_a_flat_wave_is_poisson() -> None:
    """Without depth nothing is thinned away but by chance of nothing."""
    times = until(diurnal(5.0, random.Random(5), depth=0.0))
    assert dispersion(times, 10.0) == pytest.approx(1.0, abs=0.15)


def test_gamma_passes_its_burstiness_on() -> None:
    """The named process is the very stream of `arrivals`."""
    named = Process("gamma", 0.3).times(2.0, random.Random(6))
    plain = arrivals(2.0, random.Random(6), burstiness=0.3)
    assert list(islice(named, 50)) == list(islice(plain, 50))


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan])
def test_senseless_rates_are_refused(rate: float) -> None:
    """By name in words for a user, else as a plain error of value."""
    with pytest.raises(ConfigError, match="must be above 0 per second"):
        Process().times(rate, random.Random(0))
    for process in (mmpp, diurnal):
        with pytest.raises(ValueError, match="must be above 0"):
            next(process(rate, random.Random(0)))


@pytest.mark.parametrize("shape", [{"burst": 0.0}, {"quiet": math.inf}, {"ratio": -1.0}])
def test_senseless_bursts_are_refused(shape: dict[str, float]) -> None:
    """Spans and their ratio are positive and finite."""
    with pytest.raises(ValueError, match="burst, quiet and ratio must be above 0"):
        next(mmpp(1.0, random.Random(0), **shape))


@pytest.mark.parametrize("shape", [{"period": 0.0}, {"depth": 1.5}, {"depth": -0.1}])
def test_senseless_waves_are_refused(shape: dict[str, float]) -> None:
    """A rate never falls below nothing."""
    with pytest.raises(ValueError, match="period must be above 0 and depth 0 to 1"):
        next(diurnal(1.0, random.Random(0), **shape))


def test_unknown_processes_list_those_that_exist() -> None:
    """And burstiness is refused where it would be ignored."""
    with pytest.raises(ConfigError, match=r"no arrival process 'weibull'; .* poisson, gamma"):
        Process("weibull")
    with pytest.raises(ConfigError, match="burstiness is for gamma"):
        Process("mmpp", 0.5)
    with pytest.raises(ConfigError, match="burstiness must be above 0"):
        Process("gamma", 0.0)
