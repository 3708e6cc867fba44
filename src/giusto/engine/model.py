"""One decoder for the Llama family, inference only; called by `runner` once per step.

Differences between architectures are fields of `ModelConfig`. Query, key and value projections are
one matrix, as are gate and up. In bf16 on a CPU that multiplies it natively, every matrix is
reordered once into oneDNN's blocked layout, which reads it at nearly the speed of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from giusto.engine.attention import AttentionIndex, attend, prepare
from giusto.engine.config import ModelConfig
from giusto.engine.rope import RopeTable
from giusto.engine.tensors import BatchTensors, KVCache, LayerCache

Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class _Layer:
    attention_norm: Tensor
    qkv: Linear
    head_norm: Tensor | None  # [heads + kv_heads, head_dim], queries first
    output: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


def has_native_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AVX512-BF16 or AMX)."""
    # The public torch.cpu.get_capabilities is younger than the oldest torch we support.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return native and torch.backends.mkldnn.is_available()


class Decoder:
    """The model: token ids in, logits out, keys and values kept in a KVCache."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        dtype: torch.dtype,
        device: torch.device | str,
        output_tokens: Tensor | None = None,
    ) -> None:
        """Fuse and place the weights.

        Args:
            weights: tensors by their Hugging Face names, shapes as `parameter_shapes` says.
            output_tokens: int64 [outputs], the ids that logits are computed for; None for all.
        """
        self.config = config
        self.dtype = dtype
        self.device = torch.device(device)
        self._pack = self.device.type == "cpu" and dtype == torch.bfloat16 and has_native_bf16()
        with torch.inference_mode():
            self._embedding = self._place(weights["model.embed_tokens.weight"])
            self._layers = [self._layer(weights, index) for index in range(config.num_layers)]
            self._norm = self._place(weights["model.norm.weight"])
            is_tied = config.tied_embeddings
            head = self._embedding if is_tied else self._place(weights["lm_head.weight"])
            if output_tokens is not None:
                head = head.index_select(0, output_tokens)
            self._head = self._linear([head], [])
            self._rope = RopeTable(config, dtype, self.device)

    @property
    def embedding(self) -> Tensor:
        """[vocab, hidden], as it was placed."""
        return self._embedding

    @torch.inference_mode()
    def forward(self, batch: BatchTensors, kv: KVCache) -> Tensor:
        """Compute one step and write its keys and values into `kv`.

        Returns:
            float32 [n, outputs], one row per entry of `batch.logits_indices`; outputs are the
            vocabulary unless the decoder was told of fewer.
        """
        config = self.config
        group = config.num_heads // config.num_kv_heads
        index = prepare(batch, kv.block_size, self.dtype, config.sliding_window, group)
        cos, sin = self._rope.lookup(batch.positions, max(batch.context_lens))
        hidden = functional.embedding(batch.token_ids, self._embedding)
        for layer, cache in zip(self._layers, kv.layers, strict=True):
            normed = self._normalise(hidden, layer.attention_norm)
            hidden = hidden + self._attention(layer, normed, (cos, sin), cache, index)
            gate, up = layer.gate_up(self._normalise(hidden, layer.mlp_norm)).chunk(2, dim=-1)
            hidden = hidden + layer.down(functional.silu(gate) * up)
        hidden = hidden.index_select(0, batch.logits_indices)
        return self._head(self._normalise(hidden, self._norm)).float()

    def _attention(
        self,
        layer: _Layer,
        hidden: Tensor,
        rotation: tuple[Tensor, Tensor],
        cache: LayerCache,
        index: AttentionIndex,
    ) -> Tensor:
        """Map hidden [tokens, hidden] to the attention's contribution, same shape."""
        config = self.config
        heads = config.num_heads
        rotated = heads + config.num_kv_heads
        states = layer.qkv(hidden).view(hidden.shape[0], -1, config.head_dim)
        query_key = states[:, :rotated]
        if layer.head_norm is not None:
            normed = functional.rms_norm(query_key, (config.head_dim,), None, config.rms_norm_eps)
            query_key = normed * layer.head_norm
        cos, sin = rotation
        query_key = torch.addcmul(query_key * cos, query_key.roll(config.head_dim // 2, -1), sin)
        return layer.output(
            attend(query_key[:, :heads], query_key[:, heads:], states[:, rotated:], cache, index)
        )

    def _normalise(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """RMS norm over the last dimension; computed in float32 whatever the dtype."""
        return functional.rms_norm(hidden, weight.shape, weight, self.config.rms_norm_eps)

    def _layer(self, weights: Mapping[str, Tensor], index: int) -> _Layer:
        config = self.config
        prefix = f"model.layers.{index}."

        def linear(names: tuple[str, ...], bias: bool) -> Linear:
            return self._linear(
                [weights[f"{prefix}{name}.weight"] for name in names],
                [weights[f"{prefix}{name}.bias"] for name in names] if bias else [],
            )

        attention = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        head_norm = None
        if config.qk_norm:
            query, key = (self._place(weights[f"{prefix}self_attn.{n}_norm.weight"]) for n in "qk")
            head_norm = torch.cat(
                (query.expand(config.num_heads, -1), key.expand(config.num_kv_heads, -1))
            )
        return _Layer(
            attention_norm=self._place(weights[f"{prefix}input_layernorm.weight"]),
            qkv=linear(attention, config.qkv_bias),
            head_norm=head_norm,
            output=linear(("self_attn.o_proj",), config.output_bias),
            mlp_norm=self._place(weights[f"{prefix}post_attention_layernorm.weight"]),
            gate_up=linear(("mlp.gate_proj", "mlp.up_proj"), config.mlp_bias),
            down=linear(("mlp.down_proj",), config.mlp_bias),
        )

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype)

    def _linear(self, weights: list[Tensor], biases: list[Tensor]) -> Linear:
        """Stack matrices [out, in] into one product from [tokens, in] to [tokens, out]."""
        weight = torch.cat([self._place(part) for part in weights])
        bias = torch.cat([self._place(part) for part in biases]) if biases else None
        if not self._pack:
            return lambda states: functional.linear(states, weight, bias)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        product = torch.ops.mkldnn._linear_pointwise.default
        return lambda states: product(states, packed, bias, "none", [], "")
