"""Length bounds: the histogram against sorting, and what it learns from."""

from __future__ import annotations

import random

import pytest

from giusto.core.events import Arrived, Finished, Rejected
from giusto.core.request import FinishReason, ProgramRef, Reason, Request
from giusto.predict.base import Constant, LengthPredictor, Oracle
from giusto.predict.histogram import APP_SAMPLES, MAX_APPS, MIN_SAMPLES, Histogram
from strategies import request


def of_app(made: Request, app: str | None) -> Request:
    made.ref = None if app is None else ProgramRef("p", made.id, app=app)
    return made


def at(emitted: int, cap: int = 2048, app: str | None = None) -> Request:
    made = request("asked", output=emitted)
    made.cap = cap
    return of_app(made, app)


def learn(
    lengths: Histogram,
    name: str,
    length: int,
    reason: FinishReason = FinishReason.STOP,
    app: str | None = None,
) -> None:
    """Tell it of a request that ended after so many tokens."""
    made = of_app(request(name), app)
    lengths.observe(Arrived(made, 0.0))
    made.num_output_tokens = length
    lengths.observe(Finished(name, 1.0, reason))


def slow_bound(past: list[int], emitted: int, quantile: float) -> int:
    """By sorting: of those that came further, the quantile of how far they got."""
    beyond = sorted(length for length in past if length > emitted)
    return beyond[int(quantile * (len(beyond) - 1))] - emitted


def test_the_bound_is_the_quantile_of_those_that_came_further() -> None:
    """On random histories the look-up equals sorting, for every progress."""
    draw = random.Random(1)
    for window in (10, 500):
        lengths, past = Histogram(0.7, window), []
        for i in range(40):
            past.append(draw.randint(1, 60))
            learn(lengths, f"r{i}", past[-1])
            past = past[-window:]
            for emitted in range(0, 60, 7):
                if sum(length > emitted for length in past) >= MIN_SAMPLES:
                    expected = slow_bound(past, emitted, 0.7)
                    assert lengths.remaining(at(emitted)) == expected


def test_without_history_an_eighth_of_the_cap_is_expected() -> None:
    """Less what was emitted; past that, as much again, up to the cap."""
    lengths = Histogram()
    assert lengths.remaining(at(0, cap=800)) == 100
    assert lengths.remaining(at(20, cap=800)) == 80
    assert lengths.remaining(at(300, cap=800)) == 300
    assert lengths.remaining(at(700, cap=800)) == 100
    assert lengths.remaining(at(800, cap=800)) == 1


def test_beyond_all_history_the_length_is_expected_to_double() -> None:
    """Up to the cap, and never less than one."""
    lengths = Histogram()
    learn(lengths, "a", 10)
    assert lengths.remaining(at(20, cap=100)) == 20
    assert lengths.remaining(at(90, cap=100)) == 10
    assert lengths.remaining(at(100, cap=100)) == 1


def test_classes_are_kept_apart() -> None:
    """What chats did says nothing of batch lines."""
    lengths = Histogram()
    for i in range(5):
        learn(lengths, f"r{i}", 10)
    other = at(0, cap=400)
    other.service_class = "batch"
    assert (lengths.remaining(at(0)), lengths.remaining(other)) == (10, 50)


@pytest.mark.parametrize("reason", [FinishReason.ABORT, FinishReason.ERROR])
def test_cut_short_outputs_teach_nothing(reason: FinishReason) -> None:
    """A cancelled request's length is not a length."""
    lengths = Histogram()
    for i in range(5):
        learn(lengths, f"r{i}", 3, reason)
    learn(lengths, "empty", 0)
    assert lengths.remaining(at(0, cap=400)) == 50


def test_the_refused_are_forgotten() -> None:
    """Nothing is kept of requests that never ran, nor of endings it never saw begin."""
    lengths = Histogram()
    lengths.observe(Arrived(request("a"), 0.0))
    lengths.observe(Rejected("a", 0.0, Reason.DRAINING))
    lengths.observe(Rejected("b", 0.0, Reason.DRAINING))
    lengths.observe(Finished("c", 0.0, FinishReason.STOP))
    lengths.observe("something else")
    assert lengths.remaining(at(0, cap=400)) == 50


@pytest.mark.parametrize("quantile", [0.0, 1.0, -1.0, 2.0])
def test_a_quantile_lies_between_none_and_all(quantile: float) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match="quantile"):
        Histogram(quantile)


def test_a_stated_chance_holds_for_a_finite_sample() -> None:
    """Of n lengths the ceil((n + 1) q)-th bounds the next with a chance of q; the last at most."""
    lengths = Histogram()
    for i in range(1, 20):
        learn(lengths, f"r{i}", i)
    bounds = [lengths.remaining(at(0), level) for level in (0.05, 0.5, 0.9, 0.95, 0.99)]
    assert bounds == [1, 10, 18, 19, 19]
    assert lengths.remaining(at(10), 0.5) == 5


def test_no_bound_exceeds_the_cap() -> None:
    """However long others got: the next one would be cut there."""
    lengths = Histogram()
    for i in range(5):
        learn(lengths, f"r{i}", 100, FinishReason.LENGTH)
    assert lengths.remaining(at(0, cap=80), 0.95) == 80
    assert lengths.remaining(at(79, cap=80), 0.95) == 1
    assert lengths.remaining(at(80, cap=80), 0.95) == 1


def test_an_app_is_compared_with_its_own() -> None:
    """Once it has enough lengths; before, and where too few came as far, with its whole class."""
    lengths = Histogram()
    for i in range(APP_SAMPLES - 1):
        learn(lengths, f"long{i}", 200)
        learn(lengths, f"short{i}", 10, app="mail")
    assert lengths.remaining(at(0, app="mail"), 0.9) == 200
    learn(lengths, "last", 10, app="mail")
    assert lengths.remaining(at(0, app="mail"), 0.9) == 10
    assert lengths.remaining(at(10, app="mail"), 0.9) == 190
    assert lengths.remaining(at(0, app="other"), 0.9) == 200
    assert lengths.remaining(at(0), 0.9) == 200


def test_apps_are_bounded() -> None:
    """Clients name them: beyond the limit the one not heard of for longest is forgotten."""
    lengths = Histogram()
    for app in ["first", "second"] * APP_SAMPLES:
        learn(lengths, "r", 10, app=app)
    for i in range(MAX_APPS - 1):
        learn(lengths, "r", 500, app=f"app{i}")
    assert lengths.remaining(at(0, app="second"), 0.9) == 10
    assert lengths.remaining(at(0, app="first"), 0.9) == 500


def test_a_constant_is_constant() -> None:
    """It counts down to one and learns nothing."""
    lengths = Constant(10)
    lengths.observe(Finished("a", 0.0, FinishReason.STOP))
    assert [lengths.remaining(at(n)) for n in (0, 4, 20)] == [10, 6, 1]


def test_an_oracle_knows() -> None:
    """The true rest at every level, and it learns nothing."""

    class Truth:
        def output_tokens(self, request_id: str) -> int:
            return {"asked": 10}[request_id]

    lengths: LengthPredictor = Oracle(Truth())
    lengths.observe(Finished("a", 0.0, FinishReason.STOP))
    assert [lengths.remaining(at(n), 0.9) for n in (0, 4, 20)] == [10, 6, 1]
    assert lengths.remaining(at(0)) == 10
