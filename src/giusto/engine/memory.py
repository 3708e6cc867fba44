"""Which device to use, how much of its memory to take for KV, and what that allows."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

import torch

from giusto.core.errors import ConfigError
from giusto.engine.config import ModelConfig
from giusto.engine.tensors import bytes_per_block

log = logging.getLogger(__name__)

#: Shares of memory taken when nothing is said, and the most that a CPU engine takes by itself.
_CPU_SHARE, _CPU_MOST = 0.15, 4 << 30
_GPU_SHARE = 0.85


@dataclass(frozen=True, slots=True)
class Capacity:
    """Blocks of KV memory, and the longest request that is served, in tokens."""

    num_blocks: int
    max_model_len: int
    num_bytes: int


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is a GPU where there is one.

    Raises ConfigError when it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"there is no device {name} here; give --device cpu")
    return device


def plan_capacity(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    block_size: int,
    *,
    kv_cache_memory: int | None = None,
    max_model_len: int | None = None,
) -> Capacity:
    """Size the KV cache so that one request of the greatest length always fits.

    Raises ConfigError when the asked length exceeds the model's or the asked memory's.
    """
    if max_model_len is not None and not 2 <= max_model_len <= config.max_model_len:
        raise ConfigError(
            f"--max-model-len {max_model_len} must lie between 2 and the model's own "
            f"{config.max_model_len}"
        )
    per_block = bytes_per_block(config, block_size, dtype)
    memory = _default_memory(device) if kv_cache_memory is None else kv_cache_memory
    num_blocks = memory // per_block
    length = max_model_len or config.max_model_len
    if num_blocks * block_size < length:
        needed = -(-length // block_size) * per_block
        if max_model_len is not None or num_blocks < 1:
            raise ConfigError(
                f"{memory:,} bytes of KV cache hold {num_blocks * block_size} tokens, fewer than "
                f"one request of {length}: give --kv-cache-memory {needed} or a smaller "
                "--max-model-len"
            )
        length = num_blocks * block_size
        log.warning("KV memory limits requests to %d tokens", length)
    return Capacity(num_blocks, length, num_blocks * per_block)


def _default_memory(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(_GPU_SHARE * free)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(int(_CPU_SHARE * total), _CPU_MOST)
