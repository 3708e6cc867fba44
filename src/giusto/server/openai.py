"""Wire types of the OpenAI API, and what becomes of each of its fields.

`CHAT_FIELDS` and `COMPLETION_FIELDS` list every parameter of the `openai` package (a test compares
them with the installed one) and vLLM's extras. Unknown names are refused at the top level and
inside `slo` and `program`, where a misspelt promise must not pass in silence; `parse` turns
whatever is wrong into a 400 that names the field. Bounds on everything that multiplies work are
checked here, before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from giusto.config import nearest
from giusto.core.errors import InvalidRequest
from giusto.server.messages import Message, Wire

MAX_N = 16
MAX_PROMPTS = 64
MAX_TOP_LOGPROBS = 20
#: Seven days: a target beyond it is a mistake.
MAX_TARGET_MS = 7 * 86_400_000
MAX_ID = 256
INT32 = 1 << 31


class Use(StrEnum):
    """What the server does with a field."""

    HONOURED = "honoured"
    HARMLESS = "harmless"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Rule:
    """A field's use; a refused one may still have `trivial` values, beside null, empty, false."""

    use: Use
    trivial: tuple[Any, ...] = ()

    def accepts(self, value: Any) -> bool:
        return self.use is not Use.REFUSED or not value or value in self.trivial


def _rules(
    honoured: str, harmless: str, refused: str, trivial: Mapping[str, tuple[Any, ...]]
) -> dict[str, Rule]:
    uses = ((Use.HONOURED, honoured), (Use.HARMLESS, harmless), (Use.REFUSED, refused))
    rules = {name: Rule(use) for use, names in uses for name in names.split()}
    return rules | {name: Rule(Use.REFUSED, values) for name, values in trivial.items()}


_COMMON = _rules(
    honoured="""
        model frequency_penalty logit_bias max_tokens n presence_penalty seed stop stream
        stream_options temperature top_p service_tier
        top_k min_p repetition_penalty ignore_eos min_tokens stop_token_ids priority vllm_xargs
        cache_salt add_special_tokens return_token_ids session_id slo program""",
    harmless="user request_id",
    refused="""
        echo use_beam_search include_stop_str_in_output truncate_prompt_tokens truncation_side
        prompt_logprobs logprob_token_ids allowed_token_ids bad_words structured_outputs
        guided_json guided_regex guided_choice guided_grammar logits_processors
        return_tokens_as_token_ids kv_transfer_params ec_transfer_params watermarking
        thinking_token_budget repetition_detection prompt_embeds data_parallel_rank""",
    trivial={
        "best_of": (1,),
        "length_penalty": (1.0,),
        "response_format": ({"type": "text"},),
        "skip_special_tokens": (True,),
        "spaces_between_special_tokens": (True,),
    },
)

CHAT_FIELDS = _COMMON | _rules(
    honoured="messages logprobs top_logprobs max_completion_tokens add_generation_prompt",
    harmless="""
        metadata store safety_identifier prompt_cache_key prompt_cache_options
        prompt_cache_retention parallel_tool_calls prediction reasoning_effort verbosity
        include_reasoning""",
    refused="""
        audio functions moderation tools web_search_options continue_final_message documents
        chat_template chat_template_kwargs media_io_kwargs mm_processor_kwargs
        return_prompt_text""",
    trivial={"function_call": ("none",), "tool_choice": ("none",), "modalities": (["text"],)},
)

COMPLETION_FIELDS = _COMMON | _rules(
    honoured="prompt logprobs", harmless="", refused="suffix", trivial={}
)

TOKENIZE_FIELDS = _rules(
    honoured="model prompt messages add_special_tokens add_generation_prompt return_token_strs",
    harmless="",
    refused="""
        continue_final_message chat_template chat_template_kwargs tools media_io_kwargs
        mm_processor_kwargs""",
    trivial={},
)

DETOKENIZE_FIELDS = _rules(honoured="model tokens", harmless="", refused="", trivial={})


