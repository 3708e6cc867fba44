"""What goes over the wire: request bodies and headers out, server-sent events in. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from giusto.core.errors import ConfigError
from giusto.core.slo import SLO, BestEffort, Deadline, Program, Streaming
from giusto.workload.records import Entry


class SloIn(StrEnum):
    """Where the SLO rides; `auto` is the body for a Giusto server and nowhere for others."""

    AUTO = "auto"
    BODY = "body"
    HEADERS = "headers"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Ask:
    """One HTTP request."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Delta:
    """What one event of a stream brought.

    `num_tokens` is known where the server lists token ids, `tokens_so_far` where it counts along,
    `total_tokens` from any usage; none is certain to be there.
    """

    text: str = ""
    num_tokens: int | None = None
    tokens_so_far: int | None = None
    total_tokens: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int = 0
    finish: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Dialect:
    """How to speak to one server. `run` makes program ids unique among the runs it has seen."""

    model: str
    slo_in: SloIn
    run: str = ""


def compose(entry: Entry, answers: Mapping[str, str], dialect: Dialect) -> Ask:
    """Build the request of an entry; `answers` has those of earlier calls of its program."""
    body: dict[str, Any] = {
        "model": dialect.model,
        "max_tokens": entry.max_tokens,
        "temperature": entry.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if entry.top_p != 1.0:
        body["top_p"] = entry.top_p
    if entry.seed is not None:
        body["seed"] = entry.seed
    if entry.messages:
        path = "/v1/chat/completions"
        body["messages"] = [
            {"role": m.role, "content": answers[m.answer_of] if m.answer_of else m.content}
            for m in entry.messages
        ]
    elif entry.prompt is not None:
        path, body["prompt"] = "/v1/completions", entry.prompt
    else:
        raise ConfigError(f"entry {entry.id} has token counts only; a server needs text")
    match dialect.slo_in:
        case SloIn.BODY:
            # Exact token counts per event; a server that knows the body fields knows this too.
            body["stream_options"]["continuous_usage_stats"] = True
            return Ask(path, body | _body_fields(entry, dialect.run), _class_header(entry))
        case SloIn.HEADERS:
            return Ask(path, body, _class_header(entry) | _headers(entry, dialect.run))
        case _:
            return Ask(path, body)


def _class_header(entry: Entry) -> dict[str, str]:
    """Name the class where a server that does not have it will not mind."""
    return {"x-llm-d-inference-objective": entry.service_class}


def _body_fields(entry: Entry, run: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    targets = _targets(entry.promise)
    if targets:
        fields["slo"] = targets | ({"weight": entry.weight} if entry.weight != 1.0 else {})
    elif isinstance(entry.promise, BestEffort):
        # The one way to say it that every OpenAI client has.
        fields["service_tier"] = "flex"
    if (step := entry.step) is not None:
        program = {
            "id": run + step.program,
            "call": step.call,
            "parents": list(step.parents),
            "stage": step.stage,
            "final": step.is_final,
            "app": step.app,
            "deadline_ms": None if step.deadline is None else step.deadline * 1000,
        }
        fields["program"] = {name: value for name, value in program.items() if value is not None}
    return fields


def _headers(entry: Entry, run: str) -> dict[str, str]:
    targets = _targets(entry.promise)
    names = {
        "ttft_ms": "x-llm-d-slo-ttft-ms",
        "tpot_ms": "x-llm-d-slo-tpot-ms",
        "deadline_ms": "x-giusto-deadline-ms",
    }
    headers = {names[target]: f"{ms:g}" for target, ms in targets.items()}
    if (step := entry.step) is not None:
        headers["x-session-id"] = run + step.program
        if step.deadline is not None:
            headers["x-giusto-program-deadline-ms"] = f"{step.deadline * 1000:g}"
    return headers


def _targets(slo: SLO) -> dict[str, float]:
    """A request's own targets in milliseconds; a program's are stated with the program."""
    match slo:
        case Streaming(ttft, tpot):
            parts = {"ttft_ms": ttft, "tpot_ms": tpot}
            return {name: part * 1000 for name, part in parts.items() if part is not None}
        case Deadline(deadline):
            return {"deadline_ms": deadline * 1000}
        case Program() | BestEffort():
            return {}


class SseParser:
    """Bytes into the data of whole events; an event may be cut anywhere between two reads."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """Return the data of the events that these bytes completed."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [
            line[5:].strip().decode("utf-8", "replace")
            for line in lines
            if line.startswith(b"data:")
        ]


def read_event(data: str) -> Delta:
    """Read one event of a chat or text completion; an unreadable one is an error."""
    try:
        return _delta(json.loads(data))
    except (ValueError, TypeError, AttributeError, LookupError):
        return Delta(error=f"unreadable event {data[:80]!r}")


def _delta(event: Any) -> Delta:
    if event.get("error"):
        return Delta(error=error_text(event))
    usage = event.get("usage") or {}
    choices = event.get("choices")
    choice = choices[0] if choices else {}
    token_ids = choice.get("token_ids")
    details = usage.get("prompt_tokens_details") or {}
    total = _count(usage.get("completion_tokens"))
    return Delta(
        text=_text(choice),
        num_tokens=None if token_ids is None else len(token_ids),
        tokens_so_far=total if choices else None,
        total_tokens=total,
        prompt_tokens=_count(usage.get("prompt_tokens")),
        cached_tokens=_count(details.get("cached_tokens")) or 0,
        finish=choice.get("finish_reason"),
    )


def _count(number: Any) -> int | None:
    return None if number is None else int(number)


def _text(choice: Mapping[str, Any]) -> str:
    """All that is generated counts as text: reasoning and tool calls are tokens too."""
    delta = choice.get("delta")
    if not isinstance(delta, Mapping):
        return choice.get("text") or ""
    parts = [delta.get("reasoning_content") or delta.get("reasoning"), delta.get("content")]
    parts += [
        (call.get("function") or {}).get("arguments") for call in delta.get("tool_calls") or []
    ]
    return "".join(part for part in parts if part)


def error_text(body: object) -> str:
    """The message of an error body in OpenAI's shape, or the body itself."""
    error = body.get("error", body) if isinstance(body, Mapping) else body
    message = error.get("message") if isinstance(error, Mapping) else None
    return str(message or error)[:300]


def refusal(status: int, headers: Mapping[str, str], body: object) -> str | None:
    """The reason when a status says that the server would not serve it now; None for others."""
    if status not in (429, 503, 529):
        return None
    error = body.get("error") if isinstance(body, Mapping) else None
    stated = error.get("code") or error.get("type") if isinstance(error, Mapping) else None
    return str(headers.get("x-llm-d-request-dropped-reason") or stated or f"http_{status}")


def spread(events: Sequence[tuple[float, int]], total: int | None) -> tuple[float, ...]:
    """Times of all tokens from (time, tokens) of each event, reconciled with the final count.

    Where the server says at the end that there were more or fewer tokens than were counted, they
    are spread evenly over the events that brought any, in order: the first and the last event keep
    theirs.
    """
    times = [time for time, num_tokens in events for _ in range(num_tokens)]
    if total is None or total == len(times) or not times:
        return tuple(times)
    seen = len(times)
    return tuple(times[-(-(k + 1) * seen // total) - 1] for k in range(total))
