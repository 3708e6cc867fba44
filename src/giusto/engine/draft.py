"""Load a draft model, and refuse one that does not belong to its target; called by `build`.

A draft is a Hugging Face folder of its own (config, safetensors). What that has no place for is in
`draft.json`: `tokenizer`, the fingerprint of the vocabulary that it was trained with;
`output_tokens`, the ids that its head is computed for, or null for all; and `shares_embedding`: its
embedding is its target's, and left out of the folder. A folder without that file must bring its
tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from giusto.core.errors import ModelError
from giusto.engine.config import ModelConfig, read_config, read_json
from giusto.engine.model import Decoder
from giusto.engine.tokenizer import Tokenizer
from giusto.engine.weights import LoadedModel, read_weights, resolve_folder

#: The draft that comes with the package, made for the default model.
DEFAULT = "default"
_DRAFTS = Path(__file__).parent / "drafts"
_DEFAULT_FOLDER = "smollm2-135m-instruct"
_FACTS = "draft.json"
#: Tokens that a row of the draft's cache holds at most, and at least: trees need some of them.
_MOST_CONTEXT, _LEAST_CONTEXT = 1024, 256


@dataclass(frozen=True, slots=True)
class LoadedDraft:
    """A draft model ready to run. `output_tokens` int64 [outputs], by column of its logits."""

    config: ModelConfig
    decoder: Decoder
    output_tokens: Tensor | None
    context: int


def default_folder() -> Path:
    """Where the default model's draft lies."""
    return _DRAFTS / _DEFAULT_FOLDER


def load_draft(name: str, target: LoadedModel, tokenizer: Tokenizer) -> LoadedDraft:
    """Load a draft for `target`, with its dtype and on its device; "default" is the package's own.

    Raises:
        ModelError: one sentence that says what is wrong and what to do.
    """
    folder = _folder(name)
    if not (folder / "config.json").exists():
        raise ModelError(
            f"{folder} has no config.json; point --draft-model at a complete draft's folder."
        )
    config = read_config(folder)
    facts = read_json(folder / _FACTS) if (folder / _FACTS).exists() else {}
    _check_vocabulary(folder, config, facts, target, tokenizer)
    if config.max_model_len < _LEAST_CONTEXT:
        raise ModelError(
            f"the draft model {folder} covers {config.max_model_len} positions, "
            f"and drafting needs {_LEAST_CONTEXT}; use another draft."
        )
    decoder = target.decoder
    outputs = _output_tokens(folder, config, facts)
    placed = None if outputs is None else torch.tensor(outputs, device=decoder.device)
    weights = read_weights(folder, config, _shared(folder, config, facts, decoder))
    return LoadedDraft(
        config=config,
        decoder=Decoder(config, weights, decoder.dtype, decoder.device, placed),
        output_tokens=placed,
        context=min(config.max_model_len, _MOST_CONTEXT),
    )


def _folder(name: str) -> Path:
    if name != DEFAULT:
        try:
            return resolve_folder(name)
        except ModelError as error:
            raise ModelError(f"--draft-model: {error}") from None
    folder = default_folder()
    if not folder.is_dir():
        raise ModelError("this build of giusto carries no draft model; give --draft-model a folder")
    return folder


def _check_vocabulary(
    folder: Path,
    config: ModelConfig,
    facts: dict[str, Any],
    target: LoadedModel,
    tokenizer: Tokenizer,
) -> None:
    if config.vocab_size != target.config.vocab_size:
        raise ModelError(
            f"the draft model {folder} has {config.vocab_size} tokens and its target "
            f"{target.config.vocab_size}; a draft must share its target's tokenizer."
        )
    found = facts.get("tokenizer")
    if found is None:
        if not (folder / "tokenizer.json").exists():
            raise ModelError(
                f"the draft model {folder} has neither a {_FACTS} nor a tokenizer.json to compare "
                "with its target's; add the tokenizer that it was trained with."
            )
        found = Tokenizer(folder).fingerprint
    if found != tokenizer.fingerprint:
        raise ModelError(
            f"the draft model {folder} was made for another tokenizer than that of "
            f"{target.folder}; use a draft of this model, or --draft-model none."
        )


def _shared(
    folder: Path, config: ModelConfig, facts: dict[str, Any], target: Decoder
) -> dict[str, Tensor]:
    """What the draft has in common with its target."""
    if not facts.get("shares_embedding"):
        return {}
    wide = target.config.hidden_size
    if config.hidden_size != wide:
        raise ModelError(
            f"the draft model {folder} shares its target's embedding and is {config.hidden_size} "
            f"wide where that is {wide}; use a draft of this model."
        )
    return {"model.embed_tokens.weight": target.embedding}


def _output_tokens(folder: Path, config: ModelConfig, facts: dict[str, Any]) -> list[int] | None:
    """The ids of the reduced vocabulary, checked: distinct, ascending, known to the target."""
    ids = facts.get("output_tokens")
    if ids is None:
        return None
    is_list = isinstance(ids, list) and all(type(each) is int for each in ids)
    if not is_list or not ids or ids != sorted(set(ids)):
        raise ModelError(
            f"{folder / _FACTS}: output_tokens must be ascending token ids, each once; "
            "make the draft again."
        )
    if ids[0] < 0 or ids[-1] >= config.vocab_size:
        raise ModelError(
            f"{folder / _FACTS}: output_tokens has ids from {ids[0]} to {ids[-1]} where the "
            f"vocabulary ends at {config.vocab_size - 1}; make the draft again."
        )
    return list(ids)
