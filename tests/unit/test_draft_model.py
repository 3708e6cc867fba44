"""A draft model: loaded or refused, and its guesses those of the model computed as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engines import Family, make_family, random_prompt
from fakes import MockClock
from giusto.core.errors import ModelError
from giusto.core.plan import Spec
from giusto.engine.draft import LoadedDraft, load_draft
from giusto.engine.speculate import DraftModel, measure, num_rows
from giusto.engine.tensors import bytes_per_block
from giusto.engine.tokenizer import Tokenizer
from giusto.engine.weights import load_model
from giusto.spec.drafter import Ask
from giusto.spec.guessing import Tips
from giusto.spec.tree import ROOT, TokenTree
from tiny_models import make_tiny, write_json

OUTPUTS = [3, 5, 8, 13, *range(100, 200)]


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Family:
    return make_family(tmp_path_factory.mktemp("target"), "smollm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("draft"), "llama2", seed=8)


@pytest.fixture(scope="module")
def draft(target: Family, folder: Path) -> LoadedDraft:
    return load(folder, target)


def load(folder: Path, target: Family) -> LoadedDraft:
    return load_draft(str(folder), target.model, Tokenizer(target.folder))


def tips(tokens: list[int], name: str = "a", *, tree: TokenTree | None = None, nodes=(ROOT,)):
    return Tips(Ask(name, tokens, Spec(), 9), tree or TokenTree(), nodes)


def expected(draft: LoadedDraft, tokens: list[int], width: int) -> list[tuple[int, float]]:
    """Guesses after a text, computed at once and alone."""
    (((*guesses,),),) = DraftModel(draft, 1).follow([tips(tokens)], width)
    return guesses


def assert_close(guesses, others) -> None:
    assert [token for token, _ in guesses] == [token for token, _ in others]
    assert [c for _, c in guesses] == pytest.approx([c for _, c in others], rel=1e-3)


# What it holds likely


def test_guesses_are_the_models_own(tmp_path: Path, target: Family):
    """The likeliest tokens and their probabilities, as `transformers` computes them."""
    other = make_family(tmp_path, "llama2", seed=8)
    prompt = random_prompt(40, 1)
    ((guesses,),) = DraftModel(load(tmp_path, target), 1).follow([tips(prompt)], 5)
    with torch.no_grad():
        logits = other.reference(torch.tensor([prompt])).logits[0, -1]
    best = torch.softmax(logits, -1).topk(5)
    assert_close(guesses, list(zip(best.indices.tolist(), best.values.tolist(), strict=True)))


def test_a_path_is_guessed_after_as_if_it_were_known(draft: LoadedDraft):
    """Nodes see what is known and their own path, whatever other branches stand beside them."""
    model = DraftModel(draft, 2)
    prompt = random_prompt(25, 2)
    tree = TokenTree()
    left = tree.add(ROOT, 11)
    right = tree.add(ROOT, 12)
    below = tree.add(right, 13)
    deep = tree.add(below, 14)
    asked = [tips(prompt, tree=tree, nodes=(ROOT, left, deep)), tips(prompt[:7], "b")]
    for _ in range(2):  # computed for the first time, and with all but the last token in the row
        (first, *others), (alone,) = model.follow(asked, 3)
        assert_close(first, expected(draft, prompt, 3))
        assert_close(others[0], expected(draft, [*prompt, 11], 3))
        assert_close(others[1], expected(draft, [*prompt, 12, 13, 14], 3))
        assert_close(alone, expected(draft, prompt[:7], 3))


def test_a_request_is_followed_token_by_token(draft: LoadedDraft):
    """What is known grows by one token or many; what was computed of wrong paths is overwritten."""
    model = DraftModel(draft, 1)
    text = random_prompt(120, 3)
    wrong = TokenTree()
    wrong.add(wrong.add(ROOT, 1), 2)
    for known in (3, 4, 5, 9, 40, 41, 90, 120):
        model.follow([tips(text[:known], tree=wrong, nodes=(1,))], 1)
        ((guesses,),) = model.follow([tips(text[:known])], 3)
        assert_close(guesses, expected(draft, text[:known], 3))


def test_only_what_is_new_is_computed(draft: LoadedDraft):
    """A further token costs one token; long texts have a pass of their own before it."""
    model = DraftModel(draft, 1)
    text = random_prompt(60, 4)
    model.follow([tips(text[:50])], 1)
    assert model.take_work() == (2, 50)
    model.follow([tips(text[:53])], 1)
    assert model.take_work() == (1, 3)
    model.follow([tips(text[:53])], 1)
    assert model.take_work() == (1, 1)


def test_a_full_row_begins_anew_with_its_last_half(draft: LoadedDraft):
    """Beyond its context a draft goes on with what came last, at any length."""
    model = DraftModel(draft, 1)
    text = random_prompt(2 * draft.context, 5)
    half = draft.context // 2
    for known in (draft.context, draft.context + 1, draft.context + 40):
        ((guesses,),) = model.follow([tips(text[:known])], 3)
        start = 0 if known == draft.context else draft.context + 1 - half
        assert_close(guesses, expected(draft, text[start:known], 3))


def test_rows_go_to_who_was_drafted_for_last(draft: LoadedDraft):
    """With fewer rows than requests the others wait for theirs, and lose nothing but guesses."""
    model = DraftModel(draft, 2)
    texts = {name: random_prompt(20, seed) for seed, name in enumerate("abc")}
    answers = model.follow([tips(text, name) for name, text in texts.items()], 2)
    assert [len(answer) for answer in answers] == [1, 1, 0]
    ((guesses,),) = model.follow([tips(texts["c"], "c")], 2)
    assert_close(guesses, expected(draft, texts["c"], 2))
    for name in texts:
        model.forget(name)
    assert not model._rows
    assert sorted(model._free) == [0, 1]


def test_rows_take_a_share_of_the_memory(draft: LoadedDraft):
    """A sixteenth of the target's at most, one row at least, no more than there are requests."""
    row = bytes_per_block(draft.config, draft.context, torch.float32)
    assert num_rows(draft, 16 * 5 * row, 128) == 5
    assert num_rows(draft, 1000 * row, 7) == 7
    assert num_rows(draft, 1, 7) == 1


