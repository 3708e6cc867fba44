"""The OpenAPI document: request bodies from the wire types, answers and errors as they are sent."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from giusto import __version__
from giusto.server.openai import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)

_BODIES = (ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest)
_REF = "#/components/schemas/"

_NULLABLE = {"type": ["string", "null"]}
_INTEGER = {"type": "integer"}
_NUMBER_OR_NULL = {"type": ["number", "null"]}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": _NULLABLE,
                "code": _NULLABLE,
            },
        }
    },
}
_SLO = {
    "type": "object",
    "description": "What was promised and what came of it; times in ms from arrival.",
    "required": ["class", "kind", "targets", "raised", "met"],
    "properties": {
        "class": {"type": "string"},
        "kind": {"enum": ["streaming", "deadline", "program", "best_effort"]},
        "targets": {"type": "object", "additionalProperties": {"type": "number"}},
        "weight": {"type": "number"},
        "raised": {"type": "boolean", "description": "The key's bounds changed what was asked."},
        "ttft_ms": _NUMBER_OR_NULL,
        "tpot_ms": _NUMBER_OR_NULL,
        "e2e_ms": _NUMBER_OR_NULL,
        "met": {"type": "boolean"},
        "gain": _NUMBER_OR_NULL,
        "gain_possible": {"type": "number"},
        "accepted_draft_tokens": _INTEGER,
        "demoted": _NULLABLE,
    },
}
_COMPLETION = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices", "usage", "slo"],
    "properties": {
        "id": {"type": "string"},
        "object": {"enum": ["chat.completion", "text_completion"]},
        "created": _INTEGER,
        "model": {"type": "string"},
        "choices": {"type": "array", "items": {"type": "object"}},
        "usage": {"type": "object"},
        "slo": {"$ref": f"{_REF}SloVerdict"},
        "service_tier": {"type": "string"},
    },
}
_STATUS = {
    "type": "object",
    "required": ["status"],
    "properties": {"status": {"type": "string"}},
}
#: One server-sent event: `data` is a chunk as JSON, an error, or the end mark.
_EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string"}},
}
_SCHEMAS = {"Error": _ERROR, "SloVerdict": _SLO, "Completion": _COMPLETION, "Status": _STATUS}

_PROBLEMS = {
    400: "The request cannot be served as stated; `param` names the field.",
    401: "No valid API key.",
    403: "The key may not do this.",
    404: "No such model or route.",
    405: "The route has other methods.",
    413: "The body is too large.",
    415: "The body is not JSON, or compressed.",
    429: "Refused for now: `code` says why, `Retry-After` when to come back.",
    431: "The headers are too large.",
    500: "The server failed on this request.",
    503: "Draining, or the engine has stopped.",
}


def body(model: type[BaseModel]) -> dict[str, Any]:
    """The `requestBody` of a route that reads `model`."""
    schema = {"$ref": _REF + model.__name__}
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def path_parameter(name: str) -> dict[str, Any]:
    """The `parameters` of a route with one name in its path."""
    schema = {"type": "string", "minLength": 1}
    return {"parameters": [{"name": name, "in": "path", "required": True, "schema": schema}]}


def responses(ok: str | None, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: its answer's schema, if it is JSON, and the errors it may be."""
    schema = {"$ref": _REF + ok} if ok in _SCHEMAS else {"type": "object"}
    documented: dict[int | str, dict[str, Any]] = {
        200: {"description": "OK", "content": {"application/json": {"schema": schema}}}
    }
    if ok == "Completion":
        documented[200]["content"]["text/event-stream"] = {"schema": _EVENT}
    if ok is None:
        documented[200]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    error = {"application/json": {"schema": {"$ref": f"{_REF}Error"}}}
    for status in statuses:
        documented[status] = {"description": _PROBLEMS[status], "content": error}
    return documented


def describe(app: FastAPI) -> dict[str, Any]:
    """Make the document of `app`, once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title="Giusto",
            version=__version__,
            description="OpenAI-compatible, with a promise per request: `slo` and `program`.",
            routes=app.routes,
        )
        _, wire = models_json_schema(
            [(model, "validation") for model in _BODIES], ref_template=_REF + "{model}"
        )
        document.setdefault("components", {})["schemas"] = wire["$defs"] | _SCHEMAS
        app.openapi_schema = document
    return app.openapi_schema
