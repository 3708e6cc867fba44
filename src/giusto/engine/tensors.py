"""The tensors of one step: what `batch` builds, `model` reads and `attention` writes.

Invariant: a slot is `block * block_size + offset`, and every tensor of a step lies on one device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from giusto.engine.config import ModelConfig


@dataclass(frozen=True, slots=True)
class BatchTensors:
    """One ragged batch: the new tokens of all its sequences, concatenated in order.

    Attributes:
        token_ids: int64 [tokens].
        positions: int64 [tokens], position of each token in its own sequence.
        slot_mapping: int64 [tokens], cache slot that each token's key and value go to.
        query_lens: new tokens of each sequence; sums to `tokens`.
        context_lens: tokens of each sequence in the cache, those of this step included.
        block_tables: int64 [sequences, max_blocks], padded with 0.
        logits_indices: int64 [n], the rows of `token_ids` whose logits are wanted.
        trees: by sequence, for those whose new tokens are a root and its token tree: bool
            [new, new], who sees whom. All see what was cached before; others see causally.
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    query_lens: list[int]
    context_lens: list[int]
    block_tables: Tensor
    logits_indices: Tensor
    trees: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Keys and values of one layer, each [slots, kv_heads, head_dim]."""

    keys: Tensor
    values: Tensor


class KVCache:
    """Paged key/value memory of all layers.

    A token's heads lie side by side in its slot, so writing a token and gathering a context are
    row copies; this measured faster on CPU than one region per head.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        # Written once: a page that is first touched while serving slows that step by a fifth.
        shape = (num_blocks * block_size, config.num_kv_heads, config.head_dim)
        self.layers = [
            LayerCache(
                torch.empty(shape, dtype=dtype, device=device).zero_(),
                torch.empty(shape, dtype=dtype, device=device).zero_(),
            )
            for _ in range(config.num_layers)
        ]

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy tokens from slot to slot in all layers; a source may be another's target."""
        if not sources:
            return
        device = self.layers[0].keys.device
        here, there = torch.tensor(sources, device=device), torch.tensor(targets, device=device)
        for layer in self.layers:
            for cache in (layer.keys, layer.values):
                cache.index_copy_(0, there, cache.index_select(0, here))


def bytes_per_block(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Return the bytes that one block takes over all layers, keys and values together."""
    per_slot = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return per_slot * block_size * dtype.itemsize
