"""τ-bench dialogues: an assistant that talks with a customer and calls tools."""

from __future__ import annotations

from pathlib import Path

from giusto.workload.readers import pieces
from giusto.workload.readers.programs import CLASS, chained, programs, staged
from giusto.workload.readers.tables import Record
from giusto.workload.readers.trace import Options, capped
from giusto.workload.records import Entry, Piece

APP = "tau-bench"


def tau(path: Path, options: Options) -> list[Entry]:
    """Read dialogues; each is a program and each of the assistant's messages a call.

    Keys of a line: `id`, `messages` of `role`, `content`, `tokens`. The prompt of a call is all
    that stands before it: the system prompt (one text for all dialogues that have it), what the
    customer and the tools said, and the earlier answers, as pieces called by their entries. The
    tokens that a chat template adds are not counted. There are no times: tools answer at once.

    Source: sierra-research/tau-bench, gpt-4o on airline tasks, MIT.
    """
    entries: list[Entry] = []
    for name, row in programs(path):
        entries += staged(_calls(name, row.records("messages")))
    return capped(entries, options)


def _calls(program: str, messages: list[Record]) -> list[Entry]:
    entries: list[Entry] = []
    history: list[Piece] = []
    for row in messages:
        tokens = row.tokens("tokens")
        if row.word("role") != "assistant":
            history.append(pieces.of_text(row.text("content") or "", tokens))
            continue
        if not history:
            raise row.error("role", "an assistant's message needs one before it")
        step = chained(program, len(entries), APP)
        entry = Entry(
            f"{program}/{step.call}",
            0.0,
            CLASS,
            prompt_tokens=sum(piece.tokens for piece in history),
            pieces=tuple(history),
            output_tokens=tokens,
            step=step,
        )
        entries.append(entry)
        history.append(Piece(entry.id, 0, tokens))
    return entries
