"""Call graphs as OpenTelemetry spans, with the text of prompts and answers."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from giusto.workload.readers import pieces
from giusto.workload.readers.programs import CLASS, programs, staged
from giusto.workload.readers.tables import Record
from giusto.workload.readers.trace import Options, capped
from giusto.workload.records import Entry, Piece, Step

APP = "otel"
#: English text, where the file counts no tokens.
CHARACTERS_PER_TOKEN = 4
#: Stands for a cap that the file does not state.
UNSTATED = 0


@dataclass(frozen=True, slots=True)
class Span:
    """One call as recorded; times in seconds, `texts` those of the messages in its prompt."""

    id: str
    parent: str | None
    start: float
    end: float
    texts: tuple[str, ...]
    answer: str
    prompt_tokens: int | None
    answer_tokens: int
    max_tokens: int | None

    @classmethod
    def read(cls, row: Record) -> Span:
        start = row.amount("start_s")
        texts = _contents(row.text("input_messages") or "[]")
        if texts is None:
            raise row.error(
                "input_messages", "expected a JSON list of objects with a text `content`"
            )
        written = row.text("output_messages") or ""
        answer = "".join(_contents(written) or [written])
        max_tokens = row.integer("max_tokens", minimum=1)
        tokens = max(1, row.integer("out", minimum=0) or _estimate(answer))
        return cls(
            id=row.word("id"),
            parent=row.text("parent"),
            start=start,
            end=row.amount("end_s", minimum=start),
            texts=tuple(texts),
            answer=answer,
            prompt_tokens=row.integer("in", minimum=0),
            answer_tokens=tokens if max_tokens is None else min(tokens, max_tokens),
            max_tokens=max_tokens,
        )


def otel(path: Path, options: Options) -> list[Entry]:
    """Read call graphs; each line is a program.

    Keys of a line: `id`, `spans`. Of a span: `id`, `parent`, `start_s`, `end_s` (s), `max_tokens`
    (what policies see; without it the cap of the class), `in`, `out` (tokens; where they are null,
    a token for every 4 characters), `input_messages` (JSON text, a list of `content`),
    `output_messages` (the same, or plain text).

    A span whose parent had ended before it began waits for that one; any other waits for the spans
    that were the last to end before it, since whatever it uses had ended by then. A message that is
    an earlier span's answer is the piece called by that entry; equal messages are one text.

    Source: kubernetes-sigs/inference-perf, examples/otel, Apache-2.0.
    """
    entries: list[Entry] = []
    for name, row in programs(path):
        entries += staged(_calls(name, _spans(row.records("spans"))))
    stated = [entry.max_tokens for entry in entries]
    return [
        replace(entry, max_tokens=max_tokens or entry.max_tokens)
        for entry, max_tokens in zip(capped(entries, options), stated, strict=True)
    ]


def _spans(rows: list[Record]) -> list[Span]:
    """Read a line's spans, in order of their start."""
    spans = [Span.read(row) for row in rows]
    ids = [span.id for span in spans]
    for index, (row, span) in enumerate(zip(rows, spans, strict=True)):
        if span.id in ids[:index]:
            raise row.error("id", f"{span.id!r} is there twice")
        if span.parent is not None and span.parent not in ids:
            raise row.error("parent", f"there is no span {span.parent!r}")
    return sorted(spans, key=lambda span: span.start)


def _contents(messages: str) -> list[str] | None:
    """The texts of a JSON list of messages, the empty ones left out; None if it is no such list."""
    try:
        texts = [message["content"] or "" for message in json.loads(messages)]
    except (ValueError, TypeError, KeyError):
        return None
    return [text for text in texts if text] if all(isinstance(t, str) for t in texts) else None


def _estimate(text: str) -> int:
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


def _calls(program: str, spans: list[Span]) -> list[Entry]:
    entries: list[Entry] = []
    answers: dict[str, Piece] = {}
    for index, span in enumerate(spans):
        parents = _parents(span, spans[:index])
        ended = max((parent.end for parent in parents), default=spans[0].start)
        texts = [answers.get(text) or pieces.of_text(text, _estimate(text)) for text in span.texts]
        tokens = span.prompt_tokens or sum(piece.tokens for piece in texts) or 1
        entry = Entry(
            f"{program}/{span.id}",
            0.0 if parents else span.start - ended,
            CLASS,
            prompt_tokens=tokens,
            pieces=pieces.cut(texts, tokens),
            max_tokens=span.max_tokens or UNSTATED,
            output_tokens=span.answer_tokens,
            step=Step(
                program,
                span.id,
                tuple(parent.id for parent in parents),
                span.start - ended if parents else 0.0,
                app=APP,
            ),
        )
        entries.append(entry)
        if span.answer:
            answers[span.answer] = Piece(entry.id, 0, span.answer_tokens)
    return entries


def _parents(span: Span, earlier: list[Span]) -> list[Span]:
    """The spans it waits for, of those that began no later."""
    ended = [other for other in earlier if other.end <= span.start]
    if span.parent is not None:
        named = [other for other in ended if other.id == span.parent]
        if named:
            return named
    latest = max((other.start for other in ended), default=0.0)
    return [other for other in ended if other.end > latest or other.start == latest]
