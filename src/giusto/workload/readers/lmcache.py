"""Agent runs of LMCache's collection: calls by their lengths and what their prompts share."""

from __future__ import annotations

from pathlib import Path

from giusto.workload.readers import pieces
from giusto.workload.readers.programs import CLASS, chained, programs, staged
from giusto.workload.readers.tables import Record
from giusto.workload.readers.trace import Options, capped
from giusto.workload.records import Entry, Piece

#: Seconds that the source's model took for a token of an answer. No call of either file follows
#: another sooner than this for each token of that one's answer, and many come close. So `t` is a
#: call's start, and a gap less the answer's time is the tool's.
TOKEN_TIME = 0.0058


def mini_swe(path: Path, options: Options) -> list[Entry]:
    """Read mini-SWE-agent runs, each a program and a chain of calls.

    Keys of a line: `id`, `calls`. Of a call: `t` (s since the run's first call), `in`, `out`
    (tokens), `prefix_of` (index of the earlier call whose prompt starts the same for longest, or
    -1), `prefix_tokens` (for how long). Text is passed over. The prompts hold what the tools said
    but not what the model had answered, so no piece is an answer. Tool time is the gap to the call
    before less `TOKEN_TIME` for each token of its answer.

    Source: LMCache/lmcache-agent-trace, miniswe, Apache-2.0.
    """
    return _read(path, "mini-swe", options)


def magentic(path: Path, options: Options) -> list[Entry]:
    """Read Magentic-One runs in the form of `mini_swe`, likewise.

    Orchestrator and workers speak in turn, so that each call waits for the one before it. A prompt
    that the source did not log has 0 tokens there and 1 here.

    Source: LMCache/lmcache-agent-trace, magagent, Apache-2.0.
    """
    return _read(path, "magentic-one", options)


def _read(path: Path, app: str, options: Options) -> list[Entry]:
    entries: list[Entry] = []
    for name, row in programs(path):
        entries += staged(_calls(name, app, row.records("calls")))
    return capped(entries, options)


def _calls(program: str, app: str, rows: list[Record]) -> list[Entry]:
    entries: list[Entry] = []
    prompts: list[tuple[Piece, ...]] = []
    started, spoken = 0.0, 0.0
    for index, row in enumerate(rows):
        now = row.amount("t")
        name = f"{program}/{index}"
        tokens, answer = row.tokens("in"), row.tokens("out")
        prompts.append(_prompt(row, f"{name}/prompt", tokens, prompts))
        tool_time = max(0.0, now - started - spoken)
        started, spoken = now, answer * TOKEN_TIME
        entries.append(
            Entry(
                name,
                0.0,
                CLASS,
                prompt_tokens=tokens,
                pieces=prompts[-1],
                output_tokens=answer,
                step=chained(program, index, app, tool_time),
            )
        )
    return entries


def _prompt(
    row: Record, name: str, tokens: int, earlier: list[tuple[Piece, ...]]
) -> tuple[Piece, ...]:
    """The start it shares with an earlier prompt, and the rest as a text of its own."""
    like, shared = row.integer("prefix_of", minimum=-1), row.count("prefix_tokens")
    if like is None or like >= len(earlier):
        raise row.error("prefix_of", f"expected an earlier call or -1, got {like}")
    kept = pieces.cut(earlier[like], shared) if like >= 0 else ()
    if sum(piece.tokens for piece in kept) != shared or shared > tokens:
        raise row.error("prefix_tokens", f"{shared} are more than one of the two prompts has")
    return (*kept, Piece(name, shared, tokens - shared)) if shared < tokens else kept
