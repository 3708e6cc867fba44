"""The scripts that distil a draft: what they train is what the engine then computes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engines import Family, make_family, random_prompt
from giusto.core.plan import Spec
from giusto.engine.draft import load_draft
from giusto.engine.speculate import DraftModel
from giusto.engine.tokenizer import Tokenizer
from giusto.spec.drafter import Ask
from giusto.spec.guessing import Tips
from giusto.spec.tree import ROOT, TokenTree

SCRIPTS = Path(__file__).parents[2] / "scripts" / "draft"
OUTPUTS = [*range(5, 200)]


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Family:
    return make_family(tmp_path_factory.mktemp("target"), "smollm")


@pytest.fixture
def network(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import network  # noqa: PLC0415  (found on the path just now)

    return network


def guesses(folder: Path, target: Family, prompt: list[int], width: int) -> dict[int, float]:
    draft = load_draft(str(folder), target.model, Tokenizer(target.folder))
    ask = Ask("a", prompt, Spec(), 9)
    ((found,),) = DraftModel(draft, 1).follow([Tips(ask, TokenTree(), (ROOT,))], width)
    return dict(found)


def export(network, model, folder: Path, target: Family, *, shares: bool) -> None:
    tensors = {name: tensor.float() for name, tensor in model.to_hub().items()}
    if shares:
        del tensors["model.embed_tokens.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.shape.config()))
    facts = {
        "tokenizer": Tokenizer(target.folder).fingerprint,
        "output_tokens": model.outputs.tolist(),
        "shares_embedding": shares,
    }
    (folder / "draft.json").write_text(json.dumps(facts))


def rounded(model) -> None:
    """Weights as they are stored, so that both sides compute with the same."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))


def test_the_engine_computes_what_was_trained(network, target: Family, tmp_path: Path):
    """A small Llama from scratch, with a head of fewer outputs."""
    torch.manual_seed(3)
    shape = network.Shape(320, hidden=64, layers=2, heads=2, kv_heads=1, ffn=96)
    model = network.Draft(shape, torch.tensor(OUTPUTS))
    with torch.no_grad():
        model.embedding.mul_(10)
    rounded(model)
    model.eval()
    export(network, model, tmp_path, target, shares=False)
    prompt = random_prompt(30, 2)
    with torch.no_grad():
        states = model(torch.tensor([prompt]))[0, -1]
        chances = torch.softmax(model.head() @ states, -1)
    found = guesses(tmp_path, target, prompt, len(OUTPUTS))
    for token, chance in zip(OUTPUTS, chances.tolist(), strict=True):
        assert found[token] == pytest.approx(chance, rel=1e-3)


def test_a_draft_that_begins_with_all_layers_is_the_target(network, target: Family, tmp_path: Path):
    """Taken layers are the target's own: with all of them it says what the target says."""
    config = target.model.config
    shape = network.Shape(
        320,
        config.hidden_size,
        config.num_layers,
        config.num_heads,
        config.num_kv_heads,
        config.intermediate_size,
        theta=config.rope_theta,
        eps=config.rms_norm_eps,
    )
    model = network.Draft(shape, torch.arange(320))
    model.begin_with(load_file(target.folder / "model.safetensors"), [0, 1])
    model.eval()
    prompt = random_prompt(30, 4)
    with torch.no_grad():
        mine = model.head() @ model(torch.tensor([prompt]))[0, -1]
        theirs = target.reference(torch.tensor([prompt])).logits[0, -1]
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    export(network, model, tmp_path, target, shares=True)
    best = int(theirs.argmax())
    assert next(iter(guesses(tmp_path, target, prompt, 3))) == best


def test_shards_come_back_as_they_were(monkeypatch, tmp_path: Path):
    """Prompts, answers and what else was likely, row by row."""
    monkeypatch.syspath_prepend(SCRIPTS)
    import shards  # noqa: PLC0415  (found on the path just now)

    draw = np.random.default_rng(1)
    rows = [
        shards.Answered(
            kind,
            list(range(size)),
            list(range(100, 103 + size)),
            draw.integers(0, 49152, (3 + size, shards.TOP)).astype(np.uint16),
            draw.normal(size=(3 + size, shards.TOP)).astype(np.float16),
            is_whole=size > 1,
        )
        for size, kind in enumerate(("chat", "code", "math", "summarize"), 1)
    ]
    shards.write_shard(tmp_path / "a.npz", rows)
    for row, other in zip(rows, shards.read_shard(tmp_path / "a.npz"), strict=True):
        assert (row.kind, row.prompt, row.answer) == (other.kind, other.prompt, other.answer)
        assert row.is_whole == other.is_whole
        np.testing.assert_array_equal(row.top_ids, other.top_ids)
        np.testing.assert_array_equal(row.top_logprobs, other.top_logprobs)
