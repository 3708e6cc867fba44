"""Measure what steps cost on this machine and fit the latency model; run once at start-up."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from statistics import median

import torch

from giusto.core.clock import Clock
from giusto.core.latency import BatchShape, LinearLatency
from giusto.engine.model import Decoder
from giusto.engine.tensors import BatchTensors, KVCache

log = logging.getLogger(__name__)

#: (sequences, new tokens each, context before them): decodes, whole prompts, later chunks.
SHAPES = (
    *((count, 1, context) for context in (64, 512) for count in (1, 4, 8, 16, 32)),
    *((1, chunk, 0) for chunk in (16, 64, 256)),
    *((1, chunk, 512) for chunk in (16, 64, 256)),
)


def measure(
    decoder: Decoder, kv: KVCache, clock: Clock, *, repeats: int = 3
) -> list[tuple[BatchShape, float]]:
    """Time each shape that fits the cache: one warm-up, then the median of `repeats`, seconds.

    Writes to the cache: call it before anything is served.
    """
    samples = []
    for count, tokens, context in _fitting(kv):
        batch = _batch(count, tokens, context, kv, decoder.device)
        times = []
        for _ in range(repeats + 1):
            started = clock.now()
            decoder.forward(batch, kv).argmax(-1).tolist()
            times.append(clock.now() - started)
        samples.append((_shape(count, tokens, context), median(times[1:])))
    return samples


def fit(samples: list[tuple[BatchShape, float]]) -> LinearLatency:
    """Fit the model and log how far it is off."""
    model = LinearLatency.fit(samples)
    errors = [abs(model.step_time(shape) / seconds - 1) for shape, seconds in samples]
    log.info(
        "step times measured: %.1f ms alone, median error of the fit %.0f %%",
        1e3 * samples[0][1],
        100 * median(errors),
    )
    return model


def _fitting(kv: KVCache) -> Iterator[tuple[int, int, int]]:
    fitting = (
        (count, tokens, context)
        for count, tokens, context in SHAPES
        if count * -(-(context + tokens) // kv.block_size) <= kv.num_blocks
    )
    # A single token fits any cache.
    first = next(fitting, (1, 1, 0))
    yield first
    yield from fitting


def _shape(count: int, tokens: int, context: int) -> BatchShape:
    if tokens == 1:
        return BatchShape(decode_seqs=count, kv_tokens=count * (context + 1))
    return BatchShape(prefill_tokens=count * tokens, prefill_kv=count * tokens * context)


def _batch(
    count: int, tokens: int, context: int, kv: KVCache, device: torch.device | str
) -> BatchTensors:
    """`count` sequences side by side in the cache, each with `tokens` new ones."""
    end = context + tokens
    width = -(-end // kv.block_size)
    tables = torch.arange(count * width).view(count, width)
    positions = torch.arange(context, end).repeat(count)
    first = tables[:, :1].repeat_interleave(tokens, 1).view(-1) * kv.block_size
    return BatchTensors(
        token_ids=torch.zeros(count * tokens, dtype=torch.int64, device=device),
        positions=positions.to(device),
        slot_mapping=(first + positions).to(device),
        query_lens=[tokens] * count,
        context_lens=[end] * count,
        block_tables=tables.to(device),
        logits_indices=torch.arange(tokens - 1, count * tokens, tokens, device=device),
    )