Ms = Annotated[float, Field(ge=1e-3, le=MAX_TARGET_MS)]
Name = Annotated[str, Field(max_length=MAX_ID)]
TokenId = Annotated[int, Field(ge=0, lt=INT32)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
StopString = Annotated[str, Field(max_length=256)]
StopStrings = Annotated[list[StopString], Field(max_length=16, fail_fast=True)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenIds = Annotated[list[TokenId], Field(max_length=1 << 20, fail_fast=True)]
Prompt = Annotated[
    str
    | TokenIds
    | Annotated[list[str], Field(max_length=MAX_PROMPTS, fail_fast=True)]
    | Annotated[list[TokenIds], Field(max_length=MAX_PROMPTS, fail_fast=True)],
    Field(union_mode="left_to_right"),
]
Messages = Annotated[list[Message], Field(min_length=1, max_length=4096, fail_fast=True)]


class Strict(Wire):
    """An object in which every name must be known."""

    model_config = ConfigDict(extra="forbid")


class Slo(Strict):
    """The promise that a request asks for; times in milliseconds from arrival."""

    service_class: Name | None = Field(None, alias="class")
    ttft_ms: Ms | None = None
    tpot_ms: Ms | None = None
    deadline_ms: Ms | None = None
    weight: Annotated[float, Field(ge=0, le=1000)] | None = None


class ProgramPart(Strict):
    """A call's place in a program of several calls."""

    id: Name | None = None
    deadline_ms: Ms | None = None
    call: Name | None = None
    parents: Annotated[list[Name], Field(max_length=64, fail_fast=True)] | None = None
    stage: Annotated[int, Field(ge=0, le=10_000)] | None = None
    final: bool | None = None
    app: Name | None = None


class StreamOptions(Strict):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


def _close(schema: dict[str, Any]) -> None:
    # Names that no rule knows are refused by `parse`, after validation.
    schema["additionalProperties"] = False


class Open(Wire):
    """A request body; names that are not fields are judged by the table of rules."""

    model_config = ConfigDict(extra="allow", json_schema_extra=_close)

    model: Annotated[str, Field(max_length=1024)] | None = None


class Sampled(Open):
    """What chat and legacy completions have in common."""

    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=1024)] | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=INT32)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=16, fail_fast=True)] | None = (
        None
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=INT32)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=INT32)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=128, fail_fast=True)] | None = None
    priority: Annotated[int, Field(ge=-INT32, lt=INT32)] | None = None
    vllm_xargs: Annotated[dict[str, Any], Field(max_length=64)] | None = None
    cache_salt: Name | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    session_id: Name | None = None
    slo: Slo | None = None
    program: ProgramPart | None = None


class ChatRequest(Sampled):
    """Body of `POST /v1/chat/completions`."""

    messages: Messages
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=INT32)] | None = None
    add_generation_prompt: bool | None = None


class CompletionRequest(Sampled):
    """Body of `POST /v1/completions`."""

    prompt: Prompt
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


class TokenizeRequest(Open):
    """Body of `POST /tokenize`: a prompt or messages, as in vLLM."""

    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Open):
    """Body of `POST /detokenize`."""

    tokens: TokenIds


W = TypeVar("W", bound=BaseModel)


def parse(model: type[W], rules: Mapping[str, Rule], body: bytes) -> W:
    """Read a request body; InvalidRequest names the first field that is wrong, and why."""
    try:
        wire = model.model_validate_json(body)
    except ValidationError as error:
        raise _invalid(error, model) from None
    for name, value in (wire.model_extra or {}).items():
        rule = rules.get(name)
        if rule is None:
            raise InvalidRequest(
                f"unknown field '{name[:64]}'{nearest(name[:64], rules)}",
                name[:64],
                "unknown_field",
            )
        if not rule.accepts(value):
            raise InvalidRequest(f"'{name}' is not supported", name, "unsupported_field")
    return wire


def validate(model: type[W], data: Mapping[str, Any], prefix: str) -> W:
    """Check an object that came by another road; `prefix` leads the names in complaints."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _invalid(error, model, prefix) from None


def _invalid(error: ValidationError, model: type[BaseModel], prefix: str = "") -> InvalidRequest:
    # Inputs are left out: prompts and secrets are never repeated.
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    kind, loc = first["type"], first["loc"]
    if kind == "json_invalid":
        return InvalidRequest(f"the body is not valid JSON: {first['msg']}", None, "invalid_json")
    if not loc:
        return InvalidRequest("the body must be a JSON object", None, "invalid_json")
    param = prefix + _param(loc)
    if kind == "missing":
        return InvalidRequest(f"'{param}' is required", param, "missing_field")
    if kind == "extra_forbidden":
        known: dict[str, type[BaseModel]] = {
            "slo": Slo,
            "program": ProgramPart,
            "stream_options": StreamOptions,
        }
        owner: type[BaseModel] = known.get(str(loc[0]), model)
        names = [f.alias or n for n, f in owner.model_fields.items()]
        return InvalidRequest(
            f"unknown field '{param}'{nearest(str(loc[-1]), names)}", param, "unknown_field"
        )
    said = _SHAPES.get(param, first["msg"])
    return InvalidRequest(f"'{param}': {said}", param, "invalid_value")


def _param(loc: tuple[int | str, ...]) -> str:
    """Spell a location as clients do: `messages[0].content`, without the names of unions."""
    param = str(loc[0])[:64]
    for part in loc[1:]:
        if isinstance(part, int):
            param += f"[{part}]"
        elif part.replace("_", "").isalnum() and part.isascii() and part not in _TAGS:
            param += f".{part[:64]}"
        else:
            break
    return param


_OBJECTS: dict[str, type[BaseModel]] = {
    "slo": Slo,
    "program": ProgramPart,
    "stream_options": StreamOptions,
}

#: What a field of several shapes must be: the complaint about one shape would mislead.
_SHAPES = {
    "prompt": f"must be a string, token ids, or a list of at most {MAX_PROMPTS} of either",
    "stop": "must be a string, or a list of at most 16 strings of at most 256 characters",
}

#: Names that pydantic gives to the branches of a union.
_TAGS = {"str", "int", "float", "bool", "list", "constrained-str", "Part"}
