"""The draft as it is trained: a small Llama with tied embeddings and a head of fewer tokens.

Parameters lie fused; `to_hub` splits them into what `config.json` and its readers expect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """Sizes of the draft. `context`: the longest that it is trained for, in tokens."""

    vocab_size: int
    hidden: int = 192
    layers: int = 2
    heads: int = 3
    kv_heads: int = 3
    ffn: int = 640
    context: int = 512
    theta: float = 10000.0
    eps: float = 1e-5

    def config(self) -> dict[str, Any]:
        """As a Hugging Face `config.json`."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.hidden // self.heads,
            "intermediate_size": self.ffn,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.context,
            "rms_norm_eps": self.eps,
            "rope_theta": self.theta,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "bfloat16",
        }


class Layer(nn.Module):
    """Attention and a gated unit, both behind a norm."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        hidden = shape.hidden
        self.heads, self.kv_heads, self.eps = shape.heads, shape.kv_heads, shape.eps
        self.dropout = dropout
        self.attention_norm = nn.Parameter(torch.ones(hidden))
        self.mlp_norm = nn.Parameter(torch.ones(hidden))
        wide = hidden // shape.heads * (shape.heads + 2 * shape.kv_heads)
        self.qkv = nn.Linear(hidden, wide, bias=False)
        self.output = nn.Linear(hidden, hidden, bias=False)
        self.gate_up = nn.Linear(hidden, 2 * shape.ffn, bias=False)
        self.down = nn.Linear(shape.ffn, hidden, bias=False)
        dim = hidden // shape.heads
        self.rows = [dim * count for count in (shape.heads, shape.kv_heads, shape.kv_heads)]
        for linear in (self.qkv, self.gate_up):
            nn.init.normal_(linear.weight, std=hidden**-0.5)
        for linear in (self.output, self.down):
            nn.init.normal_(linear.weight, std=0.2 * linear.in_features**-0.5)

    def forward(self, states: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        states = states + self._drop(
            self._attend(_norm(states, self.attention_norm, self.eps), rotation)
        )
        gate, up = self.gate_up(_norm(states, self.mlp_norm, self.eps)).chunk(2, -1)
        return states + self._drop(self.down(functional.silu(gate) * up))

    def _attend(self, states: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        batch, length, hidden = states.shape
        every = self.heads + 2 * self.kv_heads
        split = self.qkv(states).view(batch, length, every, -1).transpose(1, 2)
        query, key, value = split.split((self.heads, self.kv_heads, self.kv_heads), 1)
        cos, sin = (part.to(query.dtype) for part in rotation)
        query, key = (part * cos + _half(part) * sin for part in (query, key))
        # Rows are padded at their end, which nobody before sees.
        group = self.heads // self.kv_heads
        key, value = (part.repeat_interleave(group, 1) for part in (key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.output(mixed.transpose(1, 2).reshape(batch, length, hidden))

    def _drop(self, states: Tensor) -> Tensor:
        return functional.dropout(states, self.dropout, self.training)


class Draft(nn.Module):
    """Token ids in, hidden states out; `head` is over `outputs`, int64 [n] ids."""

    def __init__(self, shape: Shape, outputs: Tensor, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.randn(shape.vocab_size, shape.hidden) * 0.05)
        self.layers = nn.ModuleList(Layer(shape, dropout) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden))
        self.register_buffer("outputs", outputs)
        dim = shape.hidden // shape.heads
        frequencies = shape.theta ** -(torch.arange(0, dim, 2).float() / dim)
        angles = torch.outer(torch.arange(shape.context).float(), frequencies)
        self.register_buffer("cos", torch.cat((angles.cos(),) * 2, -1), persistent=False)
        self.register_buffer("sin", torch.cat((angles.sin(),) * 2, -1), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Final states [batch, length, hidden] of tokens [batch, length]."""
        length = tokens.shape[1]
        rotation = self.cos[:length], self.sin[:length]
        states = functional.embedding(tokens, self.embedding)
        for layer in self.layers:
            states = layer(states, rotation)
        return _norm(states, self.norm, self.shape.eps)

    def head(self) -> Tensor:
        """Rows of the reduced vocabulary, [outputs, hidden]."""
        return self.embedding.index_select(0, self.outputs)

    @torch.no_grad()
    def begin_with(self, weights: dict[str, Tensor], layers: list[int]) -> None:
        """Take layers of the target, and its embedding and last norm; `weights` by hub names."""
        self.embedding.copy_(weights["model.embed_tokens.weight"])
        self.norm.copy_(weights["model.norm.weight"])
        for layer, number in zip(self.layers, layers, strict=True):
            prefix = f"model.layers.{number}."
            part = {
                name.removeprefix(prefix).removesuffix(".weight"): tensor.float()
                for name, tensor in weights.items()
                if name.startswith(prefix)
            }
            layer.attention_norm.copy_(part["input_layernorm"])
            layer.mlp_norm.copy_(part["post_attention_layernorm"])
            layer.qkv.weight.copy_(torch.cat([part[f"self_attn.{name}_proj"] for name in "qkv"]))
            layer.output.weight.copy_(part["self_attn.o_proj"])
            layer.gate_up.weight.copy_(torch.cat([part["mlp.gate_proj"], part["mlp.up_proj"]]))
            layer.down.weight.copy_(part["mlp.down_proj"])

    def to_hub(self) -> dict[str, Tensor]:
        """The weights by their Hugging Face names, bf16."""
        named = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.norm}
        for number, layer in enumerate(self.layers):
            parts: dict[str, Tensor] = {
                "input_layernorm": layer.attention_norm,
                "post_attention_layernorm": layer.mlp_norm,
                "self_attn.o_proj": layer.output.weight,
                "mlp.down_proj": layer.down.weight,
            }
            for name, part in zip("qkv", layer.qkv.weight.split(layer.rows), strict=True):
                parts[f"self_attn.{name}_proj"] = part
            for name, part in zip(("gate", "up"), layer.gate_up.weight.chunk(2), strict=True):
                parts[f"mlp.{name}_proj"] = part
            named |= {f"model.layers.{number}.{name}.weight": part for name, part in parts.items()}
        return {
            name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
            for name, tensor in named.items()
        }


def reduced(embedding: Tensor, hidden: int, rms: float = 0.05) -> Tensor:
    """The target's embedding [vocab, wide] in `hidden` principal directions, scaled to `rms`."""
    wide = embedding.float()
    _, directions = torch.linalg.eigh(wide.T @ wide)
    narrow = wide @ directions[:, -hidden:]
    # Spread over all directions alike: else a few of them rule every norm.
    turn, _ = torch.linalg.qr(
        torch.randn(hidden, hidden, generator=torch.Generator().manual_seed(0))
    )
    narrow = narrow @ turn
    return narrow * (rms / narrow.square().mean().sqrt())


def _norm(states: Tensor, weight: Tensor, eps: float) -> Tensor:
    return functional.rms_norm(states, weight.shape, weight.to(states.dtype), eps)


def _half(states: Tensor) -> Tensor:
    first, second = states.chunk(2, -1)
    return torch.cat((-second, first), -1)
