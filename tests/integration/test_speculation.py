"""Speculation changes how fast an answer comes, and nothing of the answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from engines import Family, TinyEngine, make_family
from giusto import build
from giusto.core.clock import WallClock
from giusto.core.errors import ConfigError
from giusto.core.events import Preempted, Stepped
from giusto.core.request import FinishReason
from giusto.engine.settings import EngineSettings
from giusto.spec.drafter import Ask
from giusto.spec.tree import ROOT, TokenTree
from speculated import NEW_TOKENS, PROMPTS, answers, assert_same, plain, submit_all
from tiny_models import FAMILIES

MODES = ("giusto", "ngram", "suffix")


class Foresight:
    """A drafter that knows the answers: right branches between wrong ones, as deep as asked.

    The likelier a branch says it is, the further in front it lies in the cache: here the right one
    comes last at each level, so that all that is accepted has to be moved.
    """

    def __init__(self, answers: dict[tuple[int, ...], list[int]], wrong_at: int = 3) -> None:
        self.answers = answers
        self.wrong_at = wrong_at

    def draft(self, asks: Sequence[Ask]) -> list[TokenTree]:
        return [self._tree(ask) for ask in asks]

    def _tree(self, ask: Ask) -> TokenTree:
        tree = TokenTree()
        prompt = next(p for p in self.answers if tuple(ask.tokens[: len(p)]) == p)
        rest = self.answers[prompt][len(ask.tokens) - len(prompt) :][: ask.depth]
        node = ROOT
        for level, token in enumerate(rest):
            if len(tree) + 3 > ask.spec.max_nodes:
                break
            tree.add(node, (token + 1) % 320, 0.5)
            tree.add(node, (token + 2) % 320, 0.3)
            if level == self.wrong_at:
                break
            node = tree.add(node, token, 0.2)
        return tree

    def learn(self, request_id: str, tree: TokenTree, drawn: Sequence[int]) -> None:
        pass

    def forget(self, request_id: str) -> None:
        pass


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request, tmp_path_factory) -> Family:
    return make_family(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Family:
    return make_family(tmp_path_factory.mktemp("llama"), "llama3")


def foreseeing(family: Family, known, **settings) -> TinyEngine:
    return TinyEngine(family.model, drafter=Foresight(known), speculation="suffix:32", **settings)


# Greedy answers are those of plain decoding


def test_accepted_paths_are_what_decoding_would_give(family: Family):
    """In each family: branches accepted from deep in a tree, moved in the cache, change nothing."""
    known = plain(family)
    engine = foreseeing(family, known)
    submit_all(engine)
    engine.run()
    assert_same(family, engine, known)
    num_tokens = sum(len(answer.tokens) for answer in engine.answers.values())
    assert engine.num_accepted > num_tokens / 2


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_answers_as_plain_decoding(llama: Family, mode: str):
    """Whatever is proposed and chosen, twice over cached prefixes, answers are the same."""
    known = plain(llama)
    engine = TinyEngine(llama.model, speculation=mode)
    for _ in range(2):
        submit_all(engine, copies=3)
        engine.run()
        assert_same(llama, engine, known)
        engine.answers.clear()


@pytest.mark.parametrize("mode", MODES)
def test_what_repeats_is_guessed(llama: Family, mode: str):
    """An answer of three tokens over and over is guessed by each mode, and stays what it was."""
    few = {"logit_bias": tuple((token, 50.0) for token in (70, 80, 90))}
    known = plain(llama, **few)
    engine = TinyEngine(llama.model, speculation=mode)
    submit_all(engine, **few)
    found = answers(engine)
    assert [found[f"{i}.0"] for i in range(len(PROMPTS))] == list(known.values())
    assert engine.num_accepted > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"max_num_batched_tokens": 7, "block_size": 8},
        {"block_size": 4, "num_blocks": 400},
        {"num_blocks": 13, "block_size": 8, "scheduling_policy": "fcfs"},
        {"prefix_caching": False, "max_num_seqs": 2},
    ],
    ids=["chunked", "small-blocks", "preempted", "two-at-a-time"],
)
def test_speculation_works_with_all_else(llama: Family, settings):
    """Chunked prompts, small blocks, lost blocks: what is accepted survives all of it."""
    known = plain(llama)
    engine = foreseeing(llama, known, **settings)
    submit_all(engine, copies=2)
    engine.run()
    assert_same(llama, engine, known)
    assert engine.num_accepted > 0
    if settings.get("num_blocks") == 13:
        assert engine.count(Preempted) >= 1


def test_an_accepted_token_saves_a_step(llama: Family):
    """With right guesses an answer takes a fraction of the steps."""
    known = plain(llama)
    steps = []
    for engine in (TinyEngine(llama.model), foreseeing(llama, known)):
        engine.submit("0.0", PROMPTS[0], temperature=0.0, max_tokens=NEW_TOKENS)
        engine.run()
        steps.append(engine.count(Stepped))
    assert steps[1] < 0.5 * steps[0]


def test_the_cache_holds_what_a_fresh_prefill_would(llama: Family):
    """After accepted paths were moved, keys and values are those of the tokens computed anew."""
    known = plain(llama)
    engine = foreseeing(llama, known)
    engine.submit("0.0", PROMPTS[0], temperature=0.0, max_tokens=NEW_TOKENS)
    while engine.num_accepted < 6:
        engine.step()
    request = engine.scheduler.requests["0.0"]
    tokens = request.token_ids[: request.num_computed_tokens]
    fresh = TinyEngine(llama.model)
    fresh.submit("again", request.token_ids, temperature=0.0, max_tokens=2)
    fresh.step()
    other = fresh.scheduler.requests["again"]
    for mine, theirs in zip(
        engine.engine.runner.kv.layers, fresh.engine.runner.kv.layers, strict=True
    ):
        for name in ("keys", "values"):
            torch.testing.assert_close(
                _rows(getattr(mine, name), request.blocks, len(tokens)),
                _rows(getattr(theirs, name), other.blocks, len(tokens)),
                atol=1e-4,
                rtol=1e-4,
            )


def _rows(cache: torch.Tensor, blocks: list[int], count: int) -> torch.Tensor:
    return torch.stack([cache[blocks[place // 16] * 16 + place % 16] for place in range(count)])


# Sampled answers, and everything that ends or shapes one

OPTIONS = {
    "plain": {"temperature": 1.0, "seed": 1},
    "cool": {"temperature": 0.5, "top_p": 0.9, "seed": 2},
    "cut": {"temperature": 1.2, "top_k": 20, "min_p": 0.02, "seed": 3},
    "new": {"temperature": 1.0, "repetition_penalty": 1.2, "presence_penalty": 0.5, "seed": 4},
    "told": {"logprobs": 2},
    "least": {"min_tokens": 20},
    "many": {"temperature": 1.0, "n": 3, "seed": 5},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_seed_repeats_with_speculation(llama: Family, options):
    """The same seed draws the same answer with and without, whatever shapes the draw."""
    engine = TinyEngine(llama.model)
    submit_all(engine, **options)
    expected = answers(engine)
    known = {tuple(prompt): expected[f"{i}.0"] for i, prompt in enumerate(PROMPTS)}
    guessing = foreseeing(llama, known)
    submit_all(guessing, **options)
    assert answers(guessing) == expected
    assert guessing.num_accepted > 0
    for name, answer in guessing.answers.items():
        assert len(answer.logprobs) == ("logprobs" in options) * len(answer.tokens), name


def test_an_answer_ends_where_it_would_have_ended(llama: Family):
    """Stop ids, stop strings and the cap end an answer in the middle of an accepted path."""
    known = plain(llama)
    tokens = known[tuple(PROMPTS[0])]
    last = next(i for i, token in enumerate(tokens) if i >= 3 and token not in tokens[:i])
    for special in (
        {"stop_token_ids": (tokens[last],)},
        {"max_tokens": last + 1},
        {"max_tokens": 1},
    ):
        engine = foreseeing(llama, known)
        options = {"temperature": 0.0, "max_tokens": NEW_TOKENS} | special
        engine.submit("0.0", PROMPTS[0], **options)
        answer = engine.run()["0.0"]
        assert answer.tokens == tokens[: 1 if options["max_tokens"] == 1 else last + 1]
    decode = TinyEngine(llama.model).engine.runner.tokenizer.decode
    stop = next(text for i in range(3, 9) if "\ufffd" not in (text := decode(tokens[i : i + 2])))
    stopped = []
    for engine in (TinyEngine(llama.model), foreseeing(llama, known)):
        engine.submit("0.0", PROMPTS[0], temperature=0.0, max_tokens=NEW_TOKENS, stop=(stop,))
        answer = engine.run()["0.0"]
        assert answer.finish is FinishReason.STOP
        stopped.append(answer.tokens)
    assert stopped[0] == stopped[1]


@pytest.mark.parametrize("steps", range(1, 6))
def test_an_abort_at_any_moment_frees_everything(llama: Family, steps: int):
    """With trees in flight an abort leaves nothing, and others go on."""
    known = plain(llama)
    engine = foreseeing(llama, known, max_num_batched_tokens=48)
    submit_all(engine)
    for _ in range(steps):
        engine.step()
    engine.engine.abort("0.0")
    engine.engine.abort("2.0")
    engine.run()
    engine.answers = {name: engine.answers[name] for name in ("1.0", "3.0")}
    assert_same(llama, engine, known)


# When drafting fails


class Failing(Foresight):
    """A drafter that breaks at a moment of its life."""

    def __init__(self, known, moment: str) -> None:
        super().__init__(known)
        self.moment = moment

    def draft(self, asks: Sequence[Ask]) -> list[TokenTree]:
        if self.moment == "draft":
            raise MemoryError("no room")
        return super().draft(asks)

    def learn(self, request_id: str, tree: TokenTree, drawn: Sequence[int]) -> None:
        if self.moment == "learn":
            raise KeyError(request_id)


@pytest.mark.parametrize("moment", ["draft", "learn"])
def test_a_drafter_that_fails_costs_speed_alone(llama: Family, moment: str, caplog):
    """Speculation goes off and says why; requests are answered as without it."""
    known = plain(llama)
    engine = TinyEngine(llama.model, drafter=Failing(known, moment), speculation="suffix")
    submit_all(engine)
    with caplog.at_level(logging.ERROR):
        engine.run()
    assert "speculation failed" in caplog.text
    assert engine.engine.speculation_error in (
        "MemoryError while drafting",
        "KeyError while drafting",
    )
    assert_same(llama, engine, known)


# As it is served


def test_an_unknown_mode_fails_before_a_model_is_loaded():
    with pytest.raises(ConfigError, match="no speculation 'medusa'; there are off, ngram"):
        build.backend(EngineSettings(model="/nowhere", speculation="medusa"), WallClock())


def test_a_served_engine_speculates(llama: Family):
    """Built as it is served, with its prices measured, it answers and counts what was accepted."""
    settings = EngineSettings(model=str(llama.folder), dtype="float32", speculation="giusto")
    made, ready = build.engine(replace(settings, kv_cache_memory=4 << 20), WallClock())
    assert ready["speculation"] == "giusto"
    assert made.latency.coefficients[5] >= 0
    backend = build.backend(settings, WallClock(), isolate=False)

    async def run() -> None:
        await backend.start()
        assert backend.model.speculation == "giusto"
        assert backend.degraded is None
        await backend.stop()

    asyncio.run(run())
