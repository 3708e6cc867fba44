"""Those who ask: entries at their time, and the later calls of a program after their parents.

An open loop, as `giusto bench` is one: arrivals wait for nobody, a call with parents is sent when
the last of them has ended and its tool has run, and is never sent when one of them failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from giusto.core.events import Event, Finished, Rejected
from giusto.core.request import FinishReason, Submission
from giusto.core.slo import Program
from giusto.metrics.records import ProgramCall, Record
from giusto.sim.kernel import Kernel, Order
from giusto.workload.records import Entry

ENDS = (Finished, Rejected)


@dataclass(slots=True)
class _Program:
    """Calls that wait for others, and those that ended; `opened` with the first arrival.

    With nothing left in `later` it is of no interest any more.
    """

    later: list[Entry] = field(default_factory=list)
    answered: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    opened: float | None = None


class Users:
    """Sends entries through `send`.

    `give_up` is told calls that are never sent, and when their program opened.
    """

    def __init__(
        self,
        kernel: Kernel,
        entries: Iterable[Entry],
        send: Callable[[Entry], None],
        give_up: Callable[[Entry, float], None],
    ) -> None:
        self._kernel = kernel
        self._send_to = send
        self._give_up_to = give_up
        self._programs: dict[str, _Program] = {}
        self._under_way: dict[str, Entry] = {}
        roots: list[Entry] = []
        for entry in entries:
            if entry.waits_for and entry.step is not None:
                program = self._programs.setdefault(entry.step.program, _Program())
                program.later.append(entry)
            else:
                roots.append(entry)
        roots.sort(key=lambda entry: entry.arrival)
        self._roots = iter(roots)
        self._next_root()

    @property
    def num_left(self) -> int:
        """Calls that still wait for others."""
        return sum(len(program.later) for program in self._programs.values())

    def observe(self, event: Event) -> None:
        """Learn from a replica's events which calls have ended."""
        if not isinstance(event, ENDS):
            return
        entry = self._under_way.pop(event.request_id, None)
        if entry is None or entry.step is None:
            return
        program = self._programs.get(entry.step.program)
        if program is None:
            return
        is_answered = isinstance(event, Finished) and event.reason in (
            FinishReason.STOP,
            FinishReason.LENGTH,
        )
        (program.answered if is_answered else program.failed).add(entry.step.call)
        self._go_on(entry.step.program, program)

    def _next_root(self) -> None:
        """One arrival lies on the heap at a time, however long the trace."""
        entry = next(self._roots, None)
        if entry is not None:
            self._kernel.at(entry.arrival, Order.ARRIVAL, partial(self._arrive, entry))

    def _arrive(self, entry: Entry) -> None:
        program = self._programs.get(entry.step.program) if entry.step else None
        if program is not None and program.opened is None:
            program.opened = self._kernel.now
        self._send(entry)
        self._next_root()

    def _send(self, entry: Entry) -> None:
        if entry.step is not None and entry.step.program in self._programs:
            self._under_way[entry.id] = entry
        self._send_to(entry)

    def _go_on(self, name: str, program: _Program) -> None:
        """Send the calls whose parents have all ended, after their tools have run."""
        ready, blocked, later = _parted(program)
        program.later = later
        for entry in ready:
            assert entry.step is not None
            when = self._kernel.now + entry.step.tool_time
            self._kernel.at(when, Order.ARRIVAL, partial(self._send, entry))
        for entry in blocked:
            assert entry.step is not None
            program.failed.add(entry.step.call)
            assert program.opened is not None
            self._give_up_to(entry, program.opened)
        if blocked:
            self._go_on(name, program)
        elif not later:
            self._programs.pop(name, None)


def _parted(program: _Program) -> tuple[list[Entry], list[Entry], list[Entry]]:
    """Waiting calls that can be sent, that never will be, and that still wait."""
    ready: list[Entry] = []
    blocked: list[Entry] = []
    later: list[Entry] = []
    for entry in program.later:
        parents = entry.waits_for
        if not all(call in program.answered or call in program.failed for call in parents):
            later.append(entry)
        elif any(call in program.failed for call in parents):
            blocked.append(entry)
        else:
            ready.append(entry)
    return ready, blocked, later


def never_sent(ask: Submission, entry: Entry, now: float, opened: float) -> Record:
    """The record of a call that is given up: as with `giusto bench`, it counts as failed."""
    assert entry.step is not None
    return Record(
        id=ask.id,
        group=ask.id,
        service_class=ask.service_class,
        slo=ask.slo,
        arrival=now,
        origin=opened if isinstance(ask.slo, Program) else now,
        prompt_tokens=ask.num_prompt_tokens,
        tenant=ask.tenant,
        weight=ask.weight,
        cap=ask.sampling.max_tokens,
        closed=now,
        finish=FinishReason.ERROR,
        error="not sent: an earlier call failed",
        program=ProgramCall(entry.step.program, entry.step.call, opened, entry.step.deadline),
    )
