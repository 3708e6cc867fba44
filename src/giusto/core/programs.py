"""The table of open programs: who is in, since when, with what deadline, and how it ended.

A program opens with its first call's arrival; it closes when a call marked final has ended, when
it is told to, or after a span without calls. Its end is its last call's end. Matching programs to
history lives elsewhere; this table is all that SLOs need.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from giusto.core.request import FinishReason, Request
from giusto.core.slo import BestEffort, Program

DEFAULT_IDLE_TIMEOUT = 600.0


@dataclass(slots=True)
class ProgramState:
    """One program; satisfies `plan.ProgramView`. Times in seconds, service in tokens.

    `touched` is when a call last came or went, however it ended.
    """

    id: str
    opened: float
    touched: float
    app: str | None = None
    deadline: float | None = None
    ended: float | None = None
    num_active_calls: int = 0
    num_finished_calls: int = 0
    attained_service: int = 0
    is_missed: bool = False
    is_final: bool = False
    is_closed: bool = False

    @property
    def met(self) -> bool | None:
        """Whether its deadline was kept, by what has ended so far; None without a deadline."""
        if self.deadline is None:
            return None
        ended = self.opened if self.ended is None else self.ended
        return not self.is_missed and ended <= self.opened + self.deadline


class ProgramTable:
    """Open and closed programs by id, in order of their last touch.

    Bounded: beyond `capacity` the longest untouched closed one is forgotten, then open ones.
    """

    def __init__(
        self, *, idle_timeout: float = DEFAULT_IDLE_TIMEOUT, capacity: int = 100_000
    ) -> None:
        self.idle_timeout = idle_timeout
        self.capacity = capacity
        self._open: OrderedDict[str, ProgramState] = OrderedDict()
        self._closed: OrderedDict[str, ProgramState] = OrderedDict()

    def get(self, program_id: str) -> ProgramState | None:
        return self._open.get(program_id) or self._closed.get(program_id)

    def enter(self, request: Request, now: float) -> ProgramState | None:
        """Count a call in and settle its SLO and origin; returns the program if it is new.

        A call without an SLO of its own is judged with its program. Once that is missed or
        closed, such a call is best effort: it is served, but nothing is left to save.
        """
        ref = request.ref
        if ref is None:
            return None
        program = self.get(ref.id)
        is_new = program is None
        if program is None:
            program = self._open[ref.id] = ProgramState(ref.id, request.arrival, now)
            self._shrink()
        self._touch(program, now)
        program.app = program.app or ref.app
        if program.deadline is None:
            program.deadline = ref.deadline
        program.num_active_calls += 1
        program.is_final = program.is_final or ref.final
        if program.deadline is not None and not request.has_own_slo:
            if not program.is_closed and now > program.opened + program.deadline:
                program.is_missed = True
            if program.is_missed or program.is_closed:
                request.slo = BestEffort()
            else:
                request.slo, request.origin = Program(program.deadline), program.opened
        return program if is_new else None

    def charge(self, request: Request, reason: FinishReason) -> None:
        """Book what one sample of a call took; one that failed makes the program missed."""
        program = self.get(request.ref.id) if request.ref else None
        if program is not None:
            program.attained_service += request.num_computed_tokens
            program.is_missed |= reason is FinishReason.ERROR and not program.is_closed

    def leave(self, request: Request, now: float, reason: FinishReason) -> ProgramState | None:
        """Count a call out; returns the program if that closed it.

        A call that was refused or failed (`ERROR`) makes the program missed; one that its client
        cancelled does not. Calls of a closed program change neither its end nor its verdict.
        """
        program = self.get(request.ref.id) if request.ref else None
        if program is None:
            return None
        self._touch(program, now)
        program.num_active_calls -= 1
        if reason not in (FinishReason.ERROR, FinishReason.ABORT):
            program.num_finished_calls += 1
        if program.is_closed:
            return None
        if reason is FinishReason.ERROR:
            program.is_missed = True
        elif reason is not FinishReason.ABORT:
            program.ended = now
        return self._close(program) if program.is_final else None

    def close(self, program_id: str) -> ProgramState | None:
        """Close on the client's word, at once or when its last call has ended."""
        program = self._open.get(program_id)
        if program is None:
            return None
        program.is_final = True
        return self._close(program)

    def expire(self, now: float) -> list[ProgramState]:
        """Close the programs that have had no call for the idle span; cost: the ones expired."""
        idle = []
        for program in self._open.values():
            if now - program.touched < self.idle_timeout:
                break
            if not program.num_active_calls:
                idle.append(program)
        for program in idle:
            self._close(program)
        return idle

    def _close(self, program: ProgramState) -> ProgramState | None:
        if program.is_closed or program.num_active_calls:
            return None
        program.is_closed = True
        self._closed[program.id] = self._open.pop(program.id)
        return program

    def _touch(self, program: ProgramState, now: float) -> None:
        program.touched = now
        (self._closed if program.is_closed else self._open).move_to_end(program.id)

    def _shrink(self) -> None:
        while len(self._open) + len(self._closed) > self.capacity:
            (self._closed or self._open).popitem(last=False)
