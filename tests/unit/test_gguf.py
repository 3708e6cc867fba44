"""GGUF files, written here with the `gguf` library in llama.cpp's layout, unpacked and loaded."""

from __future__ import annotations

import json
import threading
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer as RustTokenizer

from giusto.core.errors import ModelError
from giusto.engine import gguf as unpacking
from giusto.engine.config import read_config, read_json
from giusto.engine.gguf import unpack, unpermute
from giusto.engine.gguf_tokenizer import tokenizer_files
from giusto.engine.rope import llama3_divisors, rotation_angles
from giusto.engine.tokenizer import Tokenizer
from giusto.engine.weights import load_model
from tiny_models import CHAT_TEMPLATE, make_tiny, tiny_config

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GIUSTO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def neighbours(rows: np.ndarray, heads: int) -> np.ndarray:
    """Put rows in llama.cpp's order: pair by pair, not half by half. Slow twin of `unpermute`."""
    dim = len(rows) // heads
    order = [
        head * dim + side * dim // 2 + pair
        for head in range(heads)
        for pair in range(dim // 2)
        for side in range(2)
    ]
    return rows[order]


def gguf_name(name: str) -> str:
    module, kind = name.rsplit(".", 1)
    if module.startswith("model.layers."):
        _, _, layer, part = module.split(".", 3)
        return f"blk.{layer}.{NAMES[part]}.{kind}"
    return f"{NAMES[module]}.{kind}"


def write_metadata(writer: gguf.GGUFWriter, raw: dict[str, Any], folder: Path) -> None:
    writer.add_context_length(raw["max_position_embeddings"])
    writer.add_embedding_length(raw["hidden_size"])
    writer.add_block_count(raw["num_hidden_layers"])
    writer.add_feed_forward_length(raw["intermediate_size"])
    writer.add_head_count(raw["num_attention_heads"])
    writer.add_head_count_kv(raw["num_key_value_heads"])
    writer.add_rope_freq_base(raw.get("rope_parameters", raw).get("rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(raw["rms_norm_eps"])
    if "head_dim" in raw:
        writer.add_key_length(raw["head_dim"])
    else:
        writer.add_rope_dimension_count(raw["hidden_size"] // raw["num_attention_heads"])
    model = read_json(folder / "tokenizer.json")["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(model["vocab"]))
    writer.add_token_types([3] * 3 + [1] * (len(model["vocab"]) - 3))
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def write_gguf(folder: Path, family: str, arch: str = "", **extra: Any) -> Path:
    """Write a tiny model of a kind as `<family>.gguf` and as a folder; `extra` are tensors."""
    make_tiny(folder, family)
    raw = tiny_config(family)
    path = folder / f"{family}.gguf"
    writer = gguf.GGUFWriter(path, arch or raw["model_type"])
    write_metadata(writer, raw, folder)
    for name, tensor in load_file(folder / "model.safetensors").items():
        values = tensor.numpy()
        if raw["model_type"] == "llama" and ("q_proj" in name or "k_proj" in name):
            key = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
            values = neighbours(values, raw[key])
        writer.add_tensor(gguf_name(name), values)
    for name, values in extra.items():
        writer.add_tensor(name.replace("__", "."), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("family", ["llama2", "smollm", "llama_biased", "qwen2", "qwen3"])
def test_unpacked_model_is_the_model(tmp_path: Path, family: str) -> None:
    """Weights come back in Hugging Face's order, rounded to bf16; config and tokenizer match."""
    path = write_gguf(tmp_path, family)
    folder = unpack(path)
    expected = load_file(tmp_path / "model.safetensors")
    found = load_file(folder / "model.safetensors")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor.bfloat16(), found[name]), name
    ours, theirs = read_config(folder), read_config(tmp_path)
    assert theirs == ours
    text = "there was <|im_end|> naïve 123"
    assert Tokenizer(tmp_path).encode(text) == Tokenizer(folder).encode(text)
    chat = [{"role": "user", "content": "Hi"}]
    assert Tokenizer(tmp_path).render_chat(chat) == Tokenizer(folder).render_chat(chat)
    assert load_model(path, "float32").eos_token_ids == (2,)


def test_unpermute_undoes_the_order() -> None:
    rows = np.arange(48.0).reshape(24, 2)
    for heads in (1, 2, 3):
        assert np.array_equal(rows, unpermute(neighbours(rows, heads), heads))
        assert np.array_equal(rows[:, 0], unpermute(neighbours(rows[:, 0], heads), heads))


def test_unpacked_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time nothing is read but the fingerprint; another file has another folder."""
    path = write_gguf(tmp_path / "a", "llama2")
    folder = unpack(path)
    with monkeypatch.context() as patch:
        patch.setattr(unpacking, "_write_folder", None)
        assert folder == unpack(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert folder != unpack(path)
    assert len(list(cache.iterdir())) == 2


def test_an_interrupted_unpack_leaves_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder in the cache is whole: what was interrupted is not there, and can be tried again."""
    path = write_gguf(tmp_path, "llama2")

    def full_disk(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(unpacking, "_write_weights", full_disk)
        with pytest.raises(ModelError, match=r"No space left on device.*GIUSTO_CACHE"):
            unpack(path)
    assert list(cache.iterdir()) == []
    assert (unpack(path) / "model.safetensors").exists()


def test_unpacking_at_the_same_time(tmp_path: Path, cache: Path) -> None:
    """Several that unpack one file at once all get the same whole folder."""
    path = write_gguf(tmp_path, "llama2")
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(unpack(path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert {found[0]} == set(found) == set(cache.iterdir())


def test_large_models_are_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights over the shard size become several files with an index, and load the same."""
    path = write_gguf(tmp_path, "llama2")
    monkeypatch.setattr(unpacking, "_SHARD_BYTES", 50_000)
    folder = unpack(path)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert not (folder / "model.safetensors").exists()
    assert load_model(path, "float32").config.num_layers == 2


def test_llama3_scaling_is_recognised(tmp_path: Path) -> None:
    """Divisors per frequency give Llama 3.1's parameters back; other divisors are refused."""
    make_tiny(tmp_path / "plain", "llama2", rope_theta=10000.0)
    plain = read_config(tmp_path / "plain")
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    make_tiny(tmp_path / "scaled", "llama2", rope_scaling=scaling)
    rope = read_config(tmp_path / "scaled").rope
    divisors = llama3_divisors(rotation_angles(plain, 2)[1], rope).numpy()
    path = write_gguf(tmp_path / "a", "llama2", rope_freqs__weight=divisors)
    assert rope == read_config(unpack(path)).rope
    path = write_gguf(tmp_path / "b", "llama2", rope_freqs__weight=divisors + 0.5)
    with pytest.raises(ModelError, match="in a way this engine does not know"):
        unpack(path)


def test_unknown_architecture(tmp_path: Path) -> None:
    path = write_gguf(tmp_path, "llama2", arch="gemma3")
    with pytest.raises(ModelError, match=r"'gemma3'.*llama, mistral, qwen2, qwen3\.$"):
        unpack(path)


def test_unknown_tensor(tmp_path: Path) -> None:
    path = write_gguf(tmp_path, "llama2", odd__weight=np.zeros(3, dtype=np.float32))
    with pytest.raises(ModelError, match=r"'odd.weight' that no supported architecture uses"):
        unpack(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 0.99])
def test_truncated_file(tmp_path: Path, cache: Path, share: float) -> None:
    path = write_gguf(tmp_path, "llama2")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match=r"truncated or not a GGUF file.*download it again\.$"):
        unpack(path)
    assert list(cache.iterdir()) == []


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path, "llama2")
    monkeypatch.setenv("GIUSTO_CACHE", str(path))
    with pytest.raises(ModelError, match="GIUSTO_CACHE to a folder that can be written"):
        unpack(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.model", "bert", "tokenizer of kind 'bert'"),
        ("tokenizer.ggml.model", "llama", "no complete tokenizer"),
        ("tokenizer.ggml.pre", "odd", "pre-tokenizer 'odd'"),
        ("tokenizer.ggml.merges", None, "no complete tokenizer"),
    ],
)
def test_tokenizers_that_are_not_known(key: str, value: object, message: str) -> None:
    """Guessing a pre-tokenizer would tokenise wrongly without a sign: unknown ones are refused."""
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a"],
        "tokenizer.ggml.merges": [],
    }
    with pytest.raises(ModelError, match=message):
        tokenizer_files(fields | {key: value}, 512, "x.gguf")


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("smollm", "a 123", ["a", "Ġ", "1", "2", "3"]),
        ("gpt-2", "a 123 b", ["a", "Ġ123", "Ġb"]),
        ("llama-bpe", "a 12345\n\nI'm", ["a", "Ġ", "123", "45", "ĊĊ", "I", "'m"]),
        ("qwen2", "a 12\n\nI'm", ["a", "Ġ", "1", "2", "ĊĊ", "I", "'m"]),
    ],
)
def test_pre_tokenizers(pre: str, text: str, pieces: list[str]) -> None:
    """Each named pre-tokenizer cuts words and numbers in its own way."""
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": ["<s>", *sorted(set(pieces) | set("".join(pieces)))],
        "tokenizer.ggml.token_type": [3],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 0,
    }
    built = tokenizer_files(fields, 512, "x.gguf")["tokenizer.json"]
    rust = RustTokenizer.from_str(json.dumps(built))
    assert pieces == [piece for piece, _ in rust.pre_tokenizer.pre_tokenize_str(text)]
    starts = rust.encode(text).tokens[0] == "<s>"
    assert starts == (pre == "llama-bpe")


