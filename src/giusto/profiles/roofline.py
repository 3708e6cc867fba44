"""A profile from a data sheet: for models and machines that were not measured.

A step takes what its matrix products take, the longer of reading the weights and computing the
tokens; plus reading the contexts of decoding sequences; plus computing the attention of prompt
chunks to what came before them; plus a fixed time for everything else. A chunk's attention to
itself is left out: at 2,048 tokens of an 8-billion model it is a fiftieth of the products.
benchmarks/profiles/roofline_error.py compares this with measured kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from giusto.core.errors import ConfigError
from giusto.core.latency import BatchShape, RooflineLatency, terms
from giusto.core.plan import Limits
from giusto.profiles.profile import Profile

#: vLLM's default share of device memory for weights and KV.
MEMORY_SHARE = 0.9
#: Assumed, as no data sheet has it: the spread of step times of one shape on a quiet GPU.
NOISE = 0.03


@dataclass(frozen=True, slots=True)
class Architecture:
    """A dense decoder. `parameters` are all of them, each read once a step."""

    name: str
    parameters: float
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    bytes_per_weight: float = 2.0
    bytes_per_kv: float = 2.0

    @property
    def kv_bytes(self) -> float:
        """Bytes of keys and values that one token leaves."""
        return 2 * self.layers * self.kv_heads * self.head_size * self.bytes_per_kv

    @property
    def weight_bytes(self) -> float:
        return self.parameters * self.bytes_per_weight


@dataclass(frozen=True, slots=True)
class Hardware:
    """`count` equal devices: FLOP/s, bytes/s and bytes of one of them by its data sheet.

    The defaults are what tuned kernels reach; FlashAttention-2 gives 50 to 73 % for attention.

    efficiency: share of both peaks that kernels reach.
    attention_efficiency: share of the peak FLOP/s that attention of prompts reaches.
    parallel_efficiency: of each doubling of the devices, in tensor parallel.
    overhead: seconds a step takes beside its kernels: launches, sampling, the host.
    link: bytes/s between one device and host memory; None where nothing is swapped.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float
    count: int = 1
    efficiency: float = 0.8
    attention_efficiency: float = 0.5
    parallel_efficiency: float = 0.9
    overhead: float = 0.002
    link: float | None = None

    @property
    def scale(self) -> float:
        """How many times one device they are."""
        return self.count * math.pow(self.parallel_efficiency, math.log2(self.count))


def latency(model: Architecture, hardware: Hardware) -> RooflineLatency:
    """Step times by data sheet."""
    bandwidth = hardware.bandwidth * hardware.efficiency * hardware.scale
    flops = hardware.flops * hardware.scale
    # Two products per key, one multiplication and one addition each.
    pair_flops = 4 * model.layers * model.heads * model.head_size
    return RooflineLatency(
        memory=model.weight_bytes / bandwidth,
        compute=2 * model.parameters / (flops * hardware.efficiency),
        coefficients=terms(
            constant=hardware.overhead,
            prefill_kv=pair_flops / (flops * hardware.attention_efficiency),
            kv_tokens=model.kv_bytes / bandwidth,
        ),
    )


def num_blocks(model: Architecture, hardware: Hardware, block_size: int) -> int:
    """Blocks of KV memory that fit beside the weights; ConfigError where none does."""
    memory = MEMORY_SHARE * hardware.memory * hardware.count
    blocks = int((memory - model.weight_bytes) / (model.kv_bytes * block_size))
    if blocks < 1:
        raise ConfigError(
            f"{model.name} does not fit on {hardware.name}: its weights take "
            f"{model.weight_bytes / 1e9:.0f} of {memory / 1e9:.0f} GB; give more or larger devices"
        )
    return blocks


def roofline(
    name: str, model: Architecture, hardware: Hardware, limits: Limits | None = None
) -> Profile:
    """Make a profile; ConfigError where the model does not fit."""
    limits = limits or Limits()
    step = latency(model, hardware)
    link = hardware.link
    return Profile(
        name=name,
        hardware=hardware.name,
        model=model.name,
        measured="not measured: a roofline of data-sheet figures, as giusto.profiles.roofline "
        f"says, at {hardware.efficiency:.0%} of peak; noise is assumed",
        latency=step,
        block_size=limits.block_size,
        num_blocks=num_blocks(model, hardware, limits.block_size),
        bytes_per_block=int(model.kv_bytes * limits.block_size),
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_num_seqs=limits.max_num_seqs,
        swap_bandwidth=None if link is None else link * hardware.count,
        slo_unit=step.step_time(BatchShape(decode_seqs=1)),
        noise=NOISE,
    )
