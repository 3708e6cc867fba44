"""Rebuild a Hugging Face tokenizer from the vocabulary inside a GGUF file; called by `gguf`.

Byte-level BPE only. GGUF names the pre-tokenizer but does not carry it, so the known ones are
spelled out here; an unknown name is refused, since guessing would tokenise wrongly without a sign.
"""

from __future__ import annotations

from typing import Any

from giusto.core.errors import ModelError

_CONTROL, _USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type
_ADDS_BOS_UNLESS_TOLD = ("llama-bpe", "llama3")
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _split(numbers: str) -> list[dict[str, Any]]:
    pattern = {"Regex": f"{_CONTRACTIONS}|{_WORDS}|{numbers}|{_REST}"}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return [split, _byte_level(use_regex=False)]


_SINGLE_DIGITS = {"type": "Digits", "individual_digits": True}
_LLAMA3 = _split(r"\p{N}{1,3}")
_PRE_TOKENIZERS = {
    "default": [_byte_level(use_regex=True)],
    "gpt-2": [_byte_level(use_regex=True)],
    "smollm": [_SINGLE_DIGITS, _byte_level(use_regex=True)],
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _split(r"\p{N}"),
}


def tokenizer_files(fields: dict[str, Any], max_length: int, source: str) -> dict[str, Any]:
    """Build `tokenizer.json` and `tokenizer_config.json` from GGUF metadata.

    Raises:
        ModelError: a tokenizer of another kind than byte-level BPE, or an unknown pre-tokenizer.
    """
    advice = "use the Hugging Face folder of the model."
    kind, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2":
        raise ModelError(f"{source} has a tokenizer of kind {kind!r}, which is not read; {advice}")
    if pre not in _PRE_TOKENIZERS:
        raise ModelError(f"{source} has pre-tokenizer {pre!r}, which is not known; {advice}")
    tokens, merges = fields.get("tokenizer.ggml.tokens"), fields.get("tokenizer.ggml.merges")
    if not tokens or merges is None:
        raise ModelError(f"{source} carries no complete tokenizer; {advice}")
    special = _special_tokens(fields, tokens)
    adds_bos = fields.get("tokenizer.ggml.add_bos_token", pre in _ADDS_BOS_UNLESS_TOLD)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(fields, tokens),
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE_TOKENIZERS[pre]},
        "post_processor": _starts_with(special["bos_token"], tokens) if adds_bos else None,
        "decoder": _byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre in ("llama-bpe", "llama3"),
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    if template := fields.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": settings}


def _special_tokens(fields: dict[str, Any], tokens: list[str]) -> dict[str, str]:
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    keys = {f"{short}_token": f"tokenizer.ggml.{long}_token_id" for short, long in names.items()}
    return {name: tokens[fields[key]] for name, key in keys.items() if key in fields}


def _added_tokens(fields: dict[str, Any], tokens: list[str]) -> list[dict[str, Any]]:
    kinds = fields.get("tokenizer.ggml.token_type", [])
    return [
        {
            "id": index,
            "content": tokens[index],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == _CONTROL,
        }
        for index, kind in enumerate(kinds)
        if kind in (_CONTROL, _USER_DEFINED)
    ]


def _starts_with(bos: str, tokens: list[str]) -> dict[str, Any]:
    """Build the post-processor that puts one token before every text."""
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            first,
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {bos: {"id": bos, "ids": [tokens.index(bos)], "tokens": [bos]}},
    }
