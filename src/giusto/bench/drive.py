"""The open loop: every request leaves at its time, whatever has become of the earlier ones.

A call of a program with parents leaves when they have ended and its tool has run; if one of them
failed it is never sent, and counts as failed. How late requests left is measured: a client that
cannot keep up must not pass for a slow server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from giusto.bench.client import Client, Reply, new_record
from giusto.core.request import FinishReason
from giusto.metrics.records import Record
from giusto.workload.records import Entry

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Sent:
    """What was sent, in token counts: what a simulator can replay.

    The answers to `num_estimated` entries have the median length of their class; `num_left_out`
    are not among the entries, for nobody counted their prompts.
    """

    entries: list[Entry]
    num_estimated: int = 0
    num_left_out: int = 0


@dataclass(slots=True)
class Run:
    """What came of a run: records in the order they ended, and how late requests left, seconds."""

    records: list[Record] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    is_interrupted: bool = False
    sent: Sent | None = None


@dataclass(slots=True)
class _Program:
    """The calls of a program under way; `opened` is set when the first has left."""

    calls: list[Entry]
    replies: dict[str, asyncio.Future[Reply]]
    opened: float | None = None


class Driver:
    """Drives one list of entries through a client."""

    def __init__(
        self,
        client: Client,
        *,
        sleep: Sleep = asyncio.sleep,
        on_sent: Callable[[Entry], None] = lambda entry: None,
        on_ended: Callable[[Record], None] = lambda record: None,
    ) -> None:
        self._client = client
        self._sleep = sleep
        self._on_sent = on_sent
        self._on_ended = on_ended
        self._programs: dict[str, _Program] = {}
        self.run = Run()

    async def drive(self, entries: Sequence[Entry]) -> Run:
        """Send all entries and wait for all ends.

        A cancel (Ctrl-C) closes what is under way and returns what was reached.
        """
        self._programs = _programs(entries)
        roots = sorted((e for e in entries if not e.waits_for), key=lambda e: e.arrival)
        try:
            async with asyncio.TaskGroup() as tasks:
                for entry in roots:
                    await self._until(entry.arrival)
                    for later in self._open(entry):
                        tasks.create_task(self._send_later(later))
                    tasks.create_task(self._send(entry, due=entry.arrival))
        except asyncio.CancelledError:
            self.run.is_interrupted = True
        return self.run

    def _open(self, root: Entry) -> list[Entry]:
        """Open the program of a root, if it is the first to leave; returns the calls that wait."""
        program = self._programs.get(root.step.program) if root.step else None
        if program is None or program.opened is not None:
            return []
        program.opened = self._client.now()
        return [entry for entry in program.calls if entry.waits_for]

    async def _until(self, moment: float) -> None:
        if (left := moment - self._client.now()) > 0:
            await self._sleep(left)

    async def _send(self, entry: Entry, due: float, answers: dict[str, str] | None = None) -> None:
        self.run.lags.append(max(0.0, self._client.now() - due))
        self._on_sent(entry)
        opened = self._programs[entry.step.program].opened if entry.step else None
        self._book(entry, await self._client.send(entry, answers or {}, opened))

    async def _send_later(self, entry: Entry) -> None:
        assert entry.step is not None
        program = self._programs[entry.step.program]
        parents = [program.replies[call] for call in entry.waits_for]
        try:
            await asyncio.wait(parents)
            records = [parent.result().record for parent in parents]
            if not all(record.is_answered for record in records):
                self._give_up(entry, program, any(r.is_cancelled for r in records))
                return
            due = max(record.closed or 0.0 for record in records) + entry.step.tool_time
            await self._until(due)
        except asyncio.CancelledError:
            self._give_up(entry, program, is_cancelled=True)
            return
        answered = {call: reply.result() for call, reply in program.replies.items() if reply.done()}
        await self._send(entry, due, {call: reply.text for call, reply in answered.items()})

    def _give_up(self, entry: Entry, program: _Program, is_cancelled: bool) -> None:
        """Book a call that is never sent."""
        record = new_record(entry, self._client.now(), program.opened)
        finish = FinishReason.ABORT if is_cancelled else FinishReason.ERROR
        error = None if is_cancelled else "not sent: an earlier call failed"
        self._book(entry, Reply(replace(record, closed=record.arrival, finish=finish, error=error)))

    def _book(self, entry: Entry, reply: Reply) -> None:
        self.run.records.append(reply.record)
        self._on_ended(reply.record)
        if entry.step is not None:
            self._programs[entry.step.program].replies[entry.step.call].set_result(reply)


def _programs(entries: Iterable[Entry]) -> dict[str, _Program]:
    loop = asyncio.get_running_loop()
    programs: dict[str, _Program] = {}
    for entry in entries:
        if entry.step is not None:
            program = programs.setdefault(entry.step.program, _Program([], {}))
            program.calls.append(entry)
            program.replies[entry.step.call] = loop.create_future()
    return programs
