"""Speculation with a draft model: answers are the target's, whatever the draft holds likely."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from engines import Family, TinyEngine, make_family
from giusto import build
from giusto.core.clock import WallClock
from giusto.core.errors import ConfigError, ModelError
from giusto.core.events import Preempted, Stepped
from giusto.core.request import SamplingParams, Submission
from giusto.engine.draft import LoadedDraft, load_draft
from giusto.engine.settings import EngineSettings
from giusto.engine.tokenizer import Tokenizer
from giusto.spec.guessing import ModelDrafter
from speculated import NEW_TOKENS, answers, assert_same, plain, submit_all
from tiny_models import make_tiny, write_json

QUESTION = "What is the capital of France, and what is it known for?"
MODES = ("chain:3", "static", "adaserve", "giusto")


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Family:
    return make_family(tmp_path_factory.mktemp("target"), "llama3")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory, target: Family) -> LoadedDraft:
    """A draft with weights of its own, and a map of fewer outputs: mostly wrong."""
    folder = make_tiny(tmp_path_factory.mktemp("draft"), "llama2", seed=8)
    write_json(
        folder / "draft.json",
        {"tokenizer": Tokenizer(target.folder).fingerprint, "output_tokens": [*range(3, 250)]},
    )
    return load_draft(str(folder), target.model, Tokenizer(target.folder))


@pytest.fixture(scope="module")
def twin(tmp_path_factory, target: Family) -> LoadedDraft:
    """The target as its own draft, and surer of itself: always right where it is greedy."""
    folder = shutil.copytree(target.folder, tmp_path_factory.mktemp("twin") / "folder")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 10
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return load_draft(str(folder), target.model, Tokenizer(target.folder))


def drafting(target: Family, draft: LoadedDraft, mode: str, **settings) -> TinyEngine:
    return TinyEngine(
        target.model, draft=draft, speculation=mode, draft_model="somewhere", **settings
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_wrong_draft_changes_nothing(target: Family, stranger: LoadedDraft, mode: str):
    """Greedy answers are those of plain decoding, twice over cached prefixes."""
    known = plain(target)
    engine = drafting(target, stranger, mode)
    for _ in range(2):
        submit_all(engine, copies=2)
        engine.run()
        assert_same(target, engine, known)
        engine.answers.clear()
    assert engine.num_selected > 0
    assert engine.engine.speculation_error is None


@pytest.mark.parametrize("mode", MODES)
def test_a_right_draft_saves_steps(target: Family, twin: LoadedDraft, mode: str):
    """Every guess of a target that drafts for itself is accepted: steps go that much further."""
    known = plain(target)
    engine = drafting(target, twin, mode)
    submit_all(engine)
    engine.run()
    assert_same(target, engine, known)
    tokens = sum(len(answer.tokens) for answer in engine.answers.values())
    assert engine.num_accepted > 0.6 * tokens
    if mode == "chain:3":
        assert engine.num_accepted > 0.8 * engine.num_selected
        assert engine.count(Stepped) <= 1 + -(-NEW_TOKENS // 4) + 1


@pytest.mark.parametrize(
    "settings",
    [
        {"max_num_batched_tokens": 7, "block_size": 8},
        {"num_blocks": 13, "block_size": 8, "scheduling_policy": "fcfs"},
        {"prefix_caching": False, "max_num_seqs": 2},
    ],
    ids=["chunked", "preempted", "two-at-a-time"],
)
@pytest.mark.parametrize("mode", ["chain:3", "giusto"])
def test_drafts_work_with_all_else(target: Family, twin: LoadedDraft, settings, mode: str):
    """Chunked prompts and lost blocks: the draft's own cache needs to know of neither."""
    known = plain(target)
    engine = drafting(target, twin, mode, **settings)
    submit_all(engine, copies=2)
    engine.run()
    assert_same(target, engine, known)
    assert engine.num_accepted > 0
    if settings.get("num_blocks") == 13:
        assert engine.count(Preempted) >= 1


