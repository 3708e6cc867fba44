"""Least attained service by program: a call waits behind programs that have had less so far.

A call enters one of several queues by what its program had attained when it came, in seconds of
steps it took part in, and sinks as it uses up their quanta. Service is the sum over a program's
calls (`plas`), or the longest path through them: by one scalar per program (`atlas`), or by the
parents that calls name (`atlas_exact`). A program that waits far longer than it runs starts over.

Source: Autellix (arXiv 2502.13965), PLAS and ATLAS. Differs: the queues' bounds are multiples of
the median call, learned online, for the paper gives none; a promotion forgets what a call ran only
for the next promotion, never for the program's account; decodes of residents go on beside the
prompts of higher queues, and waiting calls evict nobody.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import chain, islice, pairwise
from statistics import median

from giusto.core.events import Arrived, Finished, ProgramClosed, Rejected, Stepped
from giusto.core.pack import Budget, pack
from giusto.core.plan import Plan, StepOutcome, View, Want
from giusto.core.request import FinishReason, RequestView
from giusto.policies.base import Dependencies

MODES = ("plas", "atlas", "atlas_exact")
#: The first queue ends at this many median calls, each further one at twice the one before.
FIRST_BOUND = 0.25
#: Calls that the median is taken over.
WINDOW = 255
#: Seconds, at least, from one look at whether a call starves to the next.
LEAST_SPAN = 1e-3

#: A program's id, or the group of a request that belongs to none.
Key = tuple[str | None, str]


@dataclass(frozen=True, slots=True)
class Parameters:
    """mode: plas, atlas or atlas_exact; queues: how many; beta: wait over service from which a
    call starts over; ttl: seconds after which a program without calls is forgotten.
    """

    mode: str = "atlas"
    queues: int = 7
    beta: float = 8.0
    ttl: float = 600.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.queues < 1:
            raise ValueError(f"queues must be at least 1, got {self.queues}")
        for name in ("beta", "ttl"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")


@dataclass(slots=True)
class _Program:
    """Seconds that the ended calls were served and waited; in `ends`, when each would have ended
    had it never waited, by name."""

    service: float = 0.0
    wait: float = 0.0
    active: dict[str, _Call] = field(default_factory=dict)
    ends: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Call:
    """One sample of a request. Times in seconds.

    priority: its program's service when it came; ran: what it is charged; recent: ran since its
    last promotion; used: of its queue's quantum; since: what its wait counts from.
    """

    key: Key
    name: str
    priority: float
    queue: int
    since: float
    ran: float = 0.0
    recent: float = 0.0
    used: float = 0.0

    def wait(self, now: float) -> float:
        return max(0.0, now - self.since - self.recent)


class Autellix:
    """See the module. Queue 0 is served first; until a call has ended there is no other."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self._programs: dict[Key, _Program] = {}
        self._idle: OrderedDict[Key, float] = OrderedDict()
        self._calls: dict[str, _Call] = {}
        self._runtimes: deque[float] = deque(maxlen=WINDOW)
        self._bounds: list[float] = []
        self._quanta: list[float] = []
        self._checks: list[tuple[float, str]] = []

    def attained(self, program: str) -> float:
        """Seconds that the ended calls of a program were served, by the mode; 0 if unknown."""
        known = self._programs.get((program, ""))
        return known.service if known else 0.0

    def queue(self, request_id: str) -> int:
        """Where a call that has not ended stands."""
        return self._calls[request_id].queue

    # Learning

    def observe(self, event: object) -> None:
        match event:
            case Arrived(request, now):
                self._enter(request, now)
            case Stepped(outcome):
                self._serve(outcome)
            case Finished(request_id, now, reason):
                if reason in (FinishReason.STOP, FinishReason.LENGTH):
                    self._learn(self._calls[request_id].ran)
                self._leave(request_id, now)
            case Rejected(request_id, now):
                self._leave(request_id, now)
            case ProgramClosed(program_id):
                self._close((program_id, ""))

    def _enter(self, request: RequestView, now: float) -> None:
        self._expire(now)
        key = (request.program, "") if request.program else (None, request.group)
        program = self._programs.setdefault(key, _Program())
        self._idle.pop(key, None)
        priority = self._priority(program, request)
        queue = bisect_right(self._bounds, priority)
        call = _Call(key, request.call or request.id, priority, queue, request.arrival)
        program.active[request.id] = self._calls[request.id] = call
        if queue:
            self._check_later(request.id, call, now)

    def _priority(self, program: _Program, request: RequestView) -> float:
        if self.parameters.mode == "atlas_exact":
            ends = [program.ends[name] for name in request.parents if name in program.ends]
            if ends:
                return max(ends)
        return program.service

    def _leave(self, request_id: str, now: float) -> None:
        """Book what a call took on its program, however it ended."""
        call = self._calls.pop(request_id)
        program = self._programs[call.key]
        del program.active[request_id]
        program.wait += call.wait(now)
        end = call.priority + call.ran
        if self.parameters.mode == "plas":
            program.service += call.ran
        else:
            program.service = max(program.service, end)
        if self.parameters.mode == "atlas_exact":
            program.ends[call.name] = max(end, program.ends.get(call.name, 0.0))
        if not program.active:
            self._idle[call.key] = now
            if call.key[0] is None:
                self._close(call.key)

    def _learn(self, ran: float) -> None:
        """Move the queues' bounds with the median call."""
        if ran > 0:
            self._runtimes.append(ran)
            first = FIRST_BOUND * median(self._runtimes)
            self._bounds = [first * 2**i for i in range(self.parameters.queues - 1)]
            self._quanta = [high - low for low, high in pairwise([0.0, *self._bounds])]

    def _close(self, key: Key) -> None:
        if self._idle.pop(key, None) is not None:
            del self._programs[key]

    def _expire(self, now: float) -> None:
        """Forget programs that had no call for long; cost: the ones forgotten."""
        while self._idle:
            key, since = next(iter(self._idle.items()))
            if now - since < self.parameters.ttl:
                break
            self._close(key)

    # Sinking and starting over

    def _serve(self, outcome: StepOutcome) -> None:
        """Charge a step in full to every call that took part in it."""
        now, seconds = outcome.ended, outcome.ended - outcome.started
        for request_id in outcome.yields:
            call = self._calls.get(request_id)
            if call is None:
                continue
            call.ran += seconds
            call.recent += seconds
            call.used += seconds
            if call.queue < len(self._quanta) and call.used >= self._quanta[call.queue]:
                self._sink(request_id, call, now)
        self._promote(now)

    def _sink(self, request_id: str, call: _Call, now: float) -> None:
        if not call.queue:
            # A promotion could not have helped it so far: waits in the first queue do not count.
            call.since = now - call.recent
            self._check_later(request_id, call, now)
        while call.queue < len(self._quanta) and call.used >= self._quanta[call.queue]:
            call.used -= self._quanta[call.queue]
            call.queue += 1

    def _promote(self, now: float) -> None:
        while self._checks and self._checks[0][0] <= now:
            _, request_id = heappop(self._checks)
            call = self._calls.get(request_id)
            if call is None or not call.queue:
                continue
            if self._patience(call, now) > 0:
                self._check_later(request_id, call, now)
            else:
                call.queue, call.used, call.recent, call.since = 0, 0.0, 0.0, now

    def _patience(self, call: _Call, now: float) -> float:
        """Seconds of waiting that are left until beta is reached.

        The program waited as long as its ended calls and its oldest open one did. Nobody leaves
        the first queue without service, so this is never a share of nothing.
        """
        program = self._programs[call.key]
        waited = program.wait + call.wait(now)
        oldest = next(iter(program.active.values()))
        if oldest is not call:
            waited += oldest.wait(now)
        return self.parameters.beta * (program.service + call.recent) - waited

    def _check_later(self, request_id: str, call: _Call, now: float) -> None:
        # Two waits may be running out at once, so half of what is left.
        due = now + max(self._patience(call, now) / 2, LEAST_SPAN)
        heappush(self._checks, (due, request_id))

    # Deciding

    def plan(self, view: View) -> Plan:
        num_decodes = sum(request.num_remaining_tokens == 1 for request in view.running)
        order = sorted(chain(view.running, self._first_waiting(view)), key=self._urgency)
        # As in the paper, what is in the batch goes on: a prompt takes no resident's next token.
        prefill = max(0, view.limits.max_num_batched_tokens - num_decodes)
        wants = (Want(request.id) for request in order)
        return pack(wants, view, budget=Budget(max_prefill_tokens=prefill))

    def _first_waiting(self, view: View) -> Iterator[RequestView]:
        """As many as there are slots, the first queue's first, each in order of arrival."""
        most = view.free_slots
        lines: list[list[RequestView]] = [[] for _ in range(self.parameters.queues)]
        for request in view.waiting if most else ():
            lines[self._calls[request.id].queue].append(request)
            if len(lines[0]) == most:
                break
        return islice(chain.from_iterable(lines), most)

    def _urgency(self, request: RequestView) -> tuple[int, float]:
        call = self._calls.get(request.id)
        return call.queue if call else 0, request.arrival


def make(parameters: Parameters, deps: Dependencies) -> Autellix:
    return Autellix(parameters)
