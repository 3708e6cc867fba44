"""Rooflines: what follows from a data sheet."""

from __future__ import annotations

from dataclasses import replace

import pytest

from giusto.core.errors import ConfigError
from giusto.core.latency import BatchShape
from giusto.core.plan import Limits
from giusto.profiles.roofline import Architecture, Hardware, latency, num_blocks, roofline

#: 1 GB of weights, 4,096 bytes of KV a token.
MODEL = Architecture("toy", 5e8, layers=4, heads=4, kv_heads=2, head_size=128)
#: Reads the weights in 10 ms; computes 1,000 tokens in 10 ms.
MACHINE = Hardware("toy", 1e14, 1e11, 4e9, efficiency=1.0, attention_efficiency=1.0, overhead=0.001)


def test_decodes_wait_for_memory() -> None:
    """A step of one token takes the weights and the context over the bandwidth, plus overhead."""
    model = latency(MODEL, MACHINE)
    assert model.step_time(BatchShape(decode_seqs=1)) == pytest.approx(0.011, rel=1e-3)
    context = BatchShape(decode_seqs=1, kv_tokens=100_000)
    assert model.step_time(context) == pytest.approx(0.011 + 100_000 * 4096 / 1e11, rel=1e-3)


def test_prompts_wait_for_arithmetic() -> None:
    """Two operations per weight and token, four per layer, head and pair of tokens."""
    model = latency(MODEL, MACHINE)
    chunk = BatchShape(prefill_tokens=20_000)
    assert model.step_time(chunk) == pytest.approx(0.201, rel=2e-3)
    later = replace(chunk, prefill_kv=20_000 * 1000)
    pairs = 20_000 * 1000 * 4 * 4 * 4 * 128 / 1e14
    assert model.step_time(later) - model.step_time(chunk) == pytest.approx(pairs)


def test_efficiency_divides() -> None:
    """Half the peak takes twice the time, overhead aside."""
    free, half = replace(MACHINE, overhead=0.0), replace(MACHINE, overhead=0.0, efficiency=0.5)
    shape = BatchShape(decode_seqs=8, kv_tokens=900)
    ratio = latency(MODEL, half).step_time(shape) / latency(MODEL, free).step_time(shape)
    assert ratio == pytest.approx(2.0)


def test_devices_add_up_with_a_loss() -> None:
    """Each doubling is worth 1.8, and the overhead stays."""
    four = replace(MACHINE, count=4, parallel_efficiency=0.9)
    one = latency(MODEL, MACHINE).step_time(BatchShape(decode_seqs=1)) - 0.001
    assert latency(MODEL, four).step_time(BatchShape(decode_seqs=1)) - 0.001 == pytest.approx(
        one / 1.8**2
    )


def test_blocks_fill_what_the_weights_leave() -> None:
    """90 % of all devices, less the weights once."""
    per_block = MODEL.kv_bytes * 16
    assert num_blocks(MODEL, MACHINE, 16) == int((3.6e9 - 1e9) / per_block)
    assert num_blocks(MODEL, replace(MACHINE, count=2), 16) == int((7.2e9 - 1e9) / per_block)


def test_weights_that_do_not_fit_are_refused() -> None:
    """The error says what they take, what there is and what to do."""
    large = replace(MODEL, name="large", parameters=5e9)
    with pytest.raises(ConfigError, match=r"large does not fit on toy: .* 10 of 4 GB; give more"):
        roofline("large", large, MACHINE)


def test_smaller_weights_are_read_faster() -> None:
    """Eight bits instead of sixteen: half the memory time, the same arithmetic."""
    eight = replace(MODEL, bytes_per_weight=1.0)
    wide, narrow = latency(MODEL, MACHINE), latency(eight, MACHINE)
    assert narrow.memory == pytest.approx(wide.memory / 2)
    assert narrow.compute == wide.compute


def test_a_roofline_is_a_profile() -> None:
    """Marked as not measured, with the limits asked for, all links together, and its own unit."""
    limits = Limits(max_num_batched_tokens=1024, max_num_seqs=64, block_size=32)
    machine = replace(MACHINE, count=2, link=1e10)
    profile = roofline("mine", MODEL, machine, limits)
    assert profile.measured.startswith("not measured")
    assert profile.limits == limits
    assert profile.bytes_per_block == 32 * MODEL.kv_bytes
    assert profile.swap_bandwidth == 2e10
    assert profile.slo_unit == profile.latency.step_time(BatchShape(decode_seqs=1))
    assert roofline("mine", MODEL, MACHINE).swap_bandwidth is None
