"""Sessions of a coding agent, with the ids of their prompts' blocks and their sub-agents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from giusto.workload.readers import pieces
from giusto.workload.readers.programs import CLASS, programs, staged
from giusto.workload.readers.tables import Record
from giusto.workload.readers.trace import Options, capped
from giusto.workload.records import Entry, Step

APP = "claude-code"


@dataclass(frozen=True, slots=True)
class Session:
    """What its calls have in common."""

    id: str
    block: int

    def call(self, row: Record, step: Step) -> Entry:
        tokens = row.tokens("in")
        blocks = row.pairs("hash_runs")
        return Entry(
            f"{self.id}/{step.call}",
            0.0,
            CLASS,
            prompt_tokens=tokens,
            pieces=pieces.from_blocks(f"{self.id}/blocks", blocks, self.block, tokens),
            output_tokens=row.tokens("out"),
            step=step,
        )

    def calls(
        self, rows: list[Record], within: str = "", after: tuple[str, ...] = (), delay: float = 0.0
    ) -> list[Entry]:
        """Read a list of calls that begins `delay` seconds after the calls `after` have ended."""
        entries: list[Entry] = []
        ended = 0.0  # when the call before ended
        back = 0.0  # when the last sub-agent since then came back
        answers: list[str] = []
        for index, row in enumerate(rows):
            name = f"{within}{index}"
            now = row.amount("t")
            match row.word("kind"):
                case "subagent":
                    duration = row.number("duration_ms", minimum=0)
                    wait = max(0.0, now - (duration or 0.0) / 1000 - ended)
                    agent = self.calls(row.records("calls"), f"{name}.", after, wait)
                    entries += agent
                    if duration is not None:
                        answers += [entry.step.call for entry in agent[-1:] if entry.step]
                        back = max(back, now)
                case "call":
                    think = row.number("think_time", minimum=0)
                    if answers or think is None:
                        think = max(0.0, now - max(ended, back))
                    tool_time = think if index else delay
                    step = Step(self.id, name, (*after, *answers), tool_time, app=APP)
                    entries.append(self.call(row, step))
                    after, answers, back = (name,), [], 0.0
                    ended = now + (row.number("api_time", minimum=0) or 0.0)
                case kind:
                    raise row.error("kind", f"expected call or subagent, got {kind!r}")
        return entries


def claude_code(path: Path, options: Options) -> list[Entry]:
    """Read coding sessions; each is a program.

    Keys of a line: `id`, `block_size` (tokens), `calls`. Of a call: `kind` "call", `t` (s from the
    session's or the sub-agent's start), `in`, `out` (tokens), `hash_runs` ([first id, count] of the
    prompt's blocks, local to the session), and where known `api_time` (s on the server) and
    `think_time` (s from the end of the call before). Of a sub-agent: `kind` "subagent", `t`,
    `duration_ms` (null if in the background), `calls`.

    What the file does not say in words: a sub-agent's `t` is when it came back, since `t` less its
    duration is, but for a second, when the call before it ended. So all sub-agents between two
    calls start from the first (fan-out), each after its own wait, and the second waits for the
    first and for the last call of each (fan-in); its tool time counts from the latest of them. A
    sub-agent without a duration was launched in the background, at `t`, and no call waits for it.
    Any other call waits for the one before it. A tool time is a person's too, hours at times. Which
    tokens of a prompt are an earlier answer is not recorded: pieces are blocks alone.

    Source: callanjfox/kv-cache-tester, Apache-2.0.
    """
    entries: list[Entry] = []
    for name, row in programs(path):
        session = Session(name, row.count("block_size", minimum=1))
        entries += staged(session.calls(row.records("calls")))
    return capped(entries, options)
