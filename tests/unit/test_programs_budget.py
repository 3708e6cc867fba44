"""Splitting a program's deadline, and the seconds that a token takes."""

from __future__ import annotations

import random
from statistics import median

import pytest

from giusto.programs import budget
from giusto.programs.budget import FIRST_GUESS, WINDOW, TokenTime


def test_shares_of_one_one_and_two_split_forty_seconds() -> None:
    """The present stage's time is included: it is due at 10, 20 and 40 s from the opening."""
    shares = budget.cumulative([1.0, 1.0, 2.0])
    assert [budget.sub_deadline(0.0, 40.0, part) for part in shares] == [10.0, 20.0, 40.0]
    assert [budget.sub_deadline(100.0, 40.0, part) for part in shares] == [110.0, 120.0, 140.0]


def test_the_last_stage_has_all_of_the_deadline() -> None:
    """Whatever the times, shares rise from above 0 to 1."""
    draw = random.Random(3)
    for _ in range(50):
        times = [draw.expovariate(1.0) for _ in range(draw.randint(1, 20))]
        shares = budget.cumulative(times)
        assert shares == sorted(shares)
        assert 0 < shares[0] <= shares[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("times", [[0.0], [0.0, 0.0]])
def test_nothing_to_divide_is_done(times: list[float]) -> None:
    """Stages without time wait for nobody."""
    assert budget.cumulative(times) == [1.0] * len(times)


def test_a_token_takes_the_median_of_the_last_calls() -> None:
    """On random calls it equals sorting; before any there is a guess."""
    draw, time, past = random.Random(5), TokenTime(), []
    assert time.seconds == FIRST_GUESS
    for _ in range(3 * WINDOW):
        seconds, tokens = draw.uniform(0.01, 0.1), draw.randint(2, 50)
        first = draw.uniform(0, 1000)
        last = first + seconds * (tokens - 1)
        time.observe(first, last, tokens)
        past.append((last - first) / (tokens - 1))
        if len(past) % 2:
            assert time.seconds == median(past[-WINDOW:])


@pytest.mark.parametrize(
    ("first", "last", "tokens"),
    [(None, 1.0, 5), (1.0, None, 5), (1.0, 2.0, 1), (2.0, 1.0, 5), (1.0, 1.0, 5)],
)
def test_a_call_without_a_pace_teaches_nothing(
    first: float | None, last: float | None, tokens: int
) -> None:
    """One token, no time, or a clock that jumped back."""
    time = TokenTime()
    time.observe(first, last, tokens)
    time.observe(0.0, float("inf"), 5)
    time.observe(0.0, float("nan"), 5)
    assert time.seconds == FIRST_GUESS
