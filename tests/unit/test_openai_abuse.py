"""Whatever a body holds, the complaint is one InvalidRequest that names the field."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from giusto.core.errors import InvalidRequest
from giusto.server.openai import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    ChatRequest,
    CompletionRequest,
    parse,
)

MESSAGES = '"messages": [{"role": "user", "content": "hi"}]'
FINITE_FIELDS = [
    "temperature",
    "top_p",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
]


def refusal(body: str | bytes) -> InvalidRequest:
    raw = body if isinstance(body, bytes) else body.encode()
    with pytest.raises(InvalidRequest) as caught:
        parse(ChatRequest, CHAT_FIELDS, raw)
    return caught.value


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
@pytest.mark.parametrize("name", FINITE_FIELDS)
def test_sampling_values_must_be_finite(name, value):
    assert name == refusal(f'{{{MESSAGES}, "{name}": {value}}}').param


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-1", "0", "1e-300", "1e300", '"5"', "true", "[]", "604800001"]
)
@pytest.mark.parametrize("name", ["ttft_ms", "tpot_ms", "deadline_ms"])
def test_targets_must_be_sane(name, value):
    assert f"slo.{name}" == refusal(f'{{{MESSAGES}, "slo": {{"{name}": {value}}}}}').param


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-0.5", "1e9"])
def test_weight_must_be_sane(value):
    assert refusal(f'{{{MESSAGES}, "slo": {{"weight": {value}}}}}').param == "slo.weight"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", "17"),
        ("n", "1000000000"),
        ("n", "0"),
        ("n", "-1"),
        ("n", "true"),
        ("n", "1.5"),
        ("top_logprobs", "21"),
        ("top_logprobs", "-1"),
        ("max_tokens", "0"),
        ("max_tokens", "-5"),
        ("max_tokens", "99999999999999999999"),
        ("max_completion_tokens", "0"),
        ("min_tokens", "-1"),
        ("priority", "9223372036854775808"),
        ("priority", "-99999999999"),
        ("seed", "9223372036854775808"),
        ("temperature", "-0.1"),
        ("temperature", "2.1"),
        ("top_p", "0"),
        ("top_p", "1.1"),
        ("top_k", "-2"),
        ("stop", json.dumps(["x"] * 17)),
        ("stop", json.dumps("x" * 257)),
        ("stop", "[5]"),
        ("stop_token_ids", json.dumps([1] * 129)),
        ("stop_token_ids", "[-1]"),
        ("logit_bias", json.dumps({str(i): 1 for i in range(1025)})),
        ("logit_bias", '{"5": 101}'),
        ("logit_bias", '{"5": NaN}'),
        ("service_tier", '"gold"'),
        ("messages", json.dumps([{"role": "user"}] * 4097)),
        ("messages", "[]"),
        ("messages", '"hi"'),
        ("cache_salt", json.dumps("x" * 257)),
        ("vllm_xargs", json.dumps({str(i): 1 for i in range(65)})),
    ],
)
def test_fields_that_multiply_work_are_bounded(name, value):
    # A later duplicate of a name wins, as in most JSON readers.
    param = refusal(f'{{{MESSAGES}, "{name}": {value}}}').param
    assert name == param.split("[")[0].split(".")[0]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b"\xff\xfe",
        b'{"messages": ' + b"[" * 100_000,
        b'{"user": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
        b'{"user": 1' + b"0" * 5000 + b"}",
    ],
)
def test_what_is_not_sound_json_is_refused(body):
    assert refusal(body).code == "invalid_json"


def test_duplicate_keys_are_accepted():
    body = f'{{{MESSAGES}, "n": 1, "n": 2}}'.encode()
    assert parse(ChatRequest, CHAT_FIELDS, body).n == 2


def test_a_complaint_never_repeats_the_input():
    secret = "sesame-open-yourself"
    error = refusal(f'{{{MESSAGES}, "temperature": "{secret}"}}')
    assert secret not in str(error)


@pytest.mark.parametrize(
    "prompt", ["null", "5", "[true]", "[-1]", '[1, "a"]', "{}", json.dumps(["a"] * 65)]
)
def test_a_prompt_is_text_tokens_or_a_bounded_list_of_either(prompt):
    with pytest.raises(InvalidRequest) as caught:
        parse(CompletionRequest, COMPLETION_FIELDS, f'{{"prompt": {prompt}}}'.encode())
    assert caught.value.param == "prompt"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.dictionaries(st.sampled_from(sorted(CHAT_FIELDS)) | st.text(), VALUES, max_size=6))
def test_any_object_is_parsed_or_refused(body):
    body.setdefault("messages", [{"role": "user", "content": "hi"}])
    try:
        parse(ChatRequest, CHAT_FIELDS, json.dumps(body).encode("utf-8", "surrogatepass"))
    except InvalidRequest as error:
        assert str(error)
