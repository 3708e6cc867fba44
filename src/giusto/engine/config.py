"""What a model is, read from a Hugging Face `config.json`; called by `weights` and `gguf`.

One frozen `ModelConfig` describes every architecture the decoder runs (Llama 2/3, SmolLM, Qwen2,
Qwen2.5, Qwen3, Mistral); differences between them are fields, never subclasses. What the decoder
would not compute exactly is refused here, with one sentence that says what to do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from giusto.core.errors import ModelError

FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
ROPE_KINDS = ("default", "linear", "dynamic", "llama3")
_DEFAULT_POSITIONS = {"llama": 2048, "mistral": 131072, "qwen2": 32768, "qwen3": 32768}


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched; the unused fields of a kind keep their defaults."""

    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and switches of one decoder-only model."""

    family: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    rope: RopeScaling
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_window: int | None
    max_position_embeddings: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None

    @property
    def max_model_len(self) -> int:
        """The longest context in tokens that the positions of the model cover."""
        if self.rope.kind in ("linear", "dynamic"):
            return int(self.max_position_embeddings * self.rope.factor)
        return self.max_position_embeddings


class _Fields:
    """Typed look-ups in one JSON object; a bad value is a ModelError that names file and key."""

    def __init__(self, raw: Mapping[str, Any], source: str) -> None:
        self.raw = raw
        self.source = source

    def _number(self, key: str, default: float | None) -> int | float:
        value = self.raw.get(key)
        if value is None:
            value = default
        if value is None:
            raise ModelError(
                f"{self.source} lacks {key!r}; download the model's config.json again."
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ModelError(
                f"{self.source} has {key!r} = {value!r} where a positive number belongs; "
                "download the model's config.json again."
            )
        return value

    def size(self, key: str, default: int | None = None) -> int:
        value = self._number(key, default)
        if value != int(value):
            raise ModelError(
                f"{self.source} has {key!r} = {value!r}, which must be a whole number."
            )
        return int(value)

    def real(self, key: str, default: float | None = None) -> float:
        return float(self._number(key, default))

    def flag(self, key: str, default: bool) -> bool:
        value = self.raw.get(key)
        return default if value is None else bool(value)


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object, or raise a ModelError that names the file."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{path} is missing; point --model at a complete Hugging Face model folder."
        ) from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({error}); download it again.") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{path} must hold one JSON object; download it again.")
    return raw


def read_config(folder: Path) -> ModelConfig:
    """Read `config.json` of a Hugging Face folder."""
    path = folder / "config.json"
    return parse_config(read_json(path), str(path))


def parse_config(raw: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
    """Turn the JSON object of a `config.json` into a ModelConfig.

    Raises:
        ModelError: an architecture, rope type or layout that the decoder does not compute.
    """
    family = _family(raw, source)
    fields = _Fields(raw, source)
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    kv_heads = fields.size("num_key_value_heads", heads)
    head_dim = fields.size("head_dim", 128 if family == "qwen3" else hidden // heads)
    if heads % kv_heads or head_dim % 2:
        raise ModelError(
            f"{source} has {heads} attention heads over {kv_heads} key/value heads of {head_dim}; "
            "the first must be a multiple of the second and the third even."
        )
    _refuse_other_layouts(raw, source)
    positions = fields.size("max_position_embeddings", _DEFAULT_POSITIONS[family])
    theta, rope = _rope(raw, source, positions)
    bias = fields.flag("attention_bias", False)
    return ModelConfig(
        family=family,
        hidden_size=hidden,
        num_layers=fields.size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=fields.size("intermediate_size"),
        vocab_size=fields.size("vocab_size"),
        rms_norm_eps=fields.real("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope=rope,
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        qkv_bias=family == "qwen2" or (family in ("llama", "qwen3") and bias),
        output_bias=family in ("llama", "qwen3") and bias,
        mlp_bias=family == "llama" and fields.flag("mlp_bias", False),
        qk_norm=family == "qwen3",
        sliding_window=_sliding_window(raw, source, family),
        max_position_embeddings=positions,
        eos_token_ids=token_ids(raw.get("eos_token_id"), source),
        bos_token_id=next(iter(token_ids(raw.get("bos_token_id"), source)), None),
    )


def token_ids(value: object, source: str) -> tuple[int, ...]:
    """Read an id field that may be absent, a number or a list of numbers."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(item, bool) or not isinstance(item, int) for item in values):
        raise ModelError(f"{source} has {value!r} where token ids belong; download it again.")
    return tuple(values)


