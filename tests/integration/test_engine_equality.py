"""The whole engine against `transformers.generate`, token for token, however it is driven."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import pytest
import torch
from safetensors.torch import load_file, save_file

from engines import (
    CLEAR_GAP,
    Answer,
    Family,
    Reference,
    TinyEngine,
    make_family,
    open_family,
    random_prompt,
)
from giusto.core.events import Preempted, Resumed
from giusto.core.request import FinishReason
from harness import HONEST
from tiny_models import FAMILIES, VOCAB_SIZE, make_tiny

NEW_TOKENS = 32
TOLERANCE = 1e-4
#: The second begins with the first: two blocks of 16 are shared.
SHARED = random_prompt(37, 1)
PROMPTS = (SHARED, [*SHARED[:33], *random_prompt(15, 2)], random_prompt(5, 3), random_prompt(21, 4))


@dataclass(frozen=True)
class Case:
    family: Family
    expected: list[Reference]

    def engine(self, **settings) -> TinyEngine:
        return TinyEngine(self.family.model, **settings)

    def assert_equal(self, answer: Answer, index: int) -> None:
        """The tokens are the reference's wherever it decides clearly, the logits everywhere.

        Where it nearly ties and the engine took the other token, the reference is made to take
        that too: what follows is compared on the engine's own continuation, to the end.
        """
        expected = self.expected[index]
        while answer.tokens != expected.tokens:
            place = agreement(answer.tokens, expected.tokens)
            assert place < min(len(answer.tokens), len(expected.tokens)), "one ends too early"
            row, chosen = expected.logits[place], answer.tokens[place]
            assert row.max() - row[chosen] <= CLEAR_GAP, f"token {place} is no near tie"
            forced = answer.tokens[: place + 1]
            expected = self.family.generate(PROMPTS[index], NEW_TOKENS, forced)
        torch.testing.assert_close(
            torch.stack(answer.logits), expected.logits, atol=TOLERANCE, rtol=0
        )
        is_ended = answer.tokens[-1] in self.family.model.eos_token_ids
        assert answer.finish == (FinishReason.STOP if is_ended else FinishReason.LENGTH)


def agreement(mine: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens two answers share before they part."""
    pairs = zip(mine, theirs, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def make_case(family: Family) -> Case:
    return Case(family, [family.generate(prompt, NEW_TOKENS) for prompt in PROMPTS])


@pytest.fixture(scope="module", params=list(FAMILIES))
def case(request, tmp_path_factory) -> Case:
    return make_case(make_family(tmp_path_factory.mktemp(request.param), request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Case:
    return make_case(make_family(tmp_path_factory.mktemp("llama"), "llama3"))


def submit_all(engine: TinyEngine, copies: int = 1) -> None:
    for copy in range(copies):
        for i, prompt in enumerate(PROMPTS):
            engine.submit(f"{i}.{copy}", prompt, temperature=0.0, max_tokens=NEW_TOKENS)


def assert_all_equal(case: Case, engine: TinyEngine) -> None:
    for name, answer in engine.answers.items():
        case.assert_equal(answer, int(name[0]))


def test_ties_are_rare(case: Case) -> None:
    """More than 99 % of the reference's tokens are decided by a clear gap."""
    gaps = torch.cat([expected.gaps for expected in case.expected])
    assert (gaps > CLEAR_GAP).float().mean() > 0.99
    assert len(gaps) > 40


def test_alone(case: Case) -> None:
    """Requests one after the other, without a prefix cache, are answered token for token."""
    engine = case.engine(prefix_caching=False)
    for i, prompt in enumerate(PROMPTS):
        engine.submit(f"{i}", prompt, temperature=0.0, max_tokens=NEW_TOKENS)
        engine.run()
    assert_all_equal(case, engine)


def test_batched_with_prefix_hits(case: Case) -> None:
    """Twelve requests at once, then the same again upon their cached prefixes, change nothing."""
    engine = case.engine()
    for _ in range(2):
        submit_all(engine, copies=3)
        engine.run()
        assert len(engine.answers) == 12
        assert_all_equal(case, engine)
        engine.answers.clear()
    # The second time only what lies behind the full blocks of a prompt is computed.
    assert engine.num_prompt_tokens < 4 * sum(map(len, PROMPTS))


@pytest.mark.parametrize("budget", [1, 7])
def test_chunked(case: Case, budget: int) -> None:
    """A budget of a few tokens per step cuts prompts to pieces and changes nothing."""
    engine = case.engine(max_num_batched_tokens=budget, block_size=8)
    submit_all(engine)
    engine.run()
    assert_all_equal(case, engine)


def test_across_preemptions(case: Case) -> None:
    """With memory for two requests, some lose their blocks half way and end as they would have."""
    engine = case.engine(num_blocks=11, block_size=8, scheduling_policy="fcfs")
    submit_all(engine, copies=2)
    engine.run()
    assert engine.count(Preempted) >= 2
    assert engine.count(Resumed) == engine.count(Preempted)
    assert_all_equal(case, engine)


@pytest.mark.parametrize("policy", HONEST)
def test_every_policy(llama: Case, policy: str) -> None:
    """Whatever policy decides the order, and however scarce memory is, answers are the same."""
    engine = llama.engine(
        num_blocks=12, block_size=8, max_num_batched_tokens=24, scheduling_policy=policy
    )
    submit_all(engine, copies=2)
    engine.run()
    assert len(engine.answers) == 8
    assert_all_equal(llama, engine)


# The comparison itself


@pytest.fixture(scope="module")
def twins(tmp_path_factory) -> Case:
    """A model in which every token of the lower half of the vocabulary has a twin in the upper."""
    folder = make_tiny(tmp_path_factory.mktemp("twins"), "llama2", seed=3)
    weights = load_file(folder / "model.safetensors")
    head = weights["lm_head.weight"]
    head[VOCAB_SIZE // 2 :] = head[: VOCAB_SIZE // 2]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return make_case(open_family(folder, "twins"))


def test_an_answer_is_compared_beyond_ties(twins: Case) -> None:
    """Where the reference ties at each token and the engine takes the other, all is compared."""
    engine = twins.engine()
    upper = tuple((token, 1e-3) for token in range(VOCAB_SIZE // 2, VOCAB_SIZE))
    for i, prompt in enumerate(PROMPTS):
        engine.submit(f"{i}", prompt, temperature=0.0, max_tokens=NEW_TOKENS, logit_bias=upper)
    engine.run()
    assert_all_equal(twins, engine)
    for i, expected in enumerate(twins.expected):
        assert agreement(engine.answers[f"{i}"].tokens, expected.tokens) < 5


def wrong_token(answer: Answer) -> Answer:
    second = int(answer.logits[7].topk(2).indices[1])
    return replace(answer, tokens=[*answer.tokens[:7], second, *answer.tokens[8:]])


def wrong_logit(answer: Answer) -> Answer:
    answer.logits[-1][5] += 3 * TOLERANCE
    return answer


def cut_short(answer: Answer) -> Answer:
    return replace(answer, tokens=answer.tokens[:-1], logits=answer.logits[:-1])


@pytest.mark.parametrize("spoil", [wrong_token, wrong_logit, cut_short])
def test_a_wrong_answer_is_caught(llama: Case, spoil: Callable[[Answer], Answer]) -> None:
    """A token that is not the likeliest, logits a little off, an early end: none passes."""
    engine = llama.engine()
    engine.submit("0", PROMPTS[0], temperature=0.0, max_tokens=NEW_TOKENS)
    answer = engine.run()["0"]
    llama.assert_equal(answer, 0)
    with pytest.raises(AssertionError):
        llama.assert_equal(spoil(answer), 0)


# Sampled answers: the same draws under any driving

SAMPLED = {
    "plain": {"seed": 1},
    "cool": {"seed": 2, "temperature": 0.5, "top_p": 0.9},
    "cut": {"seed": 3, "temperature": 1.2, "top_k": 20, "min_p": 0.02},
    "new": {"seed": 4, "repetition_penalty": 1.2, "presence_penalty": 0.5, "logprobs": 2},
    "many": {"seed": 5, "n": 3, "frequency_penalty": 0.3},
    "long": {"seed": 6, "min_tokens": 20, "ignore_eos": False},
}


def sampled(engine: TinyEngine, *, together: bool) -> dict[str, list[int]]:
    for i, (name, options) in enumerate(SAMPLED.items()):
        engine.submit(name, PROMPTS[i % 2], max_tokens=24, **options)
        if not together:
            engine.run()
    engine.run()
    return {name: answer.tokens for name, answer in engine.answers.items()}


@pytest.fixture(scope="module")
def alone(llama: Case) -> dict[str, list[int]]:
    return sampled(llama.engine(prefix_caching=False), together=False)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"prefix_caching": False},
        {"max_num_batched_tokens": 3, "block_size": 4, "num_blocks": 400},
        {"max_num_seqs": 2},
        {"num_blocks": 11, "block_size": 8, "scheduling_policy": "fcfs"},
    ],
    ids=["batched", "uncached", "chunked", "two-at-a-time", "preempted"],
)
def test_a_seed_repeats_under_any_driving(llama: Case, alone, settings) -> None:
    """Sampled requests with a seed draw the same tokens batched, chunked, cached and preempted."""
    engine = llama.engine(**settings)
    assert sampled(engine, together=True) == alone
    if settings.get("num_blocks") == 11:
        assert engine.count(Preempted) >= 1


def test_samples_differ_and_the_first_is_that_of_one(llama: Case, alone) -> None:
    """The samples of n=3 are three answers, and the first is what n=1 gives."""
    assert len({tuple(alone[name]) for name in ("many", "many#1", "many#2")}) == 3
    engine = llama.engine()
    engine.submit("one", PROMPTS[0], max_tokens=24, seed=5, frequency_penalty=0.3)
    assert engine.run()["one"].tokens == alone["many"]


def test_requests_without_a_seed_get_one_each(llama: Case) -> None:
    """Two requests without a seed draw different answers; another engine of that seed the same."""
    runs = []
    for _ in range(2):
        engine = llama.engine()
        engine.submit("a", PROMPTS[0], max_tokens=24)
        engine.submit("b", PROMPTS[0], max_tokens=24)
        runs.append([engine.run()[name].tokens for name in "ab"])
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[0][1]
