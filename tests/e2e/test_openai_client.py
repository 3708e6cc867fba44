"""The `openai` client against a live server with a real engine."""

from __future__ import annotations

import asyncio

import openai
import pytest

from served import served
from tiny_models import make_tiny

KEY = "open sesame"
NAME = "tiny-model"
HI = [{"role": "user", "content": "the quick brown fox"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = make_tiny(tmp_path_factory.mktemp("e2e") / NAME)
    with served("--model", str(folder), "--dtype", "float32", GIUSTO_API_KEY=KEY) as running:
        yield running


@pytest.fixture
def client(server):
    base_url = f"{server.url}/v1"
    with openai.OpenAI(api_key=KEY, base_url=base_url, max_retries=0, timeout=60) as made:
        yield made


def ask(client: openai.OpenAI, **options):
    defaults = {"model": NAME, "messages": HI, "max_tokens": 16, "seed": 7}
    extra = {"ignore_eos": True} | options.pop("extra_body", {})
    return client.chat.completions.create(**defaults | options, extra_body=extra)


def text(answer) -> str:
    return answer.choices[0].message.content


def test_the_models_are_listed(client):
    """The client finds the one model by the name of its folder."""
    assert [model.id for model in client.models.list()] == [NAME]


def test_a_seed_repeats_streamed_or_not(client):
    """A seed gives the same answer again, whole or streamed; another seed another."""
    first = ask(client)
    assert first.usage.completion_tokens == 16
    assert first.choices[0].finish_reason == "length"
    assert text(ask(client)) == text(first)
    chunks = list(ask(client, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == text(first)
    assert text(ask(client, seed=8)) != text(first)


def test_many_at_once_answer_as_one_alone(server, client):
    """Twenty concurrent requests with a seed each get what they would get alone."""

    async def together() -> list[str]:
        base_url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(api_key=KEY, base_url=base_url, max_retries=0) as many:
            answers = await asyncio.gather(*(ask(many, seed=seed) for seed in range(20)))
            return [text(answer) for answer in answers]

    assert asyncio.run(together()) == [text(ask(client, seed=seed)) for seed in range(20)]


def test_two_samples(client):
    """n=2 gives two answers, the first of which is that of n=1."""
    answer = ask(client, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].message.content == text(ask(client))
    assert answer.choices[1].message.content != text(answer)
    assert answer.usage.completion_tokens == 32


def test_logprobs(client):
    """Each token comes with its log-probability and the likeliest ones, and they spell the text."""
    answer = ask(client, temperature=0, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) == 16
    for record in content:
        assert record.logprob <= 0
        assert len(record.top_logprobs) == 3
        assert record.top_logprobs[0].token == record.token
    spelt = b"".join(bytes(record.bytes) for record in content)
    assert spelt.decode(errors="replace") == text(answer)


@pytest.mark.parametrize("stream", [False, True])
def test_stop(client, stream):
    """The answer ends before the stop string, streamed or not, and says so."""
    whole = text(ask(client))
    stop = whole[3:6]
    answer = ask(client, stop=[stop], stream=stream)
    if stream:
        chunks = list(answer)
        got = "".join(c.choices[0].delta.content or "" for c in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        got, reason = text(answer), answer.choices[0].finish_reason
    assert (got, reason) == (whole.partition(stop)[0], "stop")


def test_the_slo_verdict_is_true(client):
    """An easy promise is met and an impossible one missed, with the times that say why."""
    easy = ask(client, extra_body={"slo": {"ttft_ms": 60_000, "tpot_ms": 60_000}})
    assert easy.slo["met"] is True
    assert 0 < easy.slo["ttft_ms"] < 60_000
    hard = ask(client, extra_body={"slo": {"deadline_ms": 1}}, max_tokens=64)
    assert hard.slo["met"] is False
    assert hard.slo["kind"] == "deadline"


def test_usage_counts_cached_tokens(client):
    """A prompt asked twice is found in the cache the second time."""
    messages = [{"role": "user", "content": "unlike any other, 0123456789 " * 5}]
    usages = [ask(client, messages=messages).usage for _ in range(2)]
    cached = [usage.prompt_tokens_details.cached_tokens for usage in usages]
    assert cached[0] < 32 <= cached[1] < usages[1].prompt_tokens


def test_closing_a_stream_frees_its_memory(server, client):
    """A client that closes its stream ends the request; soon all memory is free."""
    headers = {"Authorization": f"Bearer {KEY}"}
    with ask(client, stream=True, max_tokens=400, n=2) as stream:
        next(iter(stream))
    for _ in range(2000):
        load = server.get("/load", headers=headers).json()
        if load["running"] == 0 and load["free_blocks"] == load["total_blocks"]:
            break
    else:
        pytest.fail(str(load))


def test_a_wrong_key_and_a_wrong_model(client):
    """The client raises the exceptions that it has for these."""
    other = client.with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError):
        ask(other)
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, model="gpt-4")
    assert NAME in str(caught.value)


def test_what_cannot_be_is_a_bad_request(client):
    """A prompt beyond the context and an unknown field raise with the field's name."""
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, messages=[{"role": "user", "content": "x " * 2000}])
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, extra_body={"slo": {"tfft_ms": 5}})
    assert "ttft_ms" in str(caught.value)


def test_completions(client):
    """The older route answers too, with several prompts in their order."""
    prompts = ["the quick", "other words"]
    both = client.completions.create(model=NAME, prompt=prompts, max_tokens=5, temperature=0)
    each = [
        client.completions.create(model=NAME, prompt=prompt, max_tokens=5, temperature=0)
        for prompt in prompts
    ]
    assert [c.text for c in both.choices] == [answer.choices[0].text for answer in each]
