"""Calibrated length bounds: what is judged, what is reported, and how levels move."""

from __future__ import annotations

import math
import random
from collections import deque

import pytest

from giusto.core.events import Arrived, Estimated, Finished, Rejected
from giusto.core.request import FinishReason, Reason, Request, RequestView
from giusto.predict.base import Constant
from giusto.predict.conformal import GRID, MIN_SCORES, RATE, TOP, WARM_UP, Calibrated
from giusto.predict.coverage import Coverage, CoverageRow
from giusto.predict.histogram import Histogram
from strategies import request

CAP = 100_000


class Exponential:
    """Quantiles of an exponential law with this mean, whatever happens."""

    def __init__(self, mean: float) -> None:
        self.mean = mean
        self.events: list[object] = []

    def remaining(self, request: RequestView, quantile: float | None = None) -> float:
        return -self.mean * math.log(1 - (0.5 if quantile is None else quantile))

    def observe(self, event: object) -> None:
        self.events.append(event)


def arrive(bounds: Calibrated, name: str, service_class: str = "default") -> Request:
    made = request(name)
    made.cap, made.service_class = CAP, service_class
    bounds.observe(Arrived(made, 0.0))
    return made


def end(
    bounds: Calibrated, made: Request, length: int, reason: FinishReason = FinishReason.STOP
) -> None:
    made.num_output_tokens = length
    bounds.observe(Finished(made.id, 1.0, reason))


def run(bounds: Calibrated, lengths: list[int]) -> None:
    """One after the other."""
    for i, length in enumerate(lengths):
        end(bounds, arrive(bounds, f"r{i}"), length)


def exponentials(count: int, mean: float, seed: int = 1) -> list[int]:
    draw = random.Random(seed)
    return [max(1, round(draw.expovariate(1 / mean))) for _ in range(count)]


def covered(bounds: Calibrated) -> list[float]:
    return [row.coverage for row in bounds.report()]


# Coverage


def test_a_report_counts_what_held_and_how_wide_it_was() -> None:
    """By class and level; the ratio is the mean of bound over length."""
    coverage = Coverage()
    coverage.add("b", 0.9, 10.0, 10)
    coverage.add("a", 0.95, 10.0, 20)
    coverage.add("a", 0.9, 10.0, 5)
    coverage.add("a", 0.9, 10.0, 20)
    assert coverage.report() == [
        CoverageRow("a", 0.9, 2, 0.5, 1.25),
        CoverageRow("a", 0.95, 1, 0.0, 0.5),
        CoverageRow("b", 0.9, 1, 1.0, 1.0),
    ]


def test_only_the_newest_endings_count() -> None:
    """What left the window is forgotten."""
    coverage = Coverage(window=2)
    for bound in (1.0, 8.0, 16.0):
        coverage.add("a", 0.9, bound, 4)
    assert coverage.report() == [CoverageRow("a", 0.9, 2, 1.0, 3.0)]


def test_a_window_holds_something() -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match="window"):
        Coverage(0)


# What is judged


def test_nothing_is_corrected_before_anything_ended() -> None:
    """The predictor is asked at the level stated; at its own where none is."""
    bounds = Calibrated(Constant(10.0))
    made = arrive(bounds, "a")
    assert (bounds.remaining(made), bounds.remaining(made, 0.9)) == (10, 10)
    assert bounds.corrected("default", 0.93) == 0.93
    assert bounds.report() == []


def test_the_bound_given_at_arrival_is_judged() -> None:
    """Not what the predictor would say by the time of the end."""
    inner = Exponential(100.0)
    bounds = Calibrated(inner)
    made = arrive(bounds, "a")
    given = bounds.remaining(made, 0.9)
    inner.mean = 1e9
    end(bounds, made, math.ceil(given) + 1)
    assert covered(bounds) == [0.0, 1.0]


@pytest.mark.parametrize("reason", [r for r in FinishReason if r is not FinishReason.STOP])
def test_only_what_ended_by_itself_is_judged(reason: FinishReason) -> None:
    """Cut, cancelled and failed outputs have no length; refused and unknown ones neither."""
    bounds = Calibrated(Constant(10.0))
    end(bounds, arrive(bounds, "a"), 50, reason)
    end(bounds, arrive(bounds, "empty"), 0)
    arrive(bounds, "refused")
    bounds.observe(Rejected("refused", 0.0, Reason.DRAINING))
    bounds.observe(Finished("unknown", 0.0, FinishReason.STOP))
    assert bounds.report() == []
    assert bounds.corrected("default", 0.9) == 0.9


def test_an_estimate_before_the_first_token_renews_the_bound() -> None:
    """A later one does not: the bound at arrival is that of a request without any token."""
    inner = Constant(10.0)
    bounds = Calibrated(inner)
    waiting, running = arrive(bounds, "waiting"), arrive(bounds, "running")
    running.num_output_tokens = 1
    bounds.inner = Constant(30.0)
    for name in ("waiting", "running", "unknown"):
        bounds.observe(Estimated(name, (30.0,), 0.5))
    end(bounds, waiting, 20)
    assert covered(bounds) == [1.0, 1.0]
    end(bounds, running, 20)
    assert covered(bounds) == [0.5, 0.5]


def test_every_event_is_passed_on_once() -> None:
    """The wrapped predictor learns from what the wrapper is told."""
    inner = Exponential(10.0)
    bounds = Calibrated(inner)
    made = arrive(bounds, "a")
    bounds.observe("something else")
    end(bounds, made, 3)
    assert [type(event) for event in inner.events] == [Arrived, str, Finished]


