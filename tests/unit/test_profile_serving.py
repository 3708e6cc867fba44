"""What serving adds to a profile: steps of about one shape together, gaps but no rests."""

from __future__ import annotations

import pytest

from giusto.commands.serving import Watch, rate_for, refit
from giusto.core.events import Arrived, Finished, Stepped
from giusto.core.latency import BatchShape, LinearLatency, terms
from giusto.core.plan import StepOutcome
from giusto.core.request import FinishReason, Request, Submission
from giusto.profiles.fit import Timing
from simulated import PROFILE


def stepped(started: float, ended: float, shape: BatchShape) -> Stepped:
    return Stepped(StepOutcome(0, started, ended, shape), ended)


def arrived(name: str, now: float) -> Arrived:
    return Arrived(Request.of(Submission(name, now, 4)), now)


def watched() -> Watch:
    """Two steps for one request, a rest, and a step for another."""
    seen = Watch()
    seen.observe(arrived("a", 0.0))
    seen.observe(stepped(0.0, 0.2, BatchShape(prefill_tokens=100)))
    seen.observe(stepped(0.3, 0.4, BatchShape(decode_seqs=1, kv_tokens=101)))
    seen.observe(Finished("a", 0.4, FinishReason.STOP))
    seen.observe(arrived("b", 9.0))
    seen.observe(stepped(9.0, 9.1, BatchShape(decode_seqs=1, kv_tokens=103)))
    return seen


def test_a_rest_is_no_gap():
    """Time between steps counts while somebody waits for the next."""
    assert watched().gaps == [pytest.approx(0.1)]
    assert watched().gap == pytest.approx(0.1)
    assert Watch().gap == 0.0


def test_steps_of_about_one_shape_are_one_timing():
    """Contexts that are nearly equal fall together, with their mean as the shape."""
    timings = watched().timings()
    assert [(t.kind, len(t.seconds)) for t in timings] == [
        ("serving, decodes", 2),
        ("serving, prompts", 1),
    ]
    assert timings[0].shape == BatchShape(decode_seqs=1, kv_tokens=102)


def test_the_profile_follows_what_serving_took():
    """Where serving takes half as long again, the fit is between it and the grid, nearer to it."""
    truth = LinearLatency(terms(constant=0.01, prefill_tokens=0.0004))
    sizes = (1, 8, 64, 256)
    grid = [
        Timing("prefill", shape, (truth.step_time(shape),))
        for shape in (BatchShape(prefill_tokens=n) for n in sizes)
    ]
    seen = Watch(gaps=[0.002, 0.001, 0.003])
    for n in range(16, 256, 16):
        shape = BatchShape(prefill_tokens=n)
        seen.steps.append((shape, 1.5 * truth.step_time(shape)))
    made = refit(PROFILE, grid, seen)
    shape = BatchShape(prefill_tokens=144)
    assert 1.25 < made.latency.step_time(shape) / truth.step_time(shape) < 1.75
    assert made.gap == 0.002
    assert "while serving" in made.measured
    assert set(made.residuals) == {"prefill", "serving, prompts"}


def test_a_slower_machine_is_loaded_less():
    """The rate keeps the machine equally busy, whatever its speed."""
    fast = LinearLatency(terms(constant=0.01, prefill_tokens=0.0004))
    slow = LinearLatency(terms(constant=0.02, prefill_tokens=0.0008))
    assert rate_for(fast) == pytest.approx(2 * rate_for(slow))