def test_a_pass_is_timed(draft: LoadedDraft):
    """On a clock that stands still a pass takes no time; nothing of the probes is left."""
    model = DraftModel(draft, 4)
    assert measure(model, MockClock()) == (0.0, 0.0)
    assert model.take_work() == (0, 0)
    assert not model._rows


# Fewer outputs


def test_a_reduced_vocabulary_proposes_its_own_ids(tmp_path: Path, target: Family):
    """Logits are computed for the map's ids alone; what is proposed are ids of the target."""
    make_tiny(tmp_path, "llama2", seed=8)
    facts = {"output_tokens": OUTPUTS}
    write_json(tmp_path / "draft.json", facts)
    prompt = random_prompt(30, 6)
    ((guesses,),) = DraftModel(load(tmp_path, target), 1).follow([tips(prompt)], 320)
    write_json(tmp_path / "draft.json", {})
    whole = dict(expected(load(tmp_path, target), prompt, 320))
    assert {token for token, _ in guesses} == set(OUTPUTS)
    share = sum(whole[token] for token in OUTPUTS)
    for token, chance in guesses:
        assert chance == pytest.approx(whole[token] / share, rel=1e-3)


# The target's embedding


def without_embedding(folder: Path, target: Family, **overrides) -> None:
    make_tiny(folder, "smollm", seed=8, **overrides)
    weights = load_file(folder / "model.safetensors")
    del weights["model.embed_tokens.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    facts = {"tokenizer": Tokenizer(target.folder).fingerprint, "shares_embedding": True}
    write_json(folder / "draft.json", facts)


def test_an_embedding_may_be_the_targets(tmp_path: Path, target: Family):
    """It is left out of the folder, held once in memory, and the head is made of its rows."""
    without_embedding(tmp_path, target, num_hidden_layers=1)
    draft = load(tmp_path, target)
    assert draft.decoder.embedding.data_ptr() == target.model.decoder.embedding.data_ptr()
    ((guesses,),) = DraftModel(draft, 1).follow([tips(random_prompt(9, 1))], 3)
    assert len(guesses) == 3


def test_an_embedding_of_another_width_is_not_shared(tmp_path: Path, target: Family):
    without_embedding(tmp_path, target, hidden_size=96)
    with pytest.raises(ModelError, match="is 96 wide where that is 48"):
        load(tmp_path, target)


def test_a_missing_embedding_is_told(tmp_path: Path, target: Family):
    without_embedding(tmp_path, target)
    write_json(tmp_path / "draft.json", {})
    with pytest.raises(ModelError, match=r"model\.embed_tokens\.weight is missing"):
        load(tmp_path, target)


# What is refused


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([], "ascending token ids"),
        ([5, 3], "ascending token ids"),
        ([3, 3], "ascending token ids"),
        ("all", "ascending token ids"),
        ([1, True], "ascending token ids"),
        ([1, 2.5], "ascending token ids"),
        ([0, 320], "ids from 0 to 320 where the vocabulary ends at 319"),
        ([-1, 3], "ids from -1 to 3"),
    ],
)
def test_a_bad_map_is_refused(tmp_path: Path, target: Family, outputs, message: str):
    make_tiny(tmp_path, "llama2")
    write_json(tmp_path / "draft.json", {"output_tokens": outputs})
    with pytest.raises(ModelError, match=message):
        load(tmp_path, target)


