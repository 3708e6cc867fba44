"""Messages are read leniently: history goes to the template, whatever else it carries."""

from __future__ import annotations

import json

import pytest

from giusto.core.errors import InvalidRequest
from giusto.server.messages import to_template
from giusto.server.openai import CHAT_FIELDS, ChatRequest, parse


def template(*messages):
    body = json.dumps({"messages": messages}).encode()
    return to_template(parse(ChatRequest, CHAT_FIELDS, body).messages)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("hi", "hi"),
        ("", ""),
        (None, ""),
        ([], ""),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
        ([{"type": "text", "text": None}], ""),
        ([{"text": "a", "cache_control": {"type": "ephemeral"}}], "a"),
        ([{"type": "refusal", "refusal": "no"}], "no"),
    ],
)
def test_content_may_be_text_parts_null_or_empty(content, text):
    assert [{"role": "user", "content": text}] == template({"role": "user", "content": content})


def test_unknown_names_inside_messages_are_ignored():
    message = {"role": "user", "content": "hi", "colour": "blue", "audio": None, "refusal": None}
    assert template(message) == [{"role": "user", "content": "hi"}]


def test_tool_history_reaches_the_template_with_arguments_as_objects():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    rendered = template(
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    )
    assert rendered[0]["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    assert rendered[1] == {"role": "tool", "content": "42", "tool_call_id": "c1"}


@pytest.mark.parametrize("arguments", ["{not json", "[" * 100_000, "1" + "0" * 10_000])
def test_broken_tool_arguments_stay_text(arguments):
    call = {"function": {"name": "f", "arguments": arguments}}
    rendered = template({"role": "assistant", "tool_calls": [call]})
    assert arguments == rendered[0]["tool_calls"][0]["function"]["arguments"]


def test_developer_and_function_become_roles_that_templates_know():
    rendered = template({"role": "developer", "content": "a"}, {"role": "function", "content": ""})
    assert [message["role"] for message in rendered] == ["system", "tool"]


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "video"])
def test_other_media_are_refused_by_place(kind):
    parts = [{"type": "text", "text": "see"}, {"type": kind, kind: {"url": "http://x"}}]
    with pytest.raises(InvalidRequest, match=kind) as caught:
        template({"role": "user", "content": "a"}, {"role": "user", "content": parts})
    assert caught.value.param == "messages[1].content[1].type"
