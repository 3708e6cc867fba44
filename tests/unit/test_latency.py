"""Latency models: their fits against numpy and the truth, their forms, and what they learn."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from giusto.core.latency import (
    NUM_TERMS,
    TERMS,
    BatchShape,
    LinearLatency,
    RooflineLatency,
    TableLatency,
    terms,
)

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


# Tables


TABLE = ((1, 0.03), (128, 0.055), (256, 0.085))


def test_a_table_is_straight_between_its_points() -> None:
    """At a point its value, between two the line, before the first flat, past the last as steep."""
    model = TableLatency(((4, 0.01), (8, 0.02), (16, 0.02), (32, 0.05)))
    expected = {0: 0.01, 2: 0.01, 4: 0.01, 6: 0.015, 8: 0.02, 12: 0.02, 24: 0.035, 48: 0.08}
    got = {tokens: model.step_time(BatchShape(prefill_tokens=tokens)) for tokens in expected}
    assert got == pytest.approx(expected)


def test_a_table_counts_every_token_and_adds_its_terms() -> None:
    """Prompt tokens, decodes and nodes look up one sum; terms are added by name."""
    model = TableLatency(TABLE, terms(draft_steps=0.005, kv_tokens=1e-6))
    shape = BatchShape(
        prefill_tokens=60, decode_seqs=4, nodes=64, kv_tokens=1000, draft_steps=8, draft_tokens=96
    )
    assert model.step_time(shape) == pytest.approx(0.055 + 0.04 + 0.001)
    assert shape.num_tokens == 128


def test_a_table_of_one_point_is_a_constant() -> None:
    """Nothing says how it goes on."""
    assert TableLatency(((1, 0.02),)).step_time(BatchShape(prefill_tokens=500)) == 0.02


@pytest.mark.parametrize(
    ("points", "complaint"),
    [((), "at least one point"), (((8, 0.1), (8, 0.2)), "ascend"), (((8, 0.1), (1, 0)), "ascend")],
)
def test_a_table_needs_points_that_ascend(
    points: tuple[tuple[int, float], ...], complaint: str
) -> None:
    """Points without an order are no table."""
    with pytest.raises(ValueError, match=complaint):
        TableLatency(points)


def test_a_table_is_found_again_from_its_samples() -> None:
    """Without noise the fit gives back a table that rises unevenly, and the terms beside it."""
    knots = (1, 8, 16, 32, 128, 512)
    points = ((1, 0.01), (8, 0.012), (16, 0.012), (32, 0.03), (128, 0.08), (512, 0.5))
    truth = TableLatency(points, terms(decode_seqs=2e-4, kv_tokens=5e-7, prefill_kv=2e-8))
    grid = [BatchShape(decode_seqs=n, kv_tokens=n * c) for n in range(1, 65) for c in (64, 500)]
    grid += [BatchShape(prefill_tokens=n, prefill_kv=n * c) for n in knots for c in (0, 300)]
    grid += [BatchShape(prefill_tokens=900, decode_seqs=n, kv_tokens=n * 99) for n in (5, 40)]
    fitted = TableLatency.fit(((shape, truth.step_time(shape)) for shape in grid), knots)
    assert [tokens for tokens, _ in fitted.points] == list(knots)
    assert [s for _, s in fitted.points] == pytest.approx([s for _, s in points], rel=1e-3)
    assert fitted.coefficients == pytest.approx(truth.coefficients, rel=1e-2)


def test_a_fitted_table_never_falls() -> None:
    """Where more tokens were measured faster, the table stays level."""
    samples = [(BatchShape(prefill_tokens=n), s) for n, s in ((1, 0.03), (8, 0.01), (64, 0.05))]
    seconds = [s for _, s in TableLatency.fit(samples, (1, 8, 64)).points]
    assert sorted(seconds) == seconds
    assert seconds[0] == pytest.approx(seconds[1])


def test_a_table_is_not_fitted_to_nothing() -> None:
    """Without a measured step there is no table."""
    with pytest.raises(ValueError, match="without measured steps"):
        TableLatency.fit([], (1, 8))


# Rooflines


def test_a_roofline_is_memory_then_compute() -> None:
    """Far below the knee a step takes the weights' reading, far above the arithmetic."""
    model = RooflineLatency(memory=0.01, compute=1e-4)
    assert model.step_time(BatchShape(decode_seqs=1)) == pytest.approx(0.01, rel=1e-3)
    assert model.step_time(BatchShape(prefill_tokens=5000)) == pytest.approx(0.5, rel=1e-3)
    knee = model.step_time(BatchShape(prefill_tokens=60, decode_seqs=20, nodes=20))
    assert knee == pytest.approx(0.01 * 2**0.5)


def test_a_roofline_adds_its_terms() -> None:
    """Attention and overhead come on top."""
    model = RooflineLatency(0.01, 0.0, terms(constant=0.002, kv_tokens=1e-7))
    assert model.step_time(BatchShape(kv_tokens=10_000)) == pytest.approx(0.013)


# What the forms share


FORMS = (LinearLatency(TRUE), TableLatency(TABLE), RooflineLatency(0.01, 1e-4))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_learns(form: LinearLatency | TableLatency | RooflineLatency) -> None:
    """A scaled copy converges to a slower machine and leaves the original alone."""
    shape = BatchShape(decode_seqs=4, kv_tokens=1000)
    model = form.scaled(1.1)
    assert model.step_time(shape) == pytest.approx(1.1 * form.step_time(shape))
    for _ in range(200):
        model.learn(shape, 2 * form.step_time(shape))
    assert model.step_time(shape) == pytest.approx(2 * form.step_time(shape), rel=1e-3)
    assert form.correction == 1.0
    assert model.scaled() == form


@given(st.builds(BatchShape, *[st.integers(0, 10_000)] * (NUM_TERMS - 1)))
def test_linear_times_are_the_dot_product(shape: BatchShape) -> None:
    """The spelt-out sum is coefficients times features."""
    expected = sum(c * x for c, x in zip(TRUE, shape.features, strict=True))
    assert LinearLatency(TRUE).step_time(shape) == pytest.approx(expected)


def test_terms_are_given_by_name() -> None:
    """Names put coefficients in the order of the features; an unknown one is refused."""
    assert dict(zip(TERMS, terms(constant=1, swapped_blocks=2), strict=True)) == {
        **dict.fromkeys(TERMS, 0.0),
        "constant": 1,
        "swapped_blocks": 2,
    }
    assert len(BatchShape().features) == NUM_TERMS
    with pytest.raises(ValueError, match=r"no term decodes; there are constant, prefill_tokens"):
        terms(decodes=1.0)