OPTIONS = {
    "plain": {"temperature": 1.0, "seed": 1},
    "cut": {"temperature": 1.2, "top_k": 20, "min_p": 0.02, "seed": 3},
    "new": {"temperature": 1.0, "repetition_penalty": 1.2, "presence_penalty": 0.5, "seed": 4},
    "many": {"temperature": 0.5, "n": 3, "seed": 5},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("mode", MODES)
def test_a_seed_repeats_with_a_draft(target: Family, twin: LoadedDraft, options, mode: str):
    """The same seed draws the same answer with and without, whatever shapes the draw."""
    engine = TinyEngine(target.model)
    submit_all(engine, **options)
    expected = answers(engine)
    guessing = drafting(target, twin, mode)
    submit_all(guessing, **options)
    assert answers(guessing) == expected
    assert guessing.num_selected > 0


def test_what_a_draft_computes_is_counted(target: Family, twin: LoadedDraft):
    """Steps tell the passes of the draft and the tokens in them, and what it took."""
    engine = drafting(target, twin, "chain:3")
    submit_all(engine)
    engine.run()
    shapes = [event.outcome.shape for event in engine.events if isinstance(event, Stepped)]
    drafted = [shape for shape in shapes if shape.draft_steps]
    assert drafted
    # Three levels, and one pass more where prompts are new to the draft.
    assert {shape.draft_steps for shape in drafted} <= {1, 2, 3, 4}
    assert all(shape.draft_tokens >= shape.draft_steps for shape in drafted)
    assert all(not shape.draft_tokens for shape in shapes if not shape.draft_steps)


def test_a_draft_that_fails_costs_speed_alone(target: Family, twin: LoadedDraft, caplog):
    """An error in its model switches speculation off; requests are answered as without it."""
    known = plain(target)
    engine = drafting(target, twin, "chain:3")
    drafter = engine.engine.speculator.drafter
    assert isinstance(drafter, ModelDrafter)
    submit_all(engine)
    engine.step()
    engine.step()
    drafter.guesser._kv.layers.clear()
    with caplog.at_level(logging.ERROR):
        engine.run()
    assert "speculation failed" in caplog.text
    assert engine.engine.speculation_error == "ValueError while drafting"
    assert_same(target, engine, known)


# As it is served


def served(target: Family, **settings) -> EngineSettings:
    return EngineSettings(
        model=str(target.folder), dtype="float32", kv_cache_memory=4 << 20, **settings
    )


@pytest.mark.parametrize("mode", ["chain:2", "giusto"])
def test_a_served_engine_drafts(target: Family, tmp_path: Path, mode: str):
    """Built as it is served, a pass of the draft has been timed and is in the price list."""
    make_tiny(tmp_path, "llama2", seed=8)
    settings = served(target, speculation=mode, draft_model=str(tmp_path))
    made, ready = build.engine(settings, WallClock())
    assert (ready["speculation"], ready["draft_model"]) == (mode, str(tmp_path))
    assert made.latency.coefficients[6] > 0
    assert isinstance(made.speculator.drafter, ModelDrafter)


def test_giusto_drafts_by_look_up_unless_told(target: Family):
    """Without a draft model it is what it was."""
    made, ready = build.engine(served(target, speculation="giusto"), WallClock())
    assert ready["draft_model"] is None
    assert not isinstance(made.speculator.drafter, ModelDrafter)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speculation": "chain:4", "draft_model": "none"}, "drafts with a model: give --draft"),
        ({"speculation": "static", "model": "/nowhere"}, "static drafts with a model"),
        ({"speculation": "ngram", "draft_model": "default"}, "ngram uses no draft model"),
        ({"draft_model": "/nowhere"}, "speculation off uses no draft model"),
    ],
)
def test_settings_that_do_not_fit_fail_before_a_model_is_loaded(settings, message: str):
    with pytest.raises(ConfigError, match=message):
        build.backend(EngineSettings(**settings), WallClock())


def test_a_draft_that_is_not_there_stops_the_engine(target: Family, tmp_path: Path):
    settings = served(target, speculation="giusto", draft_model=str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match=r"--draft-model: .*nowhere does not exist"):
        build.engine(settings, WallClock())


# The one that ships


def test_the_shipped_draft_fits_the_default_model():
    """It loads beside the default model, guesses much of an answer, and changes nothing of it."""
    settings = EngineSettings(
        dtype="float32", kv_cache_memory=64 << 20, speculation="giusto", draft_model="default"
    )
    engine, _ = build.engine(settings, WallClock())
    text = engine.runner.tokenizer.render_chat([{"role": "user", "content": QUESTION}], True)
    ids = tuple(engine.runner.tokenizer.encode(text, False))
    sampling = SamplingParams(max_tokens=32, temperature=0.0)
    found = []
    for name in ("with", "without"):
        engine.submit(Submission(name, 0.0, len(ids), prompt_ids=ids, sampling=sampling))
        tokens: list[int] = []
        accepted = 0
        while engine.scheduler.has_work:
            for event in engine.step()[0]:
                if isinstance(event, Stepped):
                    tokens += event.outcome.yields[name].tokens
                    accepted += event.outcome.yields[name].accepted
        assert engine.speculation_error is None
        found.append((tokens, accepted))
        engine.speculator = None
    (tokens, accepted), (plain_tokens, none) = found
    assert tokens == plain_tokens
    assert accepted >= 6
    assert none == 0
