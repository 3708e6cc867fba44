"""Start-up measurement: shapes that fit, times by the given clock, a model that fits them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from giusto.core.latency import BatchShape
from giusto.engine.profile import SHAPES, fit, measure
from giusto.engine.tensors import KVCache
from giusto.engine.weights import load_model
from tiny_models import make_tiny


@dataclass
class TickingClock:
    """Every look costs a millisecond, so each measured step takes one."""

    time: float = 5.0

    def now(self) -> float:
        self.time += 0.001
        return self.time


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return load_model(make_tiny(tmp_path_factory.mktemp("tiny")), "float32").decoder


def cache(decoder, num_blocks: int, block_size: int = 16) -> KVCache:
    return KVCache(decoder.config, num_blocks, block_size, torch.float32, "cpu")


def test_each_shape_that_fits_is_measured(decoder):
    """With room for all, every shape has its median time."""
    samples = measure(decoder, cache(decoder, 1200), TickingClock(), repeats=1)
    assert len(samples) == len(SHAPES)
    assert [seconds for _, seconds in samples] == pytest.approx([0.001] * len(SHAPES))
    assert samples[0][0] == BatchShape(decode_seqs=1, kv_tokens=65)
    assert samples[-1][0] == BatchShape(prefill_tokens=256, prefill_kv=256 * 512)


@pytest.mark.parametrize(("num_blocks", "block_size"), [(1, 16), (10, 1), (1, 2), (2, 1), (6, 16)])
def test_a_tiny_cache_is_measured_too(decoder, num_blocks, block_size):
    """However small the cache, something is measured and a model comes of it."""
    kv = cache(decoder, num_blocks, block_size)
    samples = measure(decoder, kv, TickingClock(), repeats=1)
    assert fit(samples).step_time(samples[0][0]) == pytest.approx(0.001, rel=0.01)


def test_the_fit_returns_what_was_measured(decoder, caplog):
    """Steps that cost 2 ms and 10 us a token are predicted so, and the error is logged."""
    shapes = [BatchShape(decode_seqs=n, kv_tokens=n * 65) for n in (1, 4, 8, 16, 32)]
    shapes += [BatchShape(prefill_tokens=n) for n in (16, 64, 256)]
    samples = [(s, 2e-3 + 1e-5 * (s.decode_seqs + s.prefill_tokens)) for s in shapes]
    with caplog.at_level("INFO"):
        model = fit(samples)
    for shape, seconds in samples:
        assert model.step_time(shape) == pytest.approx(seconds, rel=0.02)
    assert "2.0 ms alone" in caplog.text