def join_best_scored(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's own way: join the neighbours of the best scored result until none is left."""
    pieces = list("▁" + text.replace(" ", "▁"))
    while True:
        joined = [
            (scores[left + right], -place)
            for place, (left, right) in enumerate(pairwise(pieces))
            if left + right in scores
        ]
        if not joined:
            known = [[p] if p in scores else [f"<0x{b:02X}>" for b in p.encode()] for p in pieces]
            return list(chain.from_iterable(known))
        place = -max(joined)[1]
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text("abt hé\n", min_size=1, max_size=30))
def test_sentence_piece_merges(text: str) -> None:
    """Merges derived from scores tokenise as SentencePiece's scores do, and decode to the text."""
    words = ["▁t", "he", "▁the", "ab", "ba", "▁a", "aa", "tt", "▁▁", "abab", "éa", "▁ab", "the"]
    scores = {piece: -float(rank) for rank, piece in enumerate([*words, *"▁abthé"])}
    markup = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*markup, *scores],
        "tokenizer.ggml.scores": [0.0] * len(markup) + list(scores.values()),
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(scores),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    rust = RustTokenizer.from_str(json.dumps(tokenizer_files(fields, 512, "x")["tokenizer.json"]))
    encoding = rust.encode(text)
    assert ["<s>", *join_best_scored(text, scores)] == encoding.tokens
    assert text == rust.decode(encoding.ids)