@pytest.mark.parametrize("levels", [(), (0.95, 0.9), (0.9, 0.9), (0.0, 0.9), (0.9, 1.0)])
def test_levels_rise_between_none_and_all(levels: tuple[float, ...]) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match="levels"):
        Calibrated(Constant(1.0), levels)


# How levels move


def test_a_class_is_corrected_once_enough_of_it_ended() -> None:
    """The first endings only warm up: their bounds were guesses. Then their scores count."""
    bounds = Calibrated(Constant(10.0))
    run(bounds, [20] * (WARM_UP + MIN_SCORES - 1))
    assert bounds.corrected("default", 0.9) == 0.9
    run(bounds, [20])
    assert bounds.corrected("default", 0.9) == pytest.approx(TOP + math.log(2))
    assert bounds.remaining(arrive(bounds, "asked"), 0.9) == pytest.approx(20)
    assert bounds.corrected("other", 0.9) == 0.9


def test_levels_follow_what_was_enough() -> None:
    """They rise when outputs get longer than the predictor says, and fall when shorter."""
    bounds = Calibrated(Exponential(100.0))
    run(bounds, exponentials(300, 100.0))
    fitting = bounds.corrected("default", 0.95)
    assert fitting == pytest.approx(0.95, abs=0.03)
    run(bounds, exponentials(300, 300.0))
    assert bounds.corrected("default", 0.95) > fitting + 0.03
    run(bounds, exponentials(600, 20.0))
    assert bounds.corrected("default", 0.95) < fitting - 0.03


def test_below_the_lowest_level_judged_only_the_order_is_kept() -> None:
    """No correction, but never above the bound of the lowest level."""
    bounds = Calibrated(Exponential(100.0))
    run(bounds, exponentials(200, 300.0))
    assert bounds.corrected("default", 0.8) == 0.8
    bounds = Calibrated(Exponential(100.0))
    run(bounds, [1] * 200)
    assert bounds.corrected("default", 0.8) == bounds.corrected("default", 0.9) == GRID[0]


def test_a_chance_that_so_few_cannot_tell_is_bounded_by_the_cap() -> None:
    """Of thirty scores none is a 0.99 quantile."""
    bounds = Calibrated(Constant(10.0))
    run(bounds, [20] * (WARM_UP + MIN_SCORES))
    made = arrive(bounds, "asked")
    assert bounds.corrected("default", 0.99) == math.inf
    assert bounds.remaining(made, 0.99) == CAP
    made.num_output_tokens = CAP
    assert bounds.remaining(made, 0.99) == 1


def test_a_stretched_bound_ends_at_the_cap() -> None:
    """And lasts a token at least."""
    bounds = Calibrated(Constant(10.0))
    run(bounds, [200] * 100)
    made = arrive(bounds, "asked")
    made.cap = 150
    assert bounds.remaining(made, 0.9) == 150
    made.num_output_tokens = 150
    assert bounds.remaining(made, 0.9) == 1


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_a_wrong_model_is_corrected(factor: float) -> None:
    """Of independent lengths the bounds hold as often as meant, though quantiles are off by 2."""
    bounds = Calibrated(Exponential(200.0 * factor))
    run(bounds, exponentials(6000, 200.0))
    assert covered(bounds) == pytest.approx([0.9, 0.95], abs=0.012)


def test_drift_is_corrected() -> None:
    """Lengths that grow fourfold meanwhile; the predictor's own bounds would hold half the time."""
    steady = exponentials(6000, 100.0, seed=2)
    lengths = [round(length * (1 + i / 2000)) for i, length in enumerate(steady)]
    bounds = Calibrated(Exponential(100.0), window=6000)
    run(bounds, lengths)
    assert covered(bounds) == pytest.approx([0.9, 0.95], abs=0.015)


def test_many_open_requests_do_not_make_it_swing() -> None:
    """With a thousand open, a correction shows late, and is not made again until it does."""
    bounds = Calibrated(Histogram(), window=10_000)
    opened: deque[Request] = deque()
    for i, length in enumerate(exponentials(12_000, 100.0, seed=3)):
        opened.append(arrive(bounds, f"r{i}"))
        if len(opened) > 1000:
            end(bounds, opened.popleft(), length)
    assert covered(bounds) == pytest.approx([0.9, 0.95], abs=0.02)


def test_whatever_the_lengths_misses_are_bounded() -> None:
    """Against an adversary that exceeds every bound below the cap by a token.

    As the paper proves: at most the share meant, and as many more as raise the level to 1.
    """
    bounds = Calibrated(Exponential(100.0), levels=(0.9,), window=10_000)
    misses = 0
    for i in range(4000):
        made = arrive(bounds, f"r{i}")
        bound = bounds.remaining(made, 0.9)
        length = min(CAP, math.floor(bound) + 1)
        misses += length > bound
        end(bounds, made, length)
    assert misses <= 0.1 * 4000 + 0.11 / RATE + WARM_UP + MIN_SCORES


@pytest.mark.parametrize("mean", [30.0, 400.0])
def test_outputs_cut_at_the_cap_leave_the_count(mean: float) -> None:
    """Where an eighth or six of seven are cut, the others' bounds hold as often as meant."""
    bounds = Calibrated(Histogram())
    for i, length in enumerate(exponentials(10_000, mean, seed=4)):
        made = request(f"r{i}")
        made.cap = 64
        bounds.observe(Arrived(made, 0.0))
        reason = FinishReason.LENGTH if length >= 64 else FinishReason.STOP
        end(bounds, made, min(length, 64), reason)
    assert covered(bounds) == pytest.approx([0.9, 0.95], abs=0.015)