def test_another_vocabulary_is_refused(tmp_path: Path, target: Family):
    make_tiny(tmp_path, "llama2", vocab_size=400)
    with pytest.raises(ModelError, match="has 400 tokens and its target 320"):
        load(tmp_path, target)


def test_another_tokenizer_is_refused(tmp_path: Path, target: Family):
    """As many tokens are not the same tokens: the vocabulary is compared, or its fingerprint."""
    make_tiny(tmp_path, "llama2")
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    a, b = list(vocabulary)[50:52]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    write_json(tmp_path / "tokenizer.json", tokenizer)
    with pytest.raises(ModelError, match="made for another tokenizer"):
        load(tmp_path, target)
    write_json(tmp_path / "draft.json", {"tokenizer": Tokenizer(target.folder).fingerprint})
    load(tmp_path, target)
    write_json(tmp_path / "draft.json", {"tokenizer": "0" * 64})
    with pytest.raises(ModelError, match="made for another tokenizer"):
        load(tmp_path, target)


def test_a_draft_without_a_tokenizer_is_refused(tmp_path: Path, target: Family):
    make_tiny(tmp_path, "llama2")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"neither a draft\.json nor a tokenizer\.json"):
        load(tmp_path, target)


def test_a_draft_of_no_context_is_refused(tmp_path: Path, target: Family):
    make_tiny(tmp_path, "llama2", max_position_embeddings=128)
    with pytest.raises(ModelError, match="covers 128 positions, and drafting needs 256"):
        load(tmp_path, target)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path, target: Family):
    with pytest.raises(ModelError, match=r"--draft-model: .* does not exist"):
        load(tmp_path / "nowhere", target)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json; point --draft-model"):
        load(tmp_path / "empty", target)


def test_a_truncated_file_is_told(tmp_path: Path, target: Family):
    make_tiny(tmp_path, "llama2")
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="truncated"):
        load(tmp_path, target)


def test_the_default_draft_is_refused_by_another_model(target: Family):
    """It belongs to the default model alone."""
    with pytest.raises(ModelError, match="share its target's tokenizer"):
        load_draft("default", target.model, Tokenizer(target.folder))


def test_a_draft_has_the_targets_number_format(folder: Path, target: Family):
    """It runs beside its target: same dtype, same device."""
    draft = load(folder, target)
    assert draft.decoder.dtype == target.model.decoder.dtype
    other = load_draft(str(folder), load_model(target.folder, "bfloat16"), Tokenizer(target.folder))
    assert other.decoder.dtype == torch.bfloat16
