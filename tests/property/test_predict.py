"""Length bounds for any history: against a twin that sorts, in order of chance, never below 1."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from giusto.core.events import LEVELS, Arrived, Estimated, Finished
from giusto.core.request import FinishReason, ProgramRef, Request
from giusto.predict.base import Constant, LengthPredictor
from giusto.predict.conformal import Calibrated
from giusto.predict.estimates import ForestPredictor
from giusto.predict.histogram import APP_SAMPLES, MIN_SAMPLES, Histogram
from strategies import request

CAP = 500
lengths = st.integers(1, CAP)
chances = st.floats(0.01, 0.99)
#: App and length of requests that ended, in order; a few apps, so that some have enough.
histories = st.lists(
    st.tuples(st.sampled_from((None, "a", "a", "b")), st.integers(1, 60) | lengths), max_size=150
)


def made(name: str, app: str | None = None, emitted: int = 0) -> Request:
    asked = request(name, output=emitted)
    asked.cap = CAP
    asked.ref = None if app is None else ProgramRef("p", name, app=app)
    return asked


def learn(bounds: LengthPredictor, history: list[tuple[str | None, int]]) -> None:
    for i, (app, length) in enumerate(history):
        asked = made(f"r{i}", app)
        bounds.observe(Arrived(asked, 0.0))
        asked.num_output_tokens = length
        bounds.observe(Finished(asked.id, 1.0, FinishReason.STOP))


@given(histories, st.sampled_from((None, "a", "b")), st.integers(0, CAP), chances)
def test_a_histogram_equals_sorting(
    history: list[tuple[str | None, int]], app: str | None, emitted: int, chance: float
) -> None:
    """Of the app's last lengths, or of its class's, those beyond: the conservative quantile."""
    window = 40
    bounds = Histogram(window=window)
    learn(bounds, history)
    own = [length for name, length in history if name == app][-window:]
    everyone = [length for _, length in history][-window:]
    beyond: list[int] = []
    if app is not None and len(own) >= APP_SAMPLES:
        beyond = sorted(length for length in own if length > emitted)
    if len(beyond) < MIN_SAMPLES:
        beyond = sorted(length for length in everyone if length > emitted)
    if len(beyond) >= MIN_SAMPLES:
        rank = min(len(beyond), math.ceil(chance * (len(beyond) + 1)))
        assert bounds.remaining(made("asked", app, emitted), chance) == beyond[rank - 1] - emitted


@st.composite
def predictors(draw: st.DrawFn) -> LengthPredictor:
    """Any predictor after any history, plain or calibrated; an answer for `asked` or none."""
    inner: LengthPredictor = Histogram(window=draw(st.sampled_from((5, 40))))
    if draw(st.booleans()):
        inner = ForestPredictor(inner)
    bounds = Calibrated(inner) if draw(st.booleans()) else inner
    learn(bounds, draw(histories))
    bounds.observe(Arrived(made("asked"), 0.0))
    if draw(st.booleans()):
        answer = sorted(draw(st.lists(lengths, min_size=len(LEVELS), max_size=len(LEVELS))))
        bounds.observe(Estimated("asked", tuple(map(float, answer)), 0.5))
    return bounds


@given(predictors(), st.sampled_from((None, "a")), st.integers(0, CAP + 5), chances, chances)
def test_a_bound_of_a_greater_chance_is_no_less(
    bounds: LengthPredictor, app: str | None, emitted: int, one: float, other: float
) -> None:
    """For every predictor and progress; and all lie between one token and the cap."""
    asked = made("asked", app, emitted)
    low, high = (bounds.remaining(asked, level) for level in sorted((one, other)))
    assert 1 <= low <= high + 1e-9
    assert high <= max(1, CAP - emitted)
    assert 1 <= bounds.remaining(asked) <= max(1, CAP - emitted)


@given(predictors(), st.lists(lengths, max_size=120), st.lists(chances, min_size=2, max_size=6))
def test_corrections_keep_the_order(
    inner: LengthPredictor, history: list[int], levels: list[float]
) -> None:
    """Whatever was judged, a greater chance is asked for at no lesser level, above none."""
    bounds = Calibrated(inner)
    learn(bounds, [(None, length) for length in history])
    asked = [bounds.corrected("default", level) for level in sorted(levels)]
    assert asked == sorted(asked)
    assert asked[0] > 0


@given(st.lists(lengths, min_size=1, max_size=80))
def test_a_constant_is_judged_as_it_is(history: list[int]) -> None:
    """Coverage is the share that the constant covers, while it is not replaced by the cap."""
    bounds = Calibrated(Constant(float(CAP)))
    learn(bounds, [(None, length) for length in history])
    rows = bounds.report()
    ratio = sum(CAP / length for length in history) / len(history)
    assert [(row.count, row.coverage) for row in rows] == [(len(history), 1.0)] * 2
    assert all(math.isclose(row.mean_ratio, ratio) for row in rows)
