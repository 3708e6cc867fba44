"""Entries with text as entries with counts: what a simulator can replay.

A call whose messages begin with those of an earlier call and its answer shares that much of the
prompt, as it would in a prefix cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b

from giusto.workload.records import Entry, Piece


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens of a prompt, template included, and of its answer."""

    prompt: int
    output: int


def asked(entry: Entry) -> str:
    """The name of an entry's prompt as a text: equal prompts have the same."""
    content = repr((entry.messages, entry.prompt)).encode()
    return f"asked {blake2b(content, digest_size=8).hexdigest()}"


def measured(entries: Iterable[Entry], counts: Mapping[str, Counts]) -> list[Entry]:
    """State the tokens of each entry that `counts` knows, by id; others are left out.

    Texts are dropped.
    """
    calls: dict[tuple[str, str], Entry] = {}
    result = []
    for entry in entries:
        if entry.step is not None:
            calls[entry.step.program, entry.step.call] = entry
        if entry.id in counts:
            pieces = (*_shared(entry, calls, counts),)
            rest = counts[entry.id].prompt - sum(piece.tokens for piece in pieces)
            if rest > 0:
                pieces += (Piece(asked(entry), 0, rest),)
            result.append(
                replace(
                    entry,
                    messages=(),
                    prompt=None,
                    prompt_tokens=counts[entry.id].prompt,
                    output_tokens=max(1, counts[entry.id].output),
                    pieces=pieces,
                )
            )
    return result


def _shared(
    entry: Entry, calls: Mapping[tuple[str, str], Entry], counts: Mapping[str, Counts]
) -> list[Piece]:
    """Prompt and answer of the call that the messages go on from."""
    if entry.step is None:
        return []
    for at, message in enumerate(entry.messages):
        parent = calls.get((entry.step.program, message.answer_of or ""))
        if parent is None or parent.id not in counts or parent.messages != entry.messages[:at]:
            continue
        before = counts[parent.id]
        if before.prompt + before.output < counts[entry.id].prompt:
            return [Piece(asked(parent), 0, before.prompt), Piece(parent.id, 0, before.output)]
    return []
