"""Programs of several calls, as agents make them: who waits for whom, tools, shared prompts.

Each generator takes the program's id, its arrival and a generator of random numbers, and returns
the calls in an order in which each comes after those it waits for; the last one waits, directly or
not, for all others. There is no text: `pieces` say which tokens prompts have in common. Programs
of an app share its system prompt, and a call that reads an earlier one quotes its answer, which is
the text called by that call's id. Deadlines are left to whoever knows the machine.

Counts are log-normal by median and 95th percentile. Where a figure is named it was measured on
public traces: tau-bench airline dialogues (152 with 2,114 calls), mini-SWE-agent runs (15 with 291
calls), Magentic-One runs (19 with 560 calls). The others are round numbers of the same order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from giusto.workload.lengths import Fixed, Lengths, LogNormal, Uniform, lognormal
from giusto.workload.records import Entry, Piece, Step

#: From program id, arrival in seconds and random numbers to the calls of one program.
Agent = Callable[[str, float, random.Random], list[Entry]]


@dataclass(frozen=True, slots=True)
class Role:
    """A kind of call: what is new in its prompt, its answer, and the cap of the answer; tokens."""

    new: Lengths
    output: Lengths
    cap: int


@dataclass(frozen=True, slots=True)
class Tool:
    """What a tool takes: log-normal seconds by median and 95th percentile."""

    median: float
    p95: float

    def draw(self, rng: random.Random) -> float:
        return lognormal(rng, self.median, self.p95)


#: Tokens of an app's system prompt: Magentic-One's runs begin with 338 on average, tau-bench's
#: airline dialogues, whose prompt states rules and tools, with 1,338.
SYSTEM_TOKENS = 340
TOOL_SYSTEM_TOKENS = 1_340
#: mini-SWE-agent: from call to call 1.07 s in the median, 2.33 s at p95, the call included.
SHELL = Tool(0.5, 1.5)
#: Magentic-One: from call to call 5.6 s in the median, 14.9 s at p95, the call included.
SEARCH = Tool(2.0, 8.0)

#: tau-bench: calls per dialogue 13 and 27, at most 30; answers 43 and 216; between two calls a
#: user's turn of 23 and 46 or a tool's reply of 318 and 550.
CHAIN_CALLS = LogNormal(13, 27, low=2, high=30)
ACT = Role(LogNormal(150, 550, high=2_048), LogNormal(43, 216), cap=256)

#: Minutes of QMSum have 14,462 tokens on average: here in three to eight parts.
PARTS = Uniform(3, 8)
PLAN = Role(LogNormal(60, 250, high=1_024), LogNormal(100, 250), cap=512)
#: Answers as the summaries of arXiv papers, 167 and 715.
MAP = Role(LogNormal(2_000, 3_500, high=4_096), LogNormal(167, 715), cap=1_024)
REDUCE = Role(Fixed(40), LogNormal(250, 700), cap=1_024)

THINK = Role(Fixed(60), LogNormal(120, 300), cap=512)
VOTE = Role(Fixed(80), LogNormal(60, 150), cap=256)

DRAFT = Role(LogNormal(200, 700, high=2_048), LogNormal(250, 700), cap=768)
CRITIQUE = Role(Fixed(60), LogNormal(120, 300), cap=384)
REVISE = Role(Fixed(40), LogNormal(250, 700), cap=768)

SEARCHES = Uniform(2, 4)
READ = Role(LogNormal(1_500, 5_000, high=8_192), LogNormal(180, 450), cap=1_024)
REPORT = Role(Fixed(80), LogNormal(700, 1_500), cap=2_048)


def chain(
    program: str, arrival: float, rng: random.Random, *, calls: Lengths = CHAIN_CALLS
) -> list[Entry]:
    """Act, use a tool, read its result, act again; each call sees all that went before.

    Figures: tau-bench's dialogues. Autellix counts 10.75 calls on average for its tool users.
    """
    book = _Book(program, arrival, "chain", rng, TOOL_SYSTEM_TOKENS)
    last = book.call("act-0", ACT)
    for turn in range(1, calls.draw(rng)):
        last = book.call(f"act-{turn}", ACT, [last], said(last), SHELL)
    return book.entries()


def map_reduce(
    program: str, arrival: float, rng: random.Random, *, parts: Lengths = PARTS
) -> list[Entry]:
    """Plan, work on each part of a document at once, bring the answers together."""
    book = _Book(program, arrival, "map-reduce", rng)
    plan = book.call("plan", PLAN)
    maps = [book.call(f"map-{i}", MAP, [plan], said(plan)) for i in range(parts.draw(rng))]
    book.call("reduce", REDUCE, maps, (*said(plan), *map(answer, maps)))
    return book.entries()


def tree_of_thought(
    program: str,
    arrival: float,
    rng: random.Random,
    *,
    breadth: int = 3,
    depth: int = 2,
    beam: int = 1,
) -> list[Entry]:
    """Grow `breadth` thoughts from each kept one, let a vote keep `beam`, `depth` times over.

    The defaults give the 3, 1, 3, 1 calls of Tempo's workload. Which thoughts a vote keeps is
    drawn; the others are grown no further.
    """
    if min(breadth, depth, beam) < 1:
        raise ValueError(f"breadth, depth and beam must be at least 1: {breadth}, {depth}, {beam}")
    book = _Book(program, arrival, "tree-of-thought", rng)
    task = (book.system, book.text("task", PLAN.new))
    votes: list[Entry] = []
    kept: list[tuple[Piece, ...]] = [task]
    for level in range(depth):
        grown = [
            book.call(f"think-{level}-{i}", THINK, votes, path)
            for i, path in enumerate(path for path in kept for _ in range(breadth))
        ]
        votes = [book.call(f"vote-{level}", VOTE, grown, (*task, *map(answer, grown)))]
        best = sorted(rng.sample(range(len(grown)), min(beam, len(grown))))
        kept = [(*kept[i // breadth], answer(grown[i])) for i in best]
    return book.entries()


def reflection(
    program: str, arrival: float, rng: random.Random, *, again: float = 0.5, rounds: int = 4
) -> list[Entry]:
    """Draft, then critique and revise until content: once more with chance `again`.

    At most `rounds` rounds, the limit of Self-Refine (arXiv 2303.17651).
    """
    book = _Book(program, arrival, "reflection", rng)
    last = book.call("draft", DRAFT)
    for turn in range(rounds):
        critique = book.call(f"critique-{turn}", CRITIQUE, [last], said(last))
        last = book.call(f"revise-{turn}", REVISE, [critique], said(critique))
        if rng.random() >= again:
            break
    return book.entries()


def deep_research(
    program: str,
    arrival: float,
    rng: random.Random,
    *,
    searches: Lengths = SEARCHES,
    follow_up: float = 0.25,
    depth: int = 2,
) -> list[Entry]:
    """Plan, read what several searches found, follow some of it up, write a report of it all.

    Each reading leads to two more of its own with chance `follow_up`, `depth` times at most.
    Tempo's programs of this kind have 12,223 tokens on average and 1,911 per call.
    """
    book = _Book(program, arrival, "deep-research", rng)
    plan = book.call("plan", PLAN)
    found: list[Entry] = []

    def read(name: str, after: Entry, left: int) -> None:
        reading = book.call(f"read-{name}", READ, [after], said(after), SEARCH)
        found.append(reading)
        if left and rng.random() < follow_up:
            for i in range(2):
                read(f"{name}.{i}", reading, left - 1)

    for i in range(searches.draw(rng)):
        read(str(i), plan, depth)
    book.call("report", REPORT, found, (*said(plan), *map(answer, found)))
    return book.entries()


AGENTS: dict[str, Agent] = {
    "chain": chain,
    "map-reduce": map_reduce,
    "tree-of-thought": tree_of_thought,
    "reflection": reflection,
    "deep-research": deep_research,
}


def answer(entry: Entry) -> Piece:
    """The answer of a call as a piece of later prompts; its recorded length must be known."""
    if not entry.output_tokens:
        raise ValueError(f"the answer of {entry.id} has no recorded length")
    return Piece(entry.id, 0, entry.output_tokens)


def said(entry: Entry) -> tuple[Piece, ...]:
    """What a conversation has become with this call: its prompt and its answer."""
    return (*entry.pieces, answer(entry))


def critical_path(entries: Iterable[Entry], seconds_of: Callable[[Entry], float]) -> float:
    """Seconds from a program's opening to its end when no call ever queues, tools included.

    `entries` are the calls of one program, each after those it waits for.
    """
    ends: dict[str, float] = {}
    for entry in entries:
        if entry.step is None:
            raise ValueError(f"entry {entry.id} is in no program")
        waits = [ends[call] for call in entry.waits_for]
        start = max(waits) + entry.step.tool_time if waits else 0.0
        ends[entry.step.call] = start + seconds_of(entry)
    return max(ends.values())


class _Book:
    """Writes a program down call by call."""

    def __init__(
        self,
        program: str,
        arrival: float,
        app: str,
        rng: random.Random,
        system_tokens: int = SYSTEM_TOKENS,
    ) -> None:
        self.system = Piece(f"{app}/system", 0, system_tokens)
        self._program = program
        self._arrival = arrival
        self._app = app
        self._rng = rng
        self._calls: list[Entry] = []

    def text(self, name: str, tokens: Lengths) -> Piece:
        """A text of this program that several of its prompts hold."""
        return Piece(f"{self._program}/{name}", 0, tokens.draw(self._rng))

    def call(
        self,
        name: str,
        role: Role,
        parents: Sequence[Entry] = (),
        context: Sequence[Piece] = (),
        tool: Tool | None = None,
    ) -> Entry:
        """Add a call that is asked what is new behind `context`, by default the system prompt."""
        pieces = (*(context or (self.system,)), self.text(name, role.new))
        steps = [parent.step for parent in parents if parent.step is not None]
        entry = Entry(
            id=f"{self._program}-{name}",
            arrival=self._arrival,
            service_class=self._app,
            prompt_tokens=sum(piece.tokens for piece in pieces),
            pieces=pieces,
            max_tokens=role.cap,
            output_tokens=min(role.output.draw(self._rng), role.cap),
            step=Step(
                self._program,
                name,
                tuple(step.call for step in steps),
                tool.draw(self._rng) if tool else 0.0,
                stage=1 + max((step.stage or 0 for step in steps), default=-1),
                app=self._app,
            ),
        )
        self._calls.append(entry)
        return entry

    def entries(self) -> list[Entry]:
        """The calls, of which the last one closes the program."""
        last = self._calls[-1]
        assert last.step is not None
        return [*self._calls[:-1], replace(last, step=replace(last.step, is_final=True))]
