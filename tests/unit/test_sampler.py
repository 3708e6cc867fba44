"""The sampler against exact distributions, a slow twin, and the rules of `transformers`."""

from __future__ import annotations

import math
import random

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from giusto.core.request import Request, SamplingParams, Submission
from giusto.engine.sampler import Draw, Sampler, uniform

VOCAB = 24
EOS = (2, 0)
INF = float("inf")


def request(
    name: str = "a",
    prompt: tuple[int, ...] = (3, 4),
    output: tuple[int, ...] = (),
    sample: int = 0,
    **params: object,
) -> Request:
    params.setdefault("seed", 1)
    ask = Submission(
        name, 0.0, len(prompt), prompt_ids=prompt, sampling=SamplingParams(**params), n=sample + 1
    )
    made = Request.of(ask, sample)
    made.emit(output, 1.0)
    return made


def logits_of(seed: int, rows: int = 1, vocab: int = VOCAB) -> torch.Tensor:
    return 2 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def draw(requests: list[Request], logits: torch.Tensor, **more: object) -> list[Draw]:
    return Sampler(logits.shape[1], EOS, **more).draw(requests, logits.clone())


def reference(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The exact distribution: the same truncations, done by `transformers`."""
    steps = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.min_p:
        steps.append(MinPLogitsWarper(params.min_p))
    if params.top_k:
        steps.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        steps.append(TopPLogitsWarper(params.top_p))
    return steps(torch.zeros(1, 1, dtype=torch.int64), logits.clone()).softmax(-1)[0]


# Draws are a function of seed, sample and position


def test_uniform_numbers_are_even_and_unrelated():
    """Numbers of consecutive positions, samples and seeds fill [0, 1) evenly, without relation."""
    for numbers in (
        [uniform(7, 0, i) for i in range(4000)],
        [uniform(7, i, 0) for i in range(4000)],
        [uniform(i, 0, 0) for i in range(4000)],
    ):
        assert all(0 <= number < 1 for number in numbers)
        bins = torch.histc(torch.tensor(numbers), 20, 0, 1)
        assert float(((bins - 200) ** 2 / 200).sum()) < 43.8  # 0.1 % of chi-square, 19 degrees
        series = torch.tensor(numbers) - 0.5
        assert abs(float((series[1:] * series[:-1]).mean())) * 12 < 0.06


def test_uniform_numbers_are_a_promise():
    """The number behind a draw never changes: answers of a seed repeat across versions."""
    assert uniform(1, 0, 0) == 0.9910251519435451
    assert uniform(1, 0, 1) != uniform(1, 1, 0) != uniform(0, 1, 1)


MIXED = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 0.9, "min_p": 0.05},
    {"temperature": 1.0, "top_k": 9, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 0.8, "repetition_penalty": 1.3, "presence_penalty": 0.4},
    {"temperature": 1.0, "logit_bias": ((3, 2.0),), "logprobs": 2},
    {"temperature": 1.0, "min_tokens": 5},
)


def mixed(count: int = 3) -> tuple[list[Request], torch.Tensor]:
    requests = [
        request(f"{i}-{k}", output=(5,) * k, seed=10 + i, **params)
        for i, params in enumerate(MIXED)
        for k in range(count)
    ]
    return requests, logits_of(3, len(requests))


def test_a_draw_does_not_depend_on_its_batch():
    """Alone, in a batch, and in the batch shuffled, a request draws the same token."""
    requests, logits = mixed()
    together = draw(requests, logits)
    alone = [draw([r], logits[i : i + 1])[0] for i, r in enumerate(requests)]
    assert together == alone
    order = random.Random(4).sample(range(len(requests)), len(requests))
    shuffled = draw([requests[i] for i in order], logits[order])
    assert [together[i] for i in order] == shuffled


def test_a_draw_does_not_depend_on_the_name_or_the_prompt():
    """Only seed, sample and position enter a draw, not who asks or what was said before."""
    logits = logits_of(1)
    for k in range(20):
        first = draw([request("a", (3,), (5,) * k)], logits)
        assert first == draw([request("b", (9, 9, 9), (7,) * k)], logits)


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"sample": 1}, {"output": (9,)}], ids=["seed", "sample", "position"]
)
def test_seed_sample_and_position_each_change_the_draw(change):
    """Another seed, sample or position draws other numbers from one distribution."""
    logits = torch.zeros(1, 10_000)
    assert draw([request(seed=1)], logits) != draw([request(**({"seed": 1} | change))], logits)


# Distributions

DISTRIBUTIONS = (
    {"temperature": 1.0},
    {"temperature": 0.5},
    {"temperature": 1.8},
    {"top_k": 4},
    {"top_k": 1},
    {"top_k": VOCAB},
    {"top_p": 0.6},
    {"top_p": 0.95},
    {"top_p": 1e-6},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"temperature": 0.7, "top_k": 8, "top_p": 0.7},
    {"temperature": 1.5, "min_p": 0.05, "top_p": 0.9},
    {"temperature": 1.2, "top_k": 12, "top_p": 0.9, "min_p": 0.03},
)


@pytest.mark.parametrize("params", DISTRIBUTIONS, ids=str)
def test_draws_follow_the_exact_distribution(params):
    """3000 draws have the frequencies of the distribution that `transformers` truncates to."""
    logits = logits_of(11)
    count = 3000
    exact = reference(logits, SamplingParams(**params))
    requests = [request(str(seed), seed=seed, **params) for seed in range(count)]
    tokens = [d.token for d in draw(requests, logits.expand(count, -1))]
    seen = torch.bincount(torch.tensor(tokens), minlength=VOCAB).double()
    assert not seen[exact == 0].any()
    expected = exact.double() * count
    # Cells of fewer than five draws are put together, as the test wants it.
    big = expected >= 5
    observed = torch.cat([seen[big], seen[~big].sum()[None]])
    wanted = torch.cat([expected[big], expected[~big].sum()[None]])
    kept = wanted > 0.5
    freedom = max(1, int(kept.sum()) - 1)
    distance = float(((observed - wanted) ** 2 / wanted.clamp(min=1e-9))[kept].sum())
    # Far beyond the 0.1 % point for every number of cells here.
    assert distance < freedom + 4 * math.sqrt(2 * freedom) + 5


@pytest.mark.parametrize("params", DISTRIBUTIONS, ids=str)
def test_draws_invert_the_cumulative_distribution(params):
    """A slow twin that walks the sorted or unsorted probabilities draws the same token."""
    logits = logits_of(5, 60)
    requests = [request(str(i), seed=i, **params) for i in range(60)]
    for row, drawn in enumerate(draw(requests, logits)):
        exact = reference(logits[row : row + 1], requests[row].sampling).double()
        is_truncated = requests[row].sampling.top_k % VOCAB or requests[row].sampling.top_p < 1
        order = exact.argsort(descending=True).tolist() if is_truncated else range(VOCAB)
        target, total, token = uniform(row, 0, 0), 0.0, -1
        for token in order:
            total += float(exact[token])
            if total > target:
                break
        assert drawn.token == token


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("scale", [0.01, 3.0])
def test_a_nucleus_wider_than_the_first_look_is_found(top_p, scale):
    """Top-p over a flat or a peaked large vocabulary never leaves the exact nucleus."""
    logits = scale * logits_of(2, 1, 9000)
    nucleus = reference(logits, SamplingParams(top_p=top_p)) > 0
    requests = [request(str(i), seed=i, top_p=top_p) for i in range(16)]
    tokens = [d.token for d in draw(requests, logits.expand(16, -1))]
    assert nucleus[tokens].all()
    if scale < 1:
        assert len(set(tokens)) > 12


# Greedy and extremes


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 1e-5])
def test_temperatures_near_zero_are_greedy(temperature):
    """A temperature at or next to zero takes the likeliest token."""
    logits = logits_of(9, 50)
    requests = [request(str(i), seed=i, temperature=temperature) for i in range(50)]
    assert [d.token for d in draw(requests, logits)] == logits.argmax(-1).tolist()


def test_greedy_ignores_truncation_and_seed():
    """With temperature 0 neither top-p, top-k, min-p nor the seed plays a part."""
    logits = logits_of(9, 8)
    requests = [
        request(str(i), seed=i, temperature=0.0, top_p=0.1, top_k=3, min_p=0.9) for i in range(8)
    ]
    assert [d.token for d in draw(requests, logits)] == logits.argmax(-1).tolist()


@pytest.mark.parametrize("scale", [1e-30, 1e4, 1e30])
@pytest.mark.parametrize("temperature", [1e-5, 2.0, 1e30])
def test_extreme_logits_and_temperatures_draw_a_token(scale, temperature):
    """Tiny and huge numbers neither overflow nor leave the vocabulary."""
    logits = logits_of(4, 6) * scale
    for more in ({}, {"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.2}):
        requests = [request(str(i), seed=i, temperature=temperature, **more) for i in range(6)]
        assert all(0 <= d.token < VOCAB for d in draw(requests, logits))


@pytest.mark.parametrize("params", DISTRIBUTIONS, ids=str)
def test_impossible_tokens_are_never_drawn(params):
    """Tokens of minus infinity stay out, and one that alone is left is taken."""
    logits = torch.full((30, VOCAB), -INF)
    logits[:, 7] = -3.0
    logits[15:, [1, 20]] = 1.0
    requests = [request(str(i), seed=i, **params) for i in range(30)]
    tokens = [d.token for d in draw(requests, logits)]
    assert tokens[:15] == [7] * 15
    assert set(tokens[15:]) <= {1, 7, 20}


def test_a_row_without_any_possible_token_harms_nobody_else():
    """A row of minus infinities still gives some token, and its neighbours theirs."""
    logits = torch.cat([torch.full((3, VOCAB), -INF), logits_of(1, 2)])
    kinds = ({}, {"top_p": 0.5}, {"top_k": 2, "min_p": 0.1}, {}, {"top_p": 0.5})
    requests = [request(str(i), seed=i, **params) for i, params in enumerate(kinds)]
    drawn = draw(requests, logits)
    assert all(0 <= d.token < VOCAB for d in drawn)
    assert drawn[3:] == draw(requests[3:], logits[3:])


# Penalties, bias, mask, minimum length


def shaped(made: Request, logits: torch.Tensor, sampler: Sampler | None = None) -> torch.Tensor:
    """The logits after penalties and bias, as the sampler leaves them."""
    work = logits.clone()
    (sampler or Sampler(logits.shape[1], EOS)).draw([made], work)
    return work


@pytest.mark.parametrize("factor", [0.7, 1.2, 2.0])
def test_the_repetition_penalty_is_that_of_transformers(factor):
    """Tokens of prompt and output are penalised as `RepetitionPenaltyLogitsProcessor` does."""
    logits = logits_of(6)
    made = request(prompt=(3, 4, 4), output=(5, 9, 5), repetition_penalty=factor)
    theirs = RepetitionPenaltyLogitsProcessor(factor)(
        torch.tensor([[3, 4, 4, 5, 9, 5]]), logits.clone()
    )
    torch.testing.assert_close(shaped(made, logits), theirs)


def test_presence_and_frequency_penalties_are_those_of_openai():
    """Output tokens lose count times frequency plus presence once; the prompt costs nothing."""
    logits = logits_of(6)
    made = request(prompt=(3, 4, 4), output=(5, 9, 5), presence_penalty=0.5, frequency_penalty=0.25)
    expected = logits.clone()
    expected[0, 5] -= 2 * 0.25 + 0.5
    expected[0, 9] -= 1 * 0.25 + 0.5
    torch.testing.assert_close(shaped(made, logits), expected)


def test_penalties_keep_up_with_the_output():
    """Counts grow with each token that a request draws, and start anew once it is forgotten."""
    logits, sampler = logits_of(6), Sampler(VOCAB, EOS)
    made = request(frequency_penalty=1.0)
    for token in (5, 5, 6):
        shaped(made, logits, sampler)
        made.emit((token,), 2.0)
    expected = logits.clone()
    expected[0, [5, 6]] -= torch.tensor([2.0, 1.0])
    torch.testing.assert_close(shaped(made, logits, sampler), expected)
    sampler.forget("a")
    torch.testing.assert_close(shaped(request(frequency_penalty=1.0), logits, sampler), logits)


def test_logit_bias_is_added_before_the_choice():
    """A large bias makes a token certain, a negative one impossible."""
    logits = logits_of(8)
    best = int(logits.argmax())
    banned = request(temperature=0.0, logit_bias=((best, -100.0),))
    forced = request("b", temperature=0.0, logit_bias=((6, 100.0), (7, 1.0)))
    assert draw([banned], logits)[0].token == int(logits[0].topk(2).indices[1])
    assert draw([forced], logits)[0].token == 6


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_no_end_before_min_tokens(temperature):
    """Ends of text and stop ids cannot be drawn until the output has its minimum length."""
    logits = torch.zeros(1, VOCAB)
    logits[0, [0, 2, 11]] = 50.0
    params = {"temperature": temperature, "min_tokens": 2, "stop_token_ids": (11,)}
    for k in range(2):
        assert draw([request(output=(5,) * k, **params)], logits)[0].token not in (0, 2, 11)
    assert draw([request(output=(5, 5), **params)], logits)[0].token in (0, 2, 11)


@pytest.mark.parametrize("params", DISTRIBUTIONS, ids=str)
def test_a_mask_leaves_only_what_it_allows(params):
    """A mask provider's ids are all that can be drawn; None allows everything."""
    logits = logits_of(12, 20)
    requests = [request(str(i), seed=i, **params) for i in range(20)]
    allowed = {str(i): (1, 8, 9) for i in range(10)}
    drawn = draw(requests, logits, mask=lambda r, _: allowed.get(r.id))
    assert {d.token for d in drawn[:10]} <= {1, 8, 9}
    assert drawn[10:] == draw(requests[10:], logits[10:])


def test_a_bias_cannot_lift_what_the_mask_forbids():
    """The mask holds whatever bias and penalties say."""
    made = request(temperature=0.0, logit_bias=((5, 100.0),))
    assert draw([made], logits_of(1), mask=lambda r, _: (3,))[0].token == 3


# Log-probabilities


def test_logprobs_are_the_models_own():
    """Log-probabilities are of the model's distribution, before bias, penalty and temperature."""
    logits = logits_of(13)
    made = request(temperature=0.3, top_k=2, logit_bias=((4, 100.0),), logprobs=5)
    (drawn,) = draw([made], logits)
    exact = logits[0].log_softmax(-1)
    assert drawn.token == 4
    assert drawn.logprob == pytest.approx(float(exact[4]), abs=1e-5)
    best = exact.topk(5)
    assert [token for token, _ in drawn.top] == best.indices.tolist()
    assert [value for _, value in drawn.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_logprobs_only_for_those_who_asked():
    """0 gives the drawn token's alone, None nothing; each row keeps to its own wish."""
    logits = logits_of(13, 3)
    requests = [request("a"), request("b", logprobs=0), request("c", logprobs=3)]
    without, bare, full = draw(requests, logits)
    assert (without.logprob, without.top) == (None, ())
    assert bare.logprob is not None
    assert bare.top == ()
    assert len(full.top) == 3


def test_greedy_logprob_is_the_highest():
    """The greedy token heads its own list of alternatives."""
    (drawn,) = draw([request(temperature=0.0, logprobs=2)], logits_of(14))
    assert drawn.top[0] == (drawn.token, pytest.approx(drawn.logprob, abs=1e-6))
