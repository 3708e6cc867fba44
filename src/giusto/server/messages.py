"""Chat messages: from the wire to what a chat template renders.

Lenient where history is concerned: unknown names are ignored, null and empty content is accepted,
tool calls and tool answers go to the template as they are. Only text parts are rendered; an image
or a file is refused by its place and type, and no URL is ever fetched.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from giusto.core.errors import InvalidRequest

#: Roles that templates do not know, and the one they take for it.
ROLES = {"developer": "system", "function": "tool"}


class Wire(BaseModel):
    """Base of the wire types: no coercion between types, no NaN and no infinity."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True)


class Part(Wire):
    """One piece of content."""

    model_config = ConfigDict(extra="ignore")

    type: Annotated[str, Field(max_length=64)] = "text"
    text: str | None = None
    refusal: str | None = None


class Message(Wire):
    """One message of the conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[Part], Field(max_length=1024, fail_fast=True)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    tool_calls: Annotated[list[dict[str, Any]], Field(max_length=256, fail_fast=True)] | None = None


def to_template(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Make the dictionaries that a chat template takes."""
    return [_message(message, i) for i, message in enumerate(messages)]


def _message(message: Message, index: int) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "role": ROLES.get(message.role, message.role),
        "content": _text(message.content, f"messages[{index}].content"),
    }
    if message.name:
        plain["name"] = message.name
    if message.tool_call_id:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        plain["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    return plain


def _text(content: str | list[Part] | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for j, part in enumerate(content):
        if part.type not in ("text", "refusal"):
            raise InvalidRequest(
                f"'{where}[{j}]': a part of type '{part.type}' is not supported, only text is",
                f"{where}[{j}].type",
                "unsupported_field",
            )
        texts.append(part.text or part.refusal or "")
    return "".join(texts)


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    """Templates want a tool call's arguments as an object; the wire has them as JSON text."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}}
