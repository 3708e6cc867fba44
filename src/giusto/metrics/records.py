"""Events in, one `Record` per request out.

A record is all that verdicts, summaries and plots need; simulator, server and client make the same
one. Pure: no clock, no I/O. Times are seconds on the driver's clock; a token's time is the end of
the step that made it (server, simulator) or the arrival of its chunk (client).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise

from giusto.core.events import (
    Admitted,
    Arrived,
    Demoted,
    Event,
    Finished,
    Preempted,
    ProgramClosed,
    ProgramOpened,
    Rejected,
    Resumed,
    Stepped,
)
from giusto.core.request import DEFAULT_CAP, FinishReason
from giusto.core.slo import SLO, Delivery, Program, Progress, due, late_tokens


@dataclass(frozen=True, slots=True)
class ProgramCall:
    """A record's place in a program that was open when the call arrived.

    `deadline` is in seconds from `opened`, None where this call does not tell it.
    """

    id: str
    call: str
    opened: float
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """What one sample of a request was promised on arrival, and what it received.

    `closed` is when it ended in whatever way, None while it runs; `refused` and `demoted` carry
    the reason; `error` says why `finish` is an error.
    """

    id: str
    group: str
    service_class: str
    slo: SLO
    arrival: float
    origin: float
    prompt_tokens: int
    token_times: tuple[float, ...] = ()
    closed: float | None = None
    finish: FinishReason | None = None
    refused: str | None = None
    demoted: str | None = None
    error: str | None = None
    tenant: str = ""
    weight: float = 1.0
    cap: int = DEFAULT_CAP
    admitted: float | None = None
    cached_tokens: int = 0
    preemptions: int = 0
    program: ProgramCall | None = None

    @property
    def is_answered(self) -> bool:
        """Whether it ended normally."""
        return self.finish in (FinishReason.STOP, FinishReason.LENGTH)

    @property
    def delivery(self) -> Delivery:
        """What `core.slo` judges."""
        end = self.closed if self.is_answered else None
        return Delivery(self.arrival, self.prompt_tokens, self.token_times, end)

    @property
    def is_cancelled(self) -> bool:
        """Whether the client gave it up before anything was late: it leaves the count."""
        if self.finish is not FinishReason.ABORT or self.closed is None:
            return False
        late = late_tokens(self.slo, self.delivery)
        first = self.token_times[0] if self.token_times else None
        progress = Progress(self.origin, first, len(self.token_times), late, self.cap)
        return late == 0 and self.closed <= due(self.slo, progress)

    @property
    def queue_time(self) -> float | None:
        """Seconds from arrival to first residence; None if it never became resident."""
        return None if self.admitted is None else self.admitted - self.arrival

    def wait(self, until: float) -> float:
        """Seconds to the first token, or to its end without one; to `until` while it waits."""
        first = self.token_times[0] if self.token_times else self.closed
        return (until if first is None else first) - self.arrival

    @property
    def gaps(self) -> tuple[float, ...]:
        """Seconds between neighbouring tokens."""
        return tuple(b - a for a, b in pairwise(self.token_times))


@dataclass(slots=True)
class OpenRequest:
    """A request that has not ended: its record as it arrived, and what came since."""

    arrived: Record
    times: list[float] = field(default_factory=list)
    admitted: float | None = None
    cached_tokens: int = 0
    preemptions: int = 0
    demoted: str | None = None

    def record(self) -> Record:
        """The record so far."""
        return replace(
            self.arrived,
            token_times=tuple(self.times),
            admitted=self.admitted,
            cached_tokens=self.cached_tokens,
            preemptions=self.preemptions,
            demoted=self.demoted,
        )


class Recorder:
    """Subscriber of events that yields the records of a group once all its samples have ended.

    Expects `Arrived` for every request offered, those refused at the door included, and
    `ProgramOpened` before the `Arrived` of the program's first call. Without a `sink` the records
    are kept in `records`; with one nothing is kept of what has ended.
    """

    def __init__(self, sink: Callable[[tuple[Record, ...]], None] | None = None) -> None:
        self.records: list[Record] = []
        self.open: dict[str, OpenRequest] = {}
        self._sink = self.records.extend if sink is None else sink
        self._num_open: dict[str, int] = {}
        self._ended: dict[str, list[Record]] = {}
        self._programs: dict[str, float | None] = {}

    def observe(self, event: Event) -> None:
        """Learn from one event; events of unknown requests are ignored."""
        match event:
            case Stepped(outcome):
                now = outcome.ended
                for request_id, made in outcome.yields.items():
                    if made.tokens and (request := self.open.get(request_id)):
                        for _ in made.tokens:
                            request.times.append(now)
            case Arrived():
                self._arrive(event)
            case Finished(request_id, now, reason, message):
                self._close(request_id, now, finish=reason, error=message)
            case Rejected(request_id, now, reason):
                self._close(request_id, now, refused=reason)
            case ProgramOpened(program_id):
                self._programs[program_id] = None
            case ProgramClosed(program_id):
                self._programs.pop(program_id, None)
            case Admitted() | Resumed() | Preempted() | Demoted():
                self._mark(event)
            case _:
                pass

    def open_records(self) -> list[Record]:
        """The records so far of requests that have not ended; a run cut off judges them too."""
        waiting = (record for ended in self._ended.values() for record in ended)
        return [*waiting, *(request.record() for request in self.open.values())]

    def _arrive(self, event: Arrived) -> None:
        request = event.request
        record = Record(
            id=request.id,
            group=request.group,
            service_class=request.service_class,
            slo=request.slo,
            arrival=request.arrival,
            origin=request.origin,
            prompt_tokens=request.num_prompt_tokens,
            tenant=request.tenant,
            weight=request.weight,
            cap=request.cap,
            program=self._program_call(event),
        )
        self.open[request.id] = OpenRequest(record)
        self._num_open[request.group] = self._num_open.get(request.group, 0) + 1

    def _program_call(self, event: Arrived) -> ProgramCall | None:
        request = event.request
        program = request.program
        if program is None:
            return None
        deadline = request.slo.deadline if isinstance(request.slo, Program) else None
        if deadline is None and program not in self._programs:
            return None  # a call of a closed program: it is judged alone
        opened = self._programs.get(program)
        if opened is None:
            # A program opens with the arrival of its first call, which may lie before the event.
            opened = self._programs[program] = request.origin
        return ProgramCall(program, request.call or request.id, opened, deadline)

    def _mark(self, event: Admitted | Resumed | Preempted | Demoted) -> None:
        request = self.open.get(event.request_id)
        if request is None:
            return
        match event:
            case Admitted():
                request.admitted = event.now
                request.cached_tokens = event.cached_tokens
            case Preempted():
                request.preemptions += 1
            case Demoted():
                request.demoted = event.reason
            case Resumed():
                pass

    def _close(
        self,
        request_id: str,
        now: float,
        finish: FinishReason | None = None,
        refused: str | None = None,
        error: str | None = None,
    ) -> None:
        request = self.open.pop(request_id, None)
        if request is None:
            return
        record = replace(request.record(), closed=now, finish=finish, refused=refused, error=error)
        ended = self._ended.setdefault(record.group, [])
        ended.append(record)
        self._num_open[record.group] -= 1
        if self._num_open[record.group] == 0:
            del self._num_open[record.group], self._ended[record.group]
            self._sink(tuple(ended))


def by_group(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records of one submission together, the samples in order of their id."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.group, []).append(record)
    return groups
