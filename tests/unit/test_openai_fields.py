"""The table of fields agrees with the installed `openai` package and with the wire types."""

from __future__ import annotations

import pytest
from openai.types import completion_create_params as legacy
from openai.types.chat import completion_create_params as chat

from giusto.core.errors import InvalidRequest
from giusto.server.openai import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    DETOKENIZE_FIELDS,
    TOKENIZE_FIELDS,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    Use,
    parse,
)

MESSAGES = b'"messages": [{"role": "user", "content": "hi"}]'
VLLM_EXTRAS = {
    "top_k",
    "min_p",
    "repetition_penalty",
    "ignore_eos",
    "min_tokens",
    "stop_token_ids",
    "priority",
    "vllm_xargs",
    "cache_salt",
    "allowed_token_ids",
    "prompt_logprobs",
    "skip_special_tokens",
    "structured_outputs",
}


def parameters(module: object) -> set[str]:
    names: set[str] = set()
    for kind in ("Base", "NonStreaming", "Streaming"):
        names |= getattr(module, f"CompletionCreateParams{kind}").__annotations__.keys()
    return names


def test_every_chat_parameter_of_the_openai_package_is_in_the_table():
    assert parameters(chat) - CHAT_FIELDS.keys() == set()


def test_every_completion_parameter_of_the_openai_package_is_in_the_table():
    assert parameters(legacy) - COMPLETION_FIELDS.keys() == set()


def test_vllms_extras_are_in_both_tables():
    assert CHAT_FIELDS.keys() >= VLLM_EXTRAS
    assert COMPLETION_FIELDS.keys() >= VLLM_EXTRAS


@pytest.mark.parametrize(
    ("model", "rules"),
    [
        (ChatRequest, CHAT_FIELDS),
        (CompletionRequest, COMPLETION_FIELDS),
        (TokenizeRequest, TOKENIZE_FIELDS),
        (DetokenizeRequest, DETOKENIZE_FIELDS),
    ],
)
def test_honoured_fields_are_exactly_those_of_the_wire_type(model, rules):
    honoured = {name for name, rule in rules.items() if rule.use is Use.HONOURED}
    assert honoured == set(model.model_fields)


@pytest.mark.parametrize(
    "name", sorted(n for n, rule in CHAT_FIELDS.items() if rule.use is Use.REFUSED)
)
def test_a_refused_field_is_named_when_it_is_set(name):
    with pytest.raises(InvalidRequest) as caught:
        parse(ChatRequest, CHAT_FIELDS, b'{%s, "%s": {"x": 1}}' % (MESSAGES, name.encode()))
    assert name == caught.value.param
    assert f"'{name}' is not supported" == str(caught.value)


@pytest.mark.parametrize("empty", ["null", "[]", "{}", '""', "false"])
@pytest.mark.parametrize("name", ["tools", "audio", "response_format", "functions", "documents"])
def test_a_refused_field_may_be_empty(name, empty):
    body = b'{%s, "%s": %s}' % (MESSAGES, name.encode(), empty.encode())
    assert isinstance(parse(ChatRequest, CHAT_FIELDS, body), ChatRequest)


@pytest.mark.parametrize(
    "field",
    [
        '"tool_choice": "none"',
        '"function_call": "none"',
        '"response_format": {"type": "text"}',
        '"modalities": ["text"]',
        '"best_of": 1',
        '"length_penalty": 1.0',
        '"skip_special_tokens": true',
        '"user": "u"',
        '"metadata": {"a": "b"}',
        '"store": true',
        '"parallel_tool_calls": true',
        '"reasoning_effort": "low"',
    ],
)
def test_trivial_and_harmless_values_are_accepted(field):
    body = b"{%s, %s}" % (MESSAGES, field.encode())
    assert isinstance(parse(ChatRequest, CHAT_FIELDS, body), ChatRequest)


@pytest.mark.parametrize(
    ("field", "nearest"),
    [
        ('"temprature": 1', "temperature"),
        ('"slos": {}', "slo"),
        ('"max_token": 5', "max_tokens"),
        ('"slo": {"ttft": 5}', "ttft_ms"),
        ('"slo": {"deadline": 5}', "deadline_ms"),
        ('"program": {"parent": ["a"]}', "parents"),
        ('"program": {"deadlin_ms": 5}', "deadline_ms"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_known_one(field, nearest):
    with pytest.raises(InvalidRequest) as caught:
        parse(ChatRequest, CHAT_FIELDS, b"{%s, %s}" % (MESSAGES, field.encode()))
    assert f"did you mean '{nearest}'?" in str(caught.value)
    assert caught.value.code == "unknown_field"


def test_null_is_accepted_for_every_optional_field():
    names = [n for n, f in ChatRequest.model_fields.items() if not f.is_required()]
    nulls = ", ".join(f'"{name}": null' for name in names)
    body = b"{%s, %s}" % (MESSAGES, nulls.encode())
    assert isinstance(parse(ChatRequest, CHAT_FIELDS, body), ChatRequest)
