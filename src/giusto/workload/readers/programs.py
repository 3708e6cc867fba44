"""Files of programs, one a line: their names, the stages of their calls, and where they end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from giusto.workload.readers.tables import Record, json_rows
from giusto.workload.records import Entry, Step

#: All calls of programs are of one class.
CLASS = "agent"


def programs(path: Path) -> Iterator[tuple[str, Record]]:
    """Yield each line with its `id`, which must be its own."""
    seen: set[str] = set()
    for row in json_rows(path):
        name = row.word("id")
        if name in seen:
            raise row.error("id", f"{name!r} is there twice")
        seen.add(name)
        yield name, row


def chained(program: str, index: int, app: str, tool_time: float = 0.0) -> Step:
    """The place of call `index` in a program whose calls follow one another."""
    parents = (str(index - 1),) if index else ()
    return Step(program, str(index), parents, tool_time if index else 0.0, app=app)


def staged(entries: list[Entry]) -> list[Entry]:
    """Number the stages of one program's calls, and mark its last if all others lead to it.

    A stage is the length of the longest way there. With several open ends no call is marked: one
    that closed the program might end before another has begun.
    """
    steps = [entry.step for entry in entries if entry.step is not None]
    stages: dict[str, int] = {}
    for step in steps:
        stages[step.call] = 1 + max((stages[parent] for parent in step.parents), default=-1)
    waited_for = {parent for step in steps for parent in step.parents}
    ends = [step.call for step in steps if step.call not in waited_for]
    return [
        replace(
            entry,
            step=replace(step, stage=stages[step.call], is_final=ends == [step.call]),
        )
        for entry, step in zip(entries, steps, strict=True)
    ]
