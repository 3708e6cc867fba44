"""The default model: right answers, right logits, right tokens."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from drive import Driver, Sequence
from giusto.engine.gguf import default_model
from giusto.engine.tokenizer import Detokenizer, Tokenizer
from giusto.engine.weights import LoadedModel, load_model, resolve_folder

QUESTIONS = {
    "What is the capital of France?": "Paris",
    "What is the capital of Germany?": "Berlin",
    "What is the capital of Japan?": "Tokyo",
    "What is the capital of Russia?": "Moscow",
    "What is the capital of England?": "London",
    "What is the largest ocean on Earth?": "Pacific",
    "What language is spoken in Brazil?": "Portuguese",
    "What is the chemical symbol for water?": "H2O",
    "What is the opposite of hot?": "cold",
    "How many days are there in a week?": "7",
}
TEXTS = [
    "",
    " ",
    "Hello, world! It's 2024-01-31 at 12:05, and 3.14159 isn't 22/7.",
    "  leading,   inner  and trailing   \n\n\t tabs \r\n ",
    "def f(x: int) -> str:\n    return f'{x:>08d}'  # comment\n\n\nclass A:\n\tpass\n",
    "naïve café ÀÉÎ straße Ωμέγα Привет, мир 你好，世界。こんにちは 안녕하세요 שלום مرحبا",
    "emoji 👍🏽 👨‍👩‍👧‍👦 🇫🇷 and math ∑∫√ ∀x∈ℝ: ½ ² ٣ Ⅷ",
    "e\u0301 is not é; zero\u200bwidth, nbsp\u00a0here, ideographic\u3000space",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|><repo_name>a/b<file_sep>",
    "<|im_start|>almost<|im_end> <|im_",
    "UPPER lower CamelCase snake_case kebab-case don't we'll I'M they'RE",
    "\u0000\u0001\u007f control and \ufffd replacement",
    "1 12 123 1234 12345678901234567890",
    "https://example.org/a/b?c=d&e=%20#f user@example.org",
]
PASSAGE = (
    "A request for a language model has an hour of its own. A person who reads along wants words "
    "at the pace of reading; a tool that waits for a whole answer wants only the last of them, "
    "and soon; a job that runs overnight wants nothing but to be done by morning. A server that "
    "treats all of them alike serves each of them badly: it makes the reader wait behind the job, "
    "and gives the job a haste that nobody asked for. In 1965 queues were studied for telephones, "
    "in 1973 for processors with deadlines (Liu and Layland), and since 2022 for the tokens of "
    "neural networks. What is new is that the work of one step is shared: reading the weights of "
    "a model takes as long for 1 token as for 16, so that a batch is nearly free until it is not. "
    "def slack(now, due, work): return due - now - work  # in seconds"
)


@pytest.fixture(scope="module")
def folder() -> Path:
    return resolve_folder()


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def served() -> LoadedModel:
    return load_model()


@pytest.fixture(scope="module")
def passage(tokenizer: Tokenizer) -> list[int]:
    ids = tokenizer.encode(PASSAGE)[:200]
    assert len(ids) == 200
    return ids


@pytest.fixture(scope="module")
def reference(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@torch.inference_mode()
def reference_logits(model, ids: list[int]) -> Tensor:
    return model(torch.tensor([ids])).logits[0]


def dequantised(heads: int, kv_heads: int, head_dim: int) -> dict[str, Tensor]:
    """Read the GGUF file row by row: even rows of a head first, then odd ones. Slow twin."""
    names = {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    weights = {}
    for tensor in gguf.GGUFReader(default_model()).tensors:
        *layer, part, kind = tensor.name.split(".")
        values = torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type)))
        if part in ("attn_q", "attn_k"):
            count = heads if part == "attn_q" else kv_heads
            rows = [
                head * head_dim + 2 * pair + side
                for head in range(count)
                for side in range(2)
                for pair in range(head_dim // 2)
            ]
            values = values[rows]
        prefix = f"model.layers.{layer[1]}." if layer else ""
        weights[f"{prefix}{names[part]}.{kind}"] = values
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    return weights


def test_logits_equal_the_folder_in_transformers(reference, folder, passage) -> None:
    """In float32 the logits of 200 tokens equal those of `transformers` on the same folder."""
    expected = reference_logits(reference, passage)
    ours = Driver(load_model(folder, "float32").decoder).step([(Sequence(passage), 200)])
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=0)


def test_logits_equal_the_dequantised_file_in_transformers(reference, folder, passage) -> None:
    """Against the file's own values the only difference is rounding the weights to bf16.

    Logits of this model spread by 6; rounding moves them by 0.02 on average.
    """
    ours = Driver(load_model(folder, "float32").decoder).step([(Sequence(passage), 200)])
    exact = copy.deepcopy(reference)
    exact.load_state_dict(dequantised(heads=9, kv_heads=3, head_dim=64))
    expected = reference_logits(exact, passage)
    difference = (ours - expected).abs()
    assert difference.mean() < 0.05
    assert difference.max() < 0.5
    assert (ours.argmax(-1) == expected.argmax(-1)).float().mean() >= 0.98


def test_bf16_logits_are_near(reference, folder, passage) -> None:
    """In bf16 the logits stay near, and the likeliest token is nearly always the same."""
    expected = reference_logits(reference, passage)
    ours = Driver(load_model(folder, "bfloat16").decoder).step([(Sequence(passage), 200)])
    assert (ours - expected).abs().mean() < 0.2
    assert (ours.argmax(-1) == expected.argmax(-1)).float().mean() >= 0.95


@pytest.mark.parametrize("question", QUESTIONS)
def test_answers_are_right(served: LoadedModel, tokenizer: Tokenizer, question: str) -> None:
    """Ten plain questions get their answers through the chat template, greedily."""
    prompt = tokenizer.render_chat([{"role": "user", "content": question}])
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    answer = Driver(served.decoder, 16).greedy(ids, 32, stop=served.eos_token_ids)
    assert QUESTIONS[question] in tokenizer.decode(answer)


def test_stops_at_the_end_of_a_turn(served: LoadedModel, tokenizer: Tokenizer) -> None:
    """The end of a turn ends an answer."""
    assert (tokenizer.encode("<|im_end|>")[0],) == served.eos_token_ids


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_equal_those_of_transformers(folder: Path, tokenizer: Tokenizer, text: str) -> None:
    """Tokens and their decoding are those of `transformers` on the same folder."""
    reference = AutoTokenizer.from_pretrained(folder)
    ids = reference(text)["input_ids"]
    assert ids == tokenizer.encode(text)
    for skip in (True, False):
        expected = reference.decode(ids, skip_special_tokens=skip)
        assert expected == tokenizer.decode(ids, skip)
        detokenizer = Detokenizer(tokenizer, skip_special=skip)
        assert expected == "".join(map(detokenizer.feed, ids)) + detokenizer.flush()


def test_tokens_equal_the_published_vocabulary(tokenizer: Tokenizer, shared_data: Path) -> None:
    """Vocabulary, merges and pre-tokenizer are those of the tokenizer published beside the data."""
    with gzip.open(
        shared_data / "models" / "smollm2_tokenizer.json.gz", "rt", encoding="utf-8"
    ) as file:
        published = json.load(file)
    ours = json.loads((resolve_folder() / "tokenizer.json").read_text(encoding="utf-8"))
    for part in ("model", "added_tokens", "pre_tokenizer", "normalizer", "post_processor"):
        assert published[part] == ours[part]
    assert len(published["model"]["vocab"]) == tokenizer.vocab_size


@pytest.mark.parametrize("system", [False, True])
def test_chat_equals_that_of_transformers(folder: Path, tokenizer: Tokenizer, system: bool) -> None:
    """The chat template renders as in `transformers`, its default system prompt included."""
    messages = [{"role": "system", "content": "Be brief."}] * system + [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Why?"},
    ]
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert expected == tokenizer.render_chat(messages)
    assert system == ("SmolLM, trained by Hugging Face" not in expected)
