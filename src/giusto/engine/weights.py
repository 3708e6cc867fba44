"""Load a model: find its folder, check its tensors, build the decoder; called by `engine`.

Every defect of a folder is a ModelError of one sentence, raised before the first request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from giusto.core.errors import ModelError
from giusto.engine import gguf
from giusto.engine.config import ModelConfig, read_config, read_json, token_ids
from giusto.engine.model import Decoder, has_native_bf16

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja"]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A decoder ready to run, and what its folder says about generating with it."""

    config: ModelConfig
    decoder: Decoder
    folder: Path
    generation: dict[str, Any]
    eos_token_ids: tuple[int, ...]


def load_model(
    path_or_id: str | Path | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
) -> LoadedModel:
    """Load a folder, a GGUF file or a hub id; None is the default model.

    Raises:
        ModelError: one sentence that says what is wrong and what to do.
    """
    folder = resolve_folder(path_or_id)
    config = read_config(folder)
    generation = {}
    if (folder / "generation_config.json").exists():
        generation = read_json(folder / "generation_config.json")
    stops = token_ids(generation.get("eos_token_id"), str(folder / "generation_config.json"))
    weights = read_weights(folder, config)
    return LoadedModel(
        config=config,
        decoder=Decoder(config, weights, choose_dtype(dtype, device), device),
        folder=folder,
        generation=generation,
        eos_token_ids=tuple(dict.fromkeys(stops + config.eos_token_ids)),
    )


def resolve_folder(path_or_id: str | Path | None = None) -> Path:
    """Return the Hugging Face folder of a path, GGUF file, hub id or (None) the default model."""
    path = gguf.default_model() if path_or_id is None else Path(path_or_id).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{path} is neither a model folder nor a .gguf file.")
        return gguf.unpack(path)
    if path.is_dir():
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path_or_id)):
        return _download(str(path_or_id))
    raise ModelError(f"{path} does not exist; give a model folder, a .gguf file or a hub id.")


def choose_dtype(dtype: str | torch.dtype, device: str | torch.device) -> torch.dtype:
    """Turn a dtype's name into the dtype; "auto" is bf16 where the hardware has it, else fp32."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        native = torch.device(device).type != "cpu" or has_native_bf16()
        return torch.bfloat16 if native else torch.float32
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is not one of auto, {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that the decoder reads, by its Hugging Face name."""
    hidden, ffn, dim = config.hidden_size, config.intermediate_size, config.head_dim
    query, kv = config.num_heads * dim, config.num_kv_heads * dim
    projections = (
        ("self_attn.q_proj", query, hidden, config.qkv_bias),
        ("self_attn.k_proj", kv, hidden, config.qkv_bias),
        ("self_attn.v_proj", kv, hidden, config.qkv_bias),
        ("self_attn.o_proj", hidden, query, config.output_bias),
        ("mlp.gate_proj", ffn, hidden, config.mlp_bias),
        ("mlp.up_proj", ffn, hidden, config.mlp_bias),
        ("mlp.down_proj", hidden, ffn, config.mlp_bias),
    )
    norms = [("input_layernorm", hidden), ("post_attention_layernorm", hidden)]
    if config.qk_norm:
        norms += [("self_attn.q_norm", dim), ("self_attn.k_norm", dim)]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tied_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        for name, rows, columns, bias in projections:
            shapes[f"{prefix}{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{prefix}{name}.bias"] = (rows,)
        for name, size in norms:
            shapes[f"{prefix}{name}.weight"] = (size,)
    return shapes


def read_weights(
    folder: Path, config: ModelConfig, shared: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Read the safetensors of a folder and check names and shapes against the config.

    `shared` are tensors that it may do without.
    """
    weights: dict[str, Tensor] = dict(shared or {})
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                weights.update((name, tensors.get_tensor(name)) for name in tensors.keys())  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{file} is truncated or not a safetensors file ({error}); download it again."
            ) from error
    shapes = parameter_shapes(config)
    _check_names(folder, config, weights.keys(), shapes.keys())
    for name, shape in shapes.items():
        if tuple(weights[name].shape) != shape:
            raise ModelError(
                f"{folder}: tensor {name} has shape {list(weights[name].shape)} where config.json "
                f"asks for {list(shape)}; weights and config.json must be of the same model."
            )
    return weights


def _check_names(
    folder: Path, config: ModelConfig, found: Iterable[str], wanted: Iterable[str]
) -> None:
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise ModelError(
            f"{folder}: tensor {missing[0]} is missing ({len(missing)} in all); "
            "download the model again."
        )
    extra = sorted(
        name
        for name in set(found) - set(wanted)
        if name != "lm_head.weight" and not name.endswith("rotary_emb.inv_freq")
    )
    if extra:
        raise ModelError(
            f"{folder}: tensor {extra[0]} has no place in a {config.family} model with this "
            f"config.json ({len(extra)} in all); weights and config.json must be of the same model."
        )


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        single = folder / "model.safetensors"
        if not single.exists():
            raise ModelError(
                f"{folder} holds neither model.safetensors nor {index.name}; "
                "download the model in safetensors form."
            )
        return [single]
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ModelError(f"{index} has no weight_map of file names; download it again.")
    files = [folder / name for name in sorted(set(shards.values()))]
    for file in files:
        if file.resolve().parent != folder.resolve() and not file.is_symlink():
            raise ModelError(f"{index} names {file.name!r} outside its folder; download it again.")
        if not file.exists():
            raise ModelError(f"{folder}: shard {file.name} is missing; download the model again.")
    return files


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415  (optional dependency, slow)

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES))
    except Exception as error:
        # The hub client raises a dozen kinds here, of three libraries; all mean the same to a user.
        reason = str(error).strip().split("\n", 1)[0].rstrip(".")
        raise ModelError(
            f"{hub_id} is no local folder and could not be downloaded ({reason}); "
            "check the name and the network, or give the path of a model folder."
        ) from error
