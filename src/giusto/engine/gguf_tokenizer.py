"""Rebuild a Hugging Face tokenizer from the vocabulary inside a GGUF file; called by `gguf`.

Of byte-level BPE, GGUF names the pre-tokenizer but does not carry it, so the known ones are spelled
out here; an unknown name is refused, since guessing would tokenise wrongly without a sign. Of
SentencePiece's BPE it carries scores and no merges, so these are derived.
"""

from __future__ import annotations

from typing import Any

from giusto.core.errors import ModelError

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # values of tokenizer.ggml.token_type
_ADVICE = "use the Hugging Face folder of the model."
_SPACE_MARK = "▁"
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
        ModelError: a tokenizer that is not BPE, an unknown pre-tokenizer, or missing metadata.
    """
    kind, tokens = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.tokens")
    if kind not in ("gpt2", "llama"):
        raise ModelError(f"{source} has a tokenizer of kind {kind!r}, which is not read; {_ADVICE}")
    needed = "tokenizer.ggml.merges" if kind == "gpt2" else "tokenizer.ggml.scores"
    if not tokens or fields.get(needed) is None:
        raise ModelError(f"{source} carries no complete tokenizer; {_ADVICE}")
    special = _special_tokens(fields, tokens)
    parts = _byte_level_parts(fields, source) if kind == "gpt2" else _sentence_piece_parts(fields)
    adds_bos = kind == "llama" or fields.get("tokenizer.ggml.pre") in _ADDS_BOS_UNLESS_TOLD
    if fields.get("tokenizer.ggml.add_bos_token", adds_bos) and "bos_token" in special:
        parts["post_processor"] = _starts_with(special["bos_token"], tokens)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(fields, tokens),
        "post_processor": None,
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    if template := fields.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    return {"tokenizer.json": tokenizer | parts, "tokenizer_config.json": settings}


def _byte_level_parts(fields: dict[str, Any], source: str) -> dict[str, Any]:
    pre = fields.get("tokenizer.ggml.pre", "default")
    if pre not in _PRE_TOKENIZERS:
        raise ModelError(f"{source} has pre-tokenizer {pre!r}, which is not known; {_ADVICE}")
    merges = [merge.split(" ", 1) for merge in fields["tokenizer.ggml.merges"]]
    return {
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE_TOKENIZERS[pre]},
        "decoder": _byte_level(use_regex=True),
        "model": _bpe(fields, merges, ignore_merges=pre in ("llama-bpe", "llama3")),
    }


def _sentence_piece_parts(fields: dict[str, Any]) -> dict[str, Any]:
    """Spaces are marked, a first one is put before the text, and unknown text falls to bytes."""
    prefix = fields.get("tokenizer.ggml.add_space_prefix", True)
    mark = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE_MARK}
    unmark = {"type": "Replace", "pattern": {"String": _SPACE_MARK}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    decoders = [unmark, {"type": "ByteFallback"}, {"type": "Fuse"}]
    prepend = {"type": "Prepend", "prepend": _SPACE_MARK}
    tokens = fields["tokenizer.ggml.tokens"]
    unknown = tokens[fields.get("tokenizer.ggml.unknown_token_id", 0)]
    return {
        "normalizer": {"type": "Sequence", "normalizers": [prepend, mark] if prefix else [mark]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [*decoders, strip] if prefix else decoders},
        "model": _bpe(
            fields, _merges_of_scores(fields), unk_token=unknown, fuse_unk=True, byte_fallback=True
        ),
    }


def _merges_of_scores(fields: dict[str, Any]) -> list[list[str]]:
    """Return every way to join two pieces into a third, the best scored result first.

    SentencePiece joins whichever neighbours make the best scored piece, which is what a list of
    merges in this order does.
    """
    pieces, scores = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.scores"]
    kinds = fields.get("tokenizer.ggml.token_type", [_NORMAL] * len(pieces))
    places = {piece: index for index, piece in enumerate(pieces) if kinds[index] == _NORMAL}
    ranked = []
    for piece, index in places.items():
        for cut in range(1, len(piece)):
            left, right = places.get(piece[:cut]), places.get(piece[cut:])
            if left is not None and right is not None:
                ranked.append((-scores[index], left, right))
    return [[pieces[left], pieces[right]] for _, left, right in sorted(ranked)]


def _bpe(fields: dict[str, Any], merges: list[list[str]], **changes: Any) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: index for index, token in enumerate(fields["tokenizer.ggml.tokens"])},
        "merges": merges,
    } | changes


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
            "special": kind != _USER_DEFINED,
        }
        for index, kind in enumerate(kinds)
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
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
