"""Small random models as complete Hugging Face folders, one per kind that the decoder runs.

Weights are scaled so that greedy decoding is decided by a wide margin at nearly every position and
does not fall into repeating one token; text works end to end through a byte-level tokenizer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from giusto.engine.config import parse_config
from giusto.engine.weights import parameter_shapes

VOCAB_SIZE = 320
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
END_OF_TEXT, _, END_OF_TURN = range(3)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXT = (
    "the quick brown fox jumps over the lazy dog and then there was another one in the rain, "
    "who said that every request has its own hour; some would wait, others could not be late."
)
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
_MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama2": _LLAMA | {"num_key_value_heads": 4},
    "llama3": _LLAMA
    | {"rope_theta": 500000.0, "rope_scaling": _LLAMA3_ROPE, "tie_word_embeddings": True},
    "llama_biased": _LLAMA | {"attention_bias": True, "mlp_bias": True},
    "smollm": _LLAMA
    | {
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "hidden_size": 48,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    },
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 32,
        "tie_word_embeddings": True,
    },
    "mistral": _MISTRAL | {"sliding_window": None, "head_dim": 24},
    "mistral_windowed": _MISTRAL | {"sliding_window": 24},
    "linear_rope": _LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "dynamic_rope": _LLAMA
    | {
        "rope_scaling": {"rope_type": "dynamic", "factor": 4.0},
        "max_position_embeddings": 64,
    },
}


def make_tiny(
    folder: str | Path,
    family: str = "llama2",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> Path:
    """Write a random model of a kind in FAMILIES; `overrides` change its `config.json`.

    The same arguments write the same model.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(family) | {"torch_dtype": str(dtype).removeprefix("torch.")} | overrides
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"eos_token_id": [END_OF_TURN, END_OF_TEXT]})
    save_file(tiny_weights(config, seed, dtype), folder / "model.safetensors", {"format": "pt"})
    write_tokenizer(folder)
    return folder


def tiny_config(family: str) -> dict[str, Any]:
    """Return the `config.json` of one kind: 2 layers of width 64."""
    return {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 112,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": END_OF_TURN,
        "tie_word_embeddings": False,
    } | FAMILIES[family]


def tiny_weights(
    config: dict[str, Any], seed: int, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Draw the weights of a model by their Hugging Face names."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in parameter_shapes(parse_config(config)).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight"):
            tensor = 1.0 + 0.2 * noise
        elif name.endswith(".bias"):
            tensor = 0.3 * noise
        elif name.startswith(("model.embed", "lm_head")):
            # Logits then spread by about one, whatever the width.
            tensor = noise * shape[1] ** -0.5
        else:
            tensor = 1.5 * noise * shape[1] ** -0.5
        weights[name] = tensor.to(dtype)
    return weights


def write_tokenizer(folder: Path) -> None:
    """Write a byte-level BPE of VOCAB_SIZE tokens with three special ones and a ChatML template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT] * 3, trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIAL_TOKENS[END_OF_TEXT],
            "eos_token": SPECIAL_TOKENS[END_OF_TURN],
            "pad_token": SPECIAL_TOKENS[END_OF_TEXT],
            "chat_template": CHAT_TEMPLATE,
        },
    )


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
