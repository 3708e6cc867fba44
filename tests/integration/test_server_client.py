"""The server as the `openai` client sees it, over real HTTP."""

from __future__ import annotations

import openai
import pytest

from fakes import FakeBackend
from giusto.config import ApiKey, ServerSettings
from giusto.core.request import Reason
from giusto.server.app import create_app
from live import live

HI = [{"role": "user", "content": "hi"}]
SETTINGS = ServerSettings(keys=(ApiKey.of("acme", "sesame"),))


@pytest.fixture(scope="module")
def server():
    backend = FakeBackend()
    with live(create_app(backend, SETTINGS), SETTINGS) as running:
        running.backend = backend
        yield running


@pytest.fixture
def backend(server):
    script = type(server.backend.script)()
    server.backend.script = script
    server.backend.submitted.clear()
    server.backend.paused.clear()
    server.backend.was_aborted.clear()
    return server.backend


@pytest.fixture
def client(server, backend):
    with openai.OpenAI(api_key="sesame", base_url=f"{server.url}/v1", max_retries=0) as made:
        yield made
    server.wait_for(backend.settle())


def test_chat(client, backend):
    answer = client.chat.completions.create(model="fake", messages=HI)
    assert answer.choices[0].message.content == "Hello, world!"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage.prompt_tokens == backend.submitted[0].num_prompt_tokens
    assert answer.usage.completion_tokens == 14
    assert answer.usage.prompt_tokens_details.cached_tokens == 4