def _family(raw: Mapping[str, Any], source: str) -> str:
    names = raw.get("architectures")
    if isinstance(names, list) and names:
        name, family = str(names[0]), FAMILIES.get(str(names[0]))
    else:
        name = str(raw.get("model_type"))
        family = name if name in FAMILIES.values() else None
    if family is None:
        raise ModelError(
            f"{source} names architecture {name}, which this engine does not run; "
            f"use a model of one of these: {', '.join(FAMILIES)}."
        )
    return family


def _refuse_other_layouts(raw: Mapping[str, Any], source: str) -> None:
    if raw.get("quantization_config"):
        raise ModelError(
            f"{source} describes quantised weights, which this engine does not read; "
            "use the unquantised folder of the model or a GGUF file."
        )
    activation = raw.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ModelError(f"{source} has hidden_act {activation!r}; only 'silu' is computed.")
    if raw.get("partial_rotary_factor", 1.0) not in (None, 1, 1.0):
        raise ModelError(f"{source} rotates only part of each head, which is not computed.")


def _sliding_window(raw: Mapping[str, Any], source: str, family: str) -> int | None:
    """Return the window in tokens that every layer keeps to, or None."""
    if family == "llama":
        return None
    if family == "mistral":
        # The reference implementation windows at 4096 tokens unless told otherwise.
        window = raw.get("sliding_window", 4096)
    else:
        window = raw.get("sliding_window") if raw.get("use_sliding_window") else None
    if window is None:
        return None
    if isinstance(window, bool) or not isinstance(window, int) or window <= 0:
        raise ModelError(f"{source} has sliding_window = {window!r}, which must be positive.")
    layers = raw.get("layer_types")
    if layers is None and family != "mistral":
        count, first = raw.get("num_hidden_layers", 0), raw.get("max_window_layers", 28)
        layers = ["full_attention" if i < first else "sliding_attention" for i in range(count)]
    kinds = set(layers or ["sliding_attention"])
    if kinds == {"full_attention"}:
        return None
    if kinds != {"sliding_attention"}:
        raise ModelError(
            f"{source} mixes full and sliding-window layers, which this engine does not compute; "
            'set "use_sliding_window": false and keep contexts within the window.'
        )
    return window


def _rope(raw: Mapping[str, Any], source: str, positions: int) -> tuple[float, RopeScaling]:
    """Read theta and scaling from `rope_parameters` (newer) or `rope_theta` and `rope_scaling`."""
    given = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise ModelError(f"{source} has rope scaling {given!r} where an object belongs.")
    kind = str(given.get("rope_type", given.get("type", "default")))
    if kind not in ROPE_KINDS:
        raise ModelError(
            f"{source} asks for rope type {kind!r}, which this engine does not compute; "
            f"use a model with one of these: {', '.join(ROPE_KINDS)}."
        )
    fields = _Fields(given, f"{source} (rope)")
    theta = fields.real("rope_theta", _Fields(raw, source).real("rope_theta", 10000.0))
    if kind == "default":
        return theta, RopeScaling(original_max_positions=positions)
    if kind != "llama3":
        return theta, RopeScaling(kind, fields.real("factor"), original_max_positions=positions)
    return theta, RopeScaling(
        kind=kind,
        factor=fields.real("factor"),
        low_freq_factor=fields.real("low_freq_factor"),
        high_freq_factor=fields.real("high_freq_factor"),
        original_max_positions=fields.size("original_max_position_embeddings", positions),
    )
