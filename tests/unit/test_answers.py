"""Hidden lengths for traces that recorded a cap alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from giusto.core.errors import ConfigError
from giusto.workload.answers import Answers
from simulated import entry

CAPPED = [entry(f"row-{k}", float(k), output=None, max_tokens=256) for k in range(4000)]


def lengths(answers: Answers, seed: int = 0) -> list[int]:
    return [made.output_tokens or 0 for made in answers.fill(CAPPED, seed)]


def test_without_a_share_all_answers_end_at_the_cap() -> None:
    """The default says that the cap is the length; recorded lengths are kept."""
    assert set(lengths(Answers())) == {256}
    recorded = entry("r", output=7)
    assert Answers(early=1.0).fill([recorded], 0) == [recorded]


@pytest.mark.parametrize("early", [0.25, 0.75, 1.0])
def test_a_share_ends_early(early: float) -> None:
    """That share of answers is shorter than the cap, and none is empty or longer."""
    drawn = lengths(Answers(early))
    assert sum(length < 256 for length in drawn) / len(drawn) == pytest.approx(early, abs=0.03)
    assert min(drawn) >= 1
    assert max(drawn) <= 256


@pytest.mark.parametrize("shape", [0.5, 1.0, 3.0])
def test_shape_sets_the_mean(shape: float) -> None:
    """With u uniform the mean of cap x u ** shape is cap / (1 + shape)."""
    drawn = lengths(Answers(1.0, shape))
    assert sum(drawn) / len(drawn) == pytest.approx(256 / (1 + shape), rel=0.05)


def test_one_length_per_row() -> None:
    """It depends on id and seed: not on arrival, order, neighbours, promise or class."""
    answers = Answers(0.5)
    drawn = {made.id: made.output_tokens for made in answers.fill(CAPPED, 3)}
    moved = [replace(one, arrival=one.arrival / 7, service_class="x") for one in CAPPED[::-3]]
    assert all(drawn[made.id] == made.output_tokens for made in answers.fill(moved, 3))
    assert drawn != {made.id: made.output_tokens for made in answers.fill(CAPPED, 4)}


def test_the_law_alone_decides_who_ends_early() -> None:
    """A larger share adds to those that end early and changes none of them."""
    few, many = lengths(Answers(0.2)), lengths(Answers(0.6))
    assert all(a == b for a, b in zip(few, many, strict=True) if a < 256)


def test_early_answers_end_before_the_cap() -> None:
    """With a cap of one there is nothing before it; with two an early answer has one token."""
    ones = [replace(one, max_tokens=1) for one in CAPPED[:50]]
    twos = [replace(one, max_tokens=2) for one in CAPPED[:50]]
    assert {made.output_tokens for made in Answers(1.0).fill(ones, 0)} == {1}
    assert {made.output_tokens for made in Answers(1.0).fill(twos, 0)} == {1}


@pytest.mark.parametrize("wrong", [(-0.1, 1.0), (1.1, 1.0), (0.5, 0.0), (float("nan"), 1.0)])
def test_no_law(wrong: tuple[float, float]) -> None:
    """A share beyond 0 to 1 or a shape of 0 is refused with both."""
    with pytest.raises(ConfigError, match="a share from 0 to 1 and a shape above 0"):
        Answers(*wrong)
