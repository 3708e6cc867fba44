"""Distributions of token counts."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from giusto.workload.lengths import Empirical, Fixed, Lengths, LogNormal, Uniform


def draws(lengths: Lengths, n: int = 10_000) -> list[int]:
    rng = random.Random(11)
    return sorted(lengths.draw(rng) for _ in range(n))


def test_a_lognormal_has_its_median_and_percentile() -> None:
    """Half of the draws are below the median, one in twenty above the 95th percentile."""
    sample = draws(LogNormal(150, 800))
    assert sample[5_000] == pytest.approx(150, rel=0.05)
    assert sample[9_500] == pytest.approx(800, rel=0.05)


@given(
    median=st.floats(0.1, 5_000.0),
    stretch=st.floats(1.0, 50.0),
    bounds=st.tuples(st.integers(1, 9_000), st.integers(1, 9_000)).map(sorted),
    seed=st.integers(),
)
def test_a_lognormal_is_clipped(
    median: float, stretch: float, bounds: list[int], seed: int
) -> None:
    """No draw leaves the bounds."""
    low, high = bounds
    drawn = LogNormal(median, median * stretch, low, high).draw(random.Random(seed))
    assert low <= drawn <= high


def test_a_lognormal_without_spread_is_its_median() -> None:
    """Equal median and percentile leave nothing to chance."""
    assert set(draws(LogNormal(40, 40), 50)) == {40}


def test_a_sample_is_drawn_from_evenly() -> None:
    """A count that is there twice comes twice as often; counts of nothing are no lengths."""
    lengths = Empirical.of([5, 0, 7, 7, 0])
    seen = Counter(draws(lengths, 9_000))
    assert lengths == Empirical((5, 7, 7))
    assert seen[5] == pytest.approx(3_000, rel=0.1)
    assert seen[7] == pytest.approx(6_000, rel=0.1)


def test_uniform_and_fixed() -> None:
    """Both ends of a range are drawn; a fixed count is itself."""
    assert set(draws(Uniform(3, 6), 500)) == {3, 4, 5, 6}
    assert set(draws(Fixed(9), 5)) == {9}


@pytest.mark.parametrize(
    "build",
    [
        lambda: LogNormal(0, 5),
        lambda: LogNormal(5, 4),
        lambda: LogNormal(5, 9, low=0),
        lambda: LogNormal(5, 9, low=7, high=6),
        lambda: Uniform(4, 3),
        lambda: Uniform(0, 3),
        lambda: Fixed(0),
        lambda: Empirical(()),
        lambda: Empirical((3, 0)),
        lambda: Empirical.of([0]),
    ],
)
def test_senseless_distributions_are_refused(build: object) -> None:
    """Counts are at least 1 and bounds in order."""
    assert callable(build)
    with pytest.raises(ValueError, match="need"):
        build()
