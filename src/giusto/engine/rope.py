"""Rotary position embedding: a table of cosines and sines by position, used by `model`.

The table is a function of the position alone, so a token is rotated alike however its sequence was
chunked or batched. Paper: RoFormer (RoPE), section 3.4. Differs: `dynamic` scaling stretches the
base by each token's own position instead of by the length of the sequence it is in.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from giusto.engine.config import ModelConfig, RopeScaling

_FIRST_ROWS = 4096


class RopeTable:
    """Cosines and signed sines [positions, head_dim], grown on demand.

    The first half of each sine row is negated: `x * cos + roll(x, head_dim / 2) * sin` then rotates
    without a negation or a concatenation per layer.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        self._config = config
        self._dtype = dtype
        self._device = device
        self._cos, self._sin = self._rows(min(_FIRST_ROWS, config.max_model_len))

    def lookup(self, positions: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """Return cos and sin, each [tokens, 1, head_dim], for positions below `longest`."""
        if longest > self._cos.shape[0]:
            self._cos, self._sin = self._rows(max(longest, 2 * self._cos.shape[0]))
        cos = self._cos.index_select(0, positions)
        return cos.unsqueeze(1), self._sin.index_select(0, positions).unsqueeze(1)

    def _rows(self, count: int) -> tuple[Tensor, Tensor]:
        angles = rotation_angles(self._config, count)
        cos = torch.cat((angles.cos(), angles.cos()), dim=-1)
        sin = torch.cat((-angles.sin(), angles.sin()), dim=-1)
        return cos.to(self._device, self._dtype), sin.to(self._device, self._dtype)


def rotation_angles(config: ModelConfig, count: int) -> Tensor:
    """Return the angle of each pair at positions 0 … count-1, float32 [count, head_dim / 2]."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    positions = torch.arange(count, dtype=torch.float32)
    if config.rope.kind == "dynamic":
        return positions[:, None] / _dynamic_bases(config, positions)[:, None] ** exponents
    frequencies = 1.0 / config.rope_theta**exponents
    if config.rope.kind == "linear":
        frequencies = frequencies / config.rope.factor
    elif config.rope.kind == "llama3":
        frequencies = frequencies / llama3_divisors(frequencies, config.rope)
    return torch.outer(positions, frequencies)


def _dynamic_bases(config: ModelConfig, positions: Tensor) -> Tensor:
    """Return the base of each position: it grows once the position passes the trained length."""
    trained, factor, dim = config.max_position_embeddings, config.rope.factor, config.head_dim
    lengths = (positions + 1).clamp(min=trained)
    stretch = factor * lengths / trained - (factor - 1)
    return config.rope_theta * stretch ** (dim / (dim - 2))


def llama3_divisors(frequencies: Tensor, rope: RopeScaling) -> Tensor:
    """Return what each frequency [pairs] is divided by in Llama 3.1's scaling.

    Wavelengths that fit the trained length `high_freq_factor` times stay; those that fit less than
    `low_freq_factor` times are stretched by `factor`; between, the inverse divisor is interpolated.
    """
    fits = rope.original_max_positions * frequencies / (2 * math.pi)
    span = rope.high_freq_factor - rope.low_freq_factor
    smooth = ((fits - rope.low_freq_factor) / span).clamp(0.0, 1.0)
    return 1.0 / ((1 - smooth) / rope.factor + smooth)
