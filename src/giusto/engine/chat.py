"""Chat templates: messages to the text a model was trained on; called by `tokenizer`.

Templates come with the model, so they run in jinja2's sandbox. The helpers are those that Hugging
Face documents for template writers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from giusto.core.errors import InvalidRequest, ModelError
from giusto.engine.config import read_json


class _Generation(Extension):
    """Accepts `{% generation %}`, which marks answers for training, and renders what is inside."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class ChatTemplate:
    """One compiled template and the special tokens that it may name."""

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self._tokens = dict(tokens)
        self._template: jinja2.Template | None = None
        self._defect = ""
        try:
            self._template = environment.from_string(source)
        except Exception as error:
            # Not only template errors: what jinja2 generates may not compile. Completions still
            # work without a template, so this is told to those who ask for a chat.
            self._defect = str(error)

    @classmethod
    def read(cls, folder: Path) -> ChatTemplate | None:
        """Read a folder's template (`chat_template.jinja` first), or None where there is none."""
        path = folder / "tokenizer_config.json"
        settings = read_json(path) if path.exists() else {}
        source: str | None
        try:
            source = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        except FileNotFoundError:
            source = _default_template(settings.get("chat_template"), path)
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder}/chat_template.jinja cannot be read ({error}).") from error
        if source is None:
            return None
        return cls(source, _special_tokens(settings))

    def render(self, messages: list[dict[str, Any]], variables: Mapping[str, Any]) -> str:
        """Render messages; `variables` override the special tokens.

        Raises:
            InvalidRequest: the template raised, or cannot do with these messages.
        """
        if self._template is None:
            raise InvalidRequest(f"the model's chat template is broken: {self._defect}", "messages")
        try:
            return self._template.render(self._tokens | {"messages": messages} | dict(variables))
        except Exception as error:
            # A template is a program of its own: it can raise whatever Python can.
            raise InvalidRequest(
                f"the model's chat template cannot render these messages: {error}", "messages"
            ) from error


def _default_template(given: Any, path: Path) -> str | None:
    """Pick the template to use: the only one, or the one named `default` of several."""
    if given is None or isinstance(given, str):
        return given
    try:
        named = {entry["name"]: entry["template"] for entry in given}
        return str(named["default"])
    except (TypeError, KeyError) as error:
        raise ModelError(f"{path} has no chat template named 'default' among several.") from error


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return `bos_token`, `eos_token` … as text; each may be written as an object."""
    found = {}
    for key, value in settings.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            found[key] = content
    return found


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    """Write JSON as it is; jinja2's own filter would escape it for HTML."""
    return json.dumps(
        value, ensure_ascii=options.pop("ensure_ascii", False), indent=indent, **options
    )