def test_chat_stream(client):
    chunks = list(client.chat.completions.create(model="fake", messages=HI, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Hello, world!"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks[-2:]] == [None, "stop"]
    assert all(c.usage is None for c in chunks)
    assert chunks[-1].slo["met"] is True


def test_stream_with_usage(client):
    chunks = list(
        client.chat.completions.create(
            model="fake", messages=HI, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 14
    assert chunks[-1].slo["kind"] == "best_effort"
    assert all(c.usage is None for c in chunks[:-1])


def test_continuous_usage_counts_the_tokens_of_each_chunk(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(
        client.chat.completions.create(
            model="fake", messages=HI, stream=True, stream_options=options
        )
    )
    assert [c.usage.completion_tokens for c in chunks] == [*range(1, 15), 14]


def test_a_character_of_several_tokens_arrives_whole(client, backend):
    backend.script.answer = "é€😀"
    chunks = list(client.chat.completions.create(model="fake", messages=HI, stream=True))
    assert [c.choices[0].delta.content for c in chunks] == ["", "é", "€", "😀", None]


def test_completions(client):
    answer = client.completions.create(model="fake", prompt="Once", max_tokens=5)
    assert answer.choices[0].text == "Hello"
    assert answer.choices[0].finish_reason == "length"


def test_completions_stream(client):
    stream = client.completions.create(model="fake", prompt="Once", stream=True)
    assert "".join(c.choices[0].text for c in stream) == "Hello, world!"


@pytest.mark.parametrize("prompt", ["Hi", [72, 105]])
def test_a_prompt_is_text_or_tokens(client, backend, prompt):
    client.completions.create(model="fake", prompt=prompt)
    assert backend.submitted[0].prompt_ids[-2:] == (72, 105)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompts", [["a", "b", "c"], [[1], [2], [3]]])
def test_a_list_of_prompts_with_n_gives_a_choice_each(client, backend, prompts, stream):
    backend.script.answer = lambda ask, sample: f"{ask.prompt_ids[-1]}/{sample}"
    answer = client.completions.create(model="fake", prompt=prompts, n=2, stream=stream)
    texts: dict[int, str] = {}
    for chunk in answer if stream else [answer]:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    last = [backend.encode(p)[-1] if isinstance(p, str) else p[-1] for p in prompts]
    assert [texts[i] for i in range(6)] == [f"{t}/{s}" for t in last for s in (0, 1)]


def test_n_gives_samples(client, backend):
    backend.script.answer = lambda ask, sample: "abc"[: sample + 1]
    answer = client.chat.completions.create(model="fake", messages=HI, n=3)
    assert [c.message.content for c in answer.choices] == ["a", "ab", "abc"]
    assert backend.submitted[0].n == 3


def test_chat_logprobs(client):
    answer = client.chat.completions.create(
        model="fake", messages=HI, logprobs=True, top_logprobs=2, max_tokens=2
    )
    first, second = answer.choices[0].logprobs.content
    assert (first.token, first.bytes, first.logprob) == ("H", [72], -0.5)
    assert [t.logprob for t in first.top_logprobs] == [-0.5, -1.5]
    assert second.token == "e"


def test_chat_logprobs_in_a_stream(client):
    stream = client.chat.completions.create(
        model="fake", messages=HI, logprobs=True, max_tokens=3, stream=True
    )
    assert [t.token for c in stream for t in c.choices[0].logprobs.content] == ["H", "e", "l"]


@pytest.mark.parametrize("stream", [False, True])
def test_legacy_logprobs(client, stream):
    answer = client.completions.create(
        model="fake", prompt="x", logprobs=1, max_tokens=3, stream=stream
    )
    parts = [c.choices[0].logprobs for c in (answer if stream else [answer])]
    assert [t for p in parts for t in p.tokens] == ["H", "e", "l"]
    assert [o for p in parts for o in p.text_offset] == [0, 1, 2]
    assert [p for part in parts for p in part.token_logprobs] == [-0.5] * 3
    assert parts[0].top_logprobs[0] == {"H": -0.5}


def test_stop_and_seed_and_sampling_reach_the_engine(client, backend):
    answer = client.chat.completions.create(
        model="fake",
        messages=HI,
        stop=["wor", ""],
        seed=-7,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        logit_bias={"5": -100},
        extra_body={
            "top_k": 3,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "min_tokens": 1,
            "stop_token_ids": [9],
            "ignore_eos": True,
        },
    )
    assert answer.choices[0].message.content == "Hello, "
    sampling = backend.submitted[0].sampling
    assert (sampling.stop, sampling.seed) == (("wor",), 2**64 - 7)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 3)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.1, 0.2)
    assert sampling.logit_bias == ((5, -100.0),)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.1, 1.1)
    assert (sampling.min_tokens, sampling.stop_token_ids) == (1, (9,))
    assert sampling.ignore_eos


def test_the_slo_and_program_ride_in_extra_body(client, backend):
    answer = client.chat.completions.create(
        model="fake",
        messages=HI,
        extra_body={
            "slo": {"ttft_ms": 500, "tpot_ms": 50},
            "program": {"id": "p", "deadline_ms": 60000},
        },
    )
    assert answer.slo["targets"] == {"ttft_ms": 500.0, "tpot_ms": 50.0}
    assert backend.submitted[0].program.id == "acme/p"
    assert backend.submitted[0].tenant == "acme"


def test_service_tier_is_echoed(client):
    answer = client.chat.completions.create(model="fake", messages=HI, service_tier="auto")
    assert answer.service_tier == "default"


def test_models(client):
    assert [m.id for m in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").owned_by == "giusto"


def test_a_wrong_key(server):
    with (
        openai.OpenAI(api_key="wrong", base_url=f"{server.url}/v1", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.chat.completions.create(model="fake", messages=HI)
    assert caught.value.code == "invalid_api_key"


def test_a_wrong_model(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=HI)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_a_bad_request(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="fake", messages=HI, extra_body={"slo": {"ttft": 5}})
    assert caught.value.param == "slo.ttft"


def test_tools_are_refused_by_name(client):
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="fake", messages=HI, tools=[tool])
    assert caught.value.param == "tools"


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_is_a_rate_limit_error(client, backend, stream):
    backend.script.refuse, backend.script.retry_after = Reason.QUEUE_FULL, 2.5
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="fake", messages=HI, stream=stream)
    assert caught.value.code == "queue_full"
    assert caught.value.response.headers["retry-after"] == "3"


def test_a_failure_in_a_stream_ends_it_with_an_error(client, backend):
    backend.script.fail_after = 3
    stream = client.chat.completions.create(model="fake", messages=HI, stream=True)
    with pytest.raises(openai.APIError, match="the script says so"):
        list(stream)


def test_a_failure_of_a_whole_answer_is_a_server_error(client, backend):
    backend.script.fail_after = 3
    with pytest.raises(openai.InternalServerError, match="the script says so"):
        client.chat.completions.create(model="fake", messages=HI)


def test_leaving_a_stream_aborts_it(client, backend):
    backend.script.pause_after = 3
    stream = client.chat.completions.create(model="fake", messages=HI, stream=True)
    next(iter(stream))
    assert backend.paused.wait(5)
    stream.close()
    assert backend.was_aborted.wait(5)


@pytest.mark.parametrize("pause_after", [0, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_gives_up_aborts_its_request(server, backend, stream, pause_after):
    backend.script.pause_after = pause_after
    with (
        openai.OpenAI(
            api_key="sesame", base_url=f"{server.url}/v1", max_retries=0, timeout=0.2
        ) as client,
        pytest.raises(openai.APITimeoutError),
    ):
        list(client.chat.completions.create(model="fake", messages=HI, stream=stream))
    assert backend.was_aborted.wait(5)
    assert backend.open == set()


def test_one_of_several_prompts_refused_refuses_all(client, backend):
    backend.script.answer = "x"
    backend.script.refuse = Reason.QUEUE_TOKENS_FULL
    with pytest.raises(openai.RateLimitError):
        client.completions.create(model="fake", prompt=["a", "b"])
