"""The latency model: its fit against numpy, and what it learns."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from giusto.core.latency import NUM_TERMS, BatchShape, LinearLatency

TRUE = (8e-3, 7e-4, 2e-8, 3e-4, 5e-8, 4e-4, 2e-3, 1e-5, 1e-4)


def shapes(n: int, seed: int = 0) -> list[BatchShape]:
    rng = random.Random(seed)
    return [
        BatchShape(
            prefill_tokens=rng.choice([0, 0, rng.randint(1, 512)]),
            prefill_kv=rng.choice([0, rng.randint(0, 200_000)]),
            decode_seqs=rng.randint(0, 64),
            kv_tokens=rng.randint(0, 60_000),
            nodes=rng.choice([0, rng.randint(1, 40)]),
            draft_steps=rng.randint(0, 4),
            draft_tokens=rng.randint(0, 200),
            swapped_blocks=rng.randint(0, 10),
        )
        for _ in range(n)
    ]


def test_fit_finds_the_coefficients_that_made_the_samples() -> None:
    """Without noise the fit gives back the truth."""
    truth = LinearLatency(TRUE)
    fitted = LinearLatency.fit((shape, truth.step_time(shape)) for shape in shapes(200))
    assert fitted.coefficients == pytest.approx(TRUE, rel=1e-3)


def test_fit_agrees_with_numpy() -> None:
    """On noisy samples the fit is numpy's least squares of the relative errors."""
    rng = random.Random(1)
    truth = LinearLatency(TRUE)
    samples = [(s, truth.step_time(s) * rng.uniform(0.9, 1.1)) for s in shapes(400, seed=1)]
    rows = np.array([np.array(shape.features) / seconds for shape, seconds in samples])
    expected, *_ = np.linalg.lstsq(rows, np.ones(len(samples)), rcond=None)
    assert (expected > 0).all(), "otherwise plain least squares is no yardstick"
    assert LinearLatency.fit(samples).coefficients == pytest.approx(expected, rel=0.01)


def test_fit_satisfies_the_conditions_of_the_optimum() -> None:
    """Coefficients are >= 0; the gradient is 0 where one is positive and not negative elsewhere."""
    rng = random.Random(2)
    # Cost falls with decode_seqs here, which a non-negative fit may not express.
    samples = [
        (s, 0.05 + 1e-4 * s.prefill_tokens + 1e-3 * (64 - s.decode_seqs) * rng.uniform(0.9, 1.1))
        for s in shapes(300, seed=2)
    ]
    x = np.array(LinearLatency.fit(samples).coefficients)
    rows = np.array([np.array(shape.features) / seconds for shape, seconds in samples])
    gradient = (rows.T @ (rows @ x - 1)) / np.abs(rows).max(axis=0) / len(rows)
    assert (x >= 0).all()
    assert x[3] == 0
    assert np.abs(gradient[x > 0]).max() < 1e-4
    assert gradient[x == 0].min() > -1e-4


def test_terms_that_were_never_seen_cost_nothing() -> None:
    """A column of zeros gets the coefficient 0."""
    samples = [(BatchShape(decode_seqs=n), 0.01 + 0.001 * n) for n in range(1, 20)]
    fitted = LinearLatency.fit(samples)
    assert fitted.coefficients[0] == pytest.approx(0.01, rel=1e-3)
    assert fitted.coefficients[3] == pytest.approx(0.001, rel=1e-3)
    assert set(fitted.coefficients[1:3]) == {0.0}


def test_fit_needs_samples() -> None:
    """Without a measured step there is nothing to fit."""
    with pytest.raises(ValueError, match="without measured steps"):
        LinearLatency.fit([(BatchShape(), 0.0)])


def test_coefficients_match_the_terms() -> None:
    """One coefficient per term of the shape."""
    with pytest.raises(ValueError, match=f"expected {NUM_TERMS} coefficients, got 2"):
        LinearLatency((1.0, 2.0))


def test_learning_follows_a_machine_that_slows_down() -> None:
    """The correction converges to measured over predicted."""
    model = LinearLatency(TRUE)
    shape = BatchShape(decode_seqs=4, kv_tokens=1000)
    slow = 2 * model.step_time(shape)
    for _ in range(200):
        model.learn(shape, slow)
    assert model.step_time(shape) == pytest.approx(slow, rel=1e-3)


def test_one_outlier_moves_little() -> None:
    """A step a thousand times too long counts as four times."""
    model = LinearLatency(TRUE, rate=0.05)
    model.learn(BatchShape(decode_seqs=1), 1000.0)
    assert model.correction == pytest.approx(1 + 0.05 * 3)


def test_a_model_without_cost_learns_nothing() -> None:
    """Where nothing was predicted there is no ratio to learn from."""
    model = LinearLatency((0.0,) * NUM_TERMS)
    model.learn(BatchShape(), 1.0)
    assert model.correction == 1.0


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=50))
def test_the_correction_stays_positive(measured: list[float]) -> None:
    """Whatever is measured, a prediction stays above zero."""
    model = LinearLatency(TRUE)
    for seconds in measured:
        model.learn(BatchShape(decode_seqs=1), seconds)
    assert model.step_time(BatchShape(decode_seqs=1)) > 0
