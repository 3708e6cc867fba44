"""Verification is lossless: what is drawn through a tree has the target's own distribution."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare

from giusto.core.request import FinishReason, Request, SamplingParams, Submission
from giusto.engine.batch import Head
from giusto.engine.sampler import Draw, Sampler
from giusto.engine.walk import Walk, walk
from giusto.spec.tree import ROOT, TokenTree

VOCAB = 8
EOS = (0,)
DRAWS = 20_000
#: A sound sampler fails one test in a thousand by chance; the seeds are fixed.
SIGNIFICANCE = 0.001


def tree() -> TokenTree:
    """Candidates 1 and 2; after 1 again 1 and 3."""
    made = TokenTree()
    one = made.add(ROOT, 1)
    made.add(ROOT, 2)
    made.add(one, 1)
    made.add(one, 3)
    return made


#: The target's logits after the root and after each node of the tree.
LOGITS = 1.5 * torch.randn(1 + len(tree()), VOCAB, generator=torch.Generator().manual_seed(4))


def request(seed: int, **params: object) -> Request:
    params.setdefault("max_tokens", 50)
    ask = Submission(
        str(seed), 0.0, 2, prompt_ids=(4, 5), sampling=SamplingParams(seed=seed, **params)
    )
    made = Request.of(ask)
    made.emit((6,), 1.0)
    return made


def heads_of(requests: list[Request], size: int) -> list[Head]:
    return [Head(made, at * size, tree()) for at, made in enumerate(requests)]


def walks(sampler: Sampler, count: int, **params: object) -> list[Walk]:
    """The walks of so many requests over the same tree and logits, each with its own seed."""
    requests = [request(seed, **params) for seed in range(count)]
    heads = heads_of(requests, len(LOGITS))
    return walk(heads, LOGITS.repeat(count, 1), sampler, lambda *_: False)


def exact(sampler: Sampler, row: int, path: tuple[int, ...], **params: object) -> torch.Tensor:
    """What the target's distribution at one node is: by the sampler's own cumulative look-up of
    evenly spread numbers, so that truncation and penalties are in it."""
    numbers = [(i + 0.5) / 4000 for i in range(4000)]
    made = request(0, **params)
    logits = LOGITS[row].clone()
    sampler._shape(made, path, logits)
    tokens = sampler._pick([made.sampling] * 4000, numbers, logits.repeat(4000, 1))
    return torch.bincount(torch.tensor(tokens), minlength=VOCAB) / 4000


def p_value(counts: Counter[int], expected: torch.Tensor) -> float:
    """Of the draws at one node under the distribution that they should have."""
    kept = [token for token in range(VOCAB) if expected[token] > 0]
    assert set(counts) <= set(kept)
    total = sum(counts.values())
    shares = expected[kept] / expected[kept].sum()
    # scipy wants both sums to agree more closely than float32 does
    shares = shares.double() / shares.double().sum()
    return float(chisquare([counts[t] for t in kept], (shares * total).tolist()).pvalue)


SAMPLED = {
    "plain": {},
    "cool": {"temperature": 0.6, "top_p": 0.8},
    "cut": {"temperature": 1.3, "top_k": 4, "min_p": 0.05},
    "penalised": {"presence_penalty": 0.7, "repetition_penalty": 1.3},
    "biased": {"logit_bias": ((1, 1.0),), "min_tokens": 9},
}


def p_values(sampler: Sampler, params: dict[str, object]) -> list[float]:
    """At the root, and after each path that a walk may take."""
    found = walks(sampler, DRAWS, **params)
    honest = Sampler(VOCAB, EOS)
    values = []
    for row, path in enumerate([(), (1,), (2,), (1, 1), (1, 3)]):
        at = len(path)
        drawn = [way.tokens for way in found]
        counts = Counter(t[at] for t in drawn if t[:at] == path and len(t) > at)
        if sum(counts.values()) > 200:
            values.append(p_value(counts, exact(honest, row, path, **params)))
    return values


@pytest.mark.parametrize("params", SAMPLED.values(), ids=SAMPLED)
def test_draws_through_a_tree_are_the_targets(params):
    """At each node 20,000 walks draw as the target would there, truncated and penalised."""
    values = p_values(Sampler(VOCAB, EOS), params)
    assert len(values) >= 3
    assert min(values) > SIGNIFICANCE


class Stuck(Sampler):
    """Draws at every node with the number of the root: a mistake that no single token shows."""

    def draw(self, requests, logits, paths=None) -> list[Draw]:
        return super().draw(requests, logits)


class Eager(Sampler):
    """Takes the first candidate more often than the target would."""

    def draw(self, requests, logits, paths=None) -> list[Draw]:
        logits[:, 1] += 0.15
        return super().draw(requests, logits, paths)


@pytest.mark.parametrize("kind", [Stuck, Eager])
def test_a_wrong_sampler_is_caught(kind):
    """The test above fails for draws that are a little off, or depend on each other."""
    assert min(p_values(kind(VOCAB, EOS), {})) < SIGNIFICANCE


def test_a_walk_draws_what_would_be_drawn_without_a_tree():
    """Token by token the same numbers decide: the same seed gives the same answer."""
    sampler = Sampler(VOCAB, EOS)
    for way in walks(sampler, 300):
        made = way.head.request
        row = 0
        for place, token in enumerate(way.tokens):
            (alone,) = sampler.draw([made], LOGITS[[row]].clone())
            assert alone.token == token
            made.emit((token,), 2.0)
            if place < len(way.nodes):
                row = 1 + way.nodes[place]
        assert len(way.tokens) == len(way.nodes) + 1


def test_at_a_glance_or_level_by_level_is_the_same():
    """Plain greedy requests are drawn all rows at once, and as they are beside others."""
    logits = torch.randn(5 * 40, VOCAB, generator=torch.Generator().manual_seed(9))
    plain = [request(seed, temperature=0.0) for seed in range(40)]
    sampler = Sampler(VOCAB, EOS)
    alone = walk(heads_of(plain, 5), logits.clone(), sampler, lambda *_: False)
    plain[0].sampling = replace(plain[0].sampling, logit_bias=((7, 0.0),))
    beside = walk(heads_of(plain, 5), logits.clone(), sampler, lambda *_: False)
    assert [way.tokens for way in alone] == [way.tokens for way in beside]
    assert [way.nodes for way in alone] == [way.nodes for way in beside]
    assert any(way.nodes for way in alone)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.7},
        {"logprobs": 1},
        {"min_tokens": 2},
        {"logit_bias": ((1, 1.0),)},
        {"frequency_penalty": 0.1},
    ],
)
def test_what_asks_for_more_is_not_drawn_at_a_glance(params):
    """Each option that shapes a draw, or tells more of it, takes the long way."""
    sampler = Sampler(VOCAB, EOS)
    assert sampler.is_plain(request(0, temperature=0.0))
    assert not sampler.is_plain(request(0, **{"temperature": 0.0} | params))
    masked = Sampler(VOCAB, EOS, lambda *_: (1, 2))
    assert not masked.is_plain(request(0, temperature=0.0))


def test_a_greedy_walk_follows_the_likeliest():
    """Without temperature the walk goes down as long as the likeliest token is a candidate."""
    logits = torch.zeros(5, VOCAB)
    for row, token in enumerate((1, 3, 7, 7, 5)):
        logits[row, token] = 1.0
    (way,) = walk(
        heads_of([request(0, temperature=0.0)], 5), logits, Sampler(VOCAB, EOS), lambda *_: False
    )
    assert way.tokens == (1, 3, 5)
    assert way.nodes == [0, 3]


def test_a_walk_ends_with_the_answer():
    """The last token ends the walk although a candidate follows; so does the cap on tokens."""
    logits = torch.zeros(5, VOCAB)
    logits[:, 1] = 1.0
    asked: list[tuple[int, int]] = []

    def is_last(made: Request, token: int, num_before: int) -> bool:
        asked.append((token, num_before))
        return num_before == 1

    greedy = request(0, temperature=0.0)
    (way,) = walk(heads_of([greedy], 5), logits.clone(), Sampler(VOCAB, EOS), is_last)
    assert (way.tokens, way.finish) == ((1, 1), FinishReason.STOP)
    assert asked == [(1, 0), (1, 1)]
    capped = request(0, temperature=0.0)
    capped.sampling = replace(capped.sampling, max_tokens=2)
    heads = heads_of([capped], 5)
    (way,) = walk(heads, logits.clone(), Sampler(VOCAB, EOS), lambda *_: False)
    assert (way.tokens, way.finish) == ((1,), None)


def test_requests_with_and_without_trees_are_drawn_together():
    """Rows of requests without candidates stay their own while others go deeper."""
    logits = torch.zeros(7, VOCAB)
    for row, token in enumerate((6, 1, 2, 7, 7, 7, 5)):
        logits[row, token] = 1.0
    bare, planted, last = (request(seed, temperature=0.0) for seed in range(3))
    heads = [Head(bare, 0), Head(planted, 1, tree()), Head(last, 6)]
    found = walk(heads, logits, Sampler(VOCAB, EOS), lambda *_: False)
    assert [way.tokens for way in found] == [(6,), (1, 2), (5,)]
