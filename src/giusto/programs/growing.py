"""A program under way: its graph as far as it is known, put together from events.

Works from ids alone. A call goes to the stage that the client names, else behind the parents that
it names, else behind the calls that had ended when it came: what overlaps in time could have run
side by side. Stages are counted from the first one named, whatever its number, and no stage is left
empty. Unknown parents count as not named, and a call id that comes again names the newer call.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from giusto.core.request import ProgramRef, RequestView
from giusto.programs.graph import Graph, Stage, new_tokens

#: Calls of one program that are written down; one that makes more is not learned from.
MAX_CALLS = 4096
#: Seconds; a longer gap between calls is a person's, or a clock's.
MAX_TOOL_TIME = 3600.0


@dataclass(slots=True)
class Call:
    """A call's place: `number` counts among those of its stage. `ended` once it was answered.

    `new_tokens` of its prompt are not of a call of the stage before.
    """

    stage: int
    number: int
    new_tokens: int
    is_last: bool
    ended: float | None = None


@dataclass(slots=True)
class _Slot:
    """A stage as it grows: a call not yet answered has no lengths."""

    calls: list[tuple[int, int] | None] = field(default_factory=list)
    tool_time: float = 0.0
    longest: int = 0


class Growing:
    """One program's calls: those under way by request, all of them by stage.

    Bounded: calls beyond `MAX_CALLS` are placed and answered, but not written down.
    """

    def __init__(self) -> None:
        self.app: str | None = None
        self.under_way: dict[str, Call] = {}
        self.num_calls = 0
        self.num_answered = 0
        self._requests: dict[str, RequestView] = {}
        self._slots: list[_Slot] = []
        self._named: dict[str, Call] = {}
        self._base: int | None = None
        self._reached = -1  # the highest stage of which a call was answered
        self._last_end: float | None = None
        self._tool_time = 0.0
        self._tokens = 0
        self._is_whole = True
        self._was_cut = False

    @property
    def num_stages(self) -> int:
        return len(self._slots)

    def arrive(self, request: RequestView) -> Call:
        """Place a call that came."""
        self.app = self.app or request.app
        stage = self._stage(request)
        if stage == len(self._slots):
            self._slots.append(_Slot())
        slot = self._slots[stage]
        gap = max(slot.tool_time, self._gap(request))
        self._tool_time += gap - slot.tool_time
        slot.tool_time = gap
        before = (call for call in self._slots[stage - 1].calls if call) if stage else ()
        new = new_tokens(request.num_prompt_tokens, before)
        call = Call(stage, len(slot.calls), new, _is_final(request))
        self.num_calls += 1
        if self.num_calls > MAX_CALLS:
            self._is_whole = False
        else:
            slot.calls.append(None)
            self._named[request.call or request.id] = call
        self.under_way[request.id] = call
        self._requests[request.id] = request
        return call

    def answer(self, request_id: str, now: float) -> tuple[Call, int] | None:
        """Write down the lengths of a call that ended with an answer; tells its output tokens."""
        call = self.under_way.pop(request_id, None)
        if call is None:
            return None
        request = self._requests.pop(request_id)
        output = max(1, request.num_output_tokens)
        slot = self._slots[call.stage]
        if call.number < len(slot.calls):
            slot.calls[call.number] = (request.num_prompt_tokens, output)
        self._tokens += max(0, output - slot.longest)
        slot.longest = max(slot.longest, output)
        call.ended = now
        self.num_answered += 1
        self._reached = max(self._reached, call.stage)
        self._last_end, self._was_cut = now, False
        return call, output

    def fail(self, request_id: str, *, by_client: bool) -> None:
        """Strike out a call that ended without an answer.

        A refusal or an error leaves the program cut short, and so does a client's cancel unless it
        goes on; a program cut short teaches nothing about how programs end.
        """
        if self.under_way.pop(request_id, None) is not None:
            del self._requests[request_id]
            self._was_cut = True
            self._is_whole = self._is_whole and by_client

    def close(self) -> Graph | None:
        """The graph, if the program came to its end and all of it was written down."""
        kept = (
            Stage(tuple(call for call in slot.calls if call), slot.tool_time)
            for slot in self._slots
        )
        stages = [stage for stage in kept if stage.calls]
        if not stages or not self._is_whole or self._was_cut or self.under_way:
            return None
        return Graph(self.app, stages)

    def num_answered_in(self, stage: int) -> int:
        """How many calls of a stage were answered."""
        return sum(call is not None for call in self._slots[stage].calls)

    def spent(self, stage: int, guess: float, token_time: float) -> float:
        """Seconds of work so far; a stage without an answer takes `guess` tokens."""
        open_tokens = 0.0 if self._slots[stage].longest else guess
        return self._tool_time + token_time * (self._tokens + open_tokens)

    def _stage(self, request: RequestView) -> int:
        known = self._known(request.parents)
        after = max((call.stage for call in known), default=self._reached)
        if request.stage is not None:
            if self._base is None:
                self._base = request.stage - (after + 1)
            after = request.stage - self._base - 1
        return max(0, min(after + 1, len(self._slots), MAX_CALLS))

    def _gap(self, request: RequestView) -> float:
        """Seconds from the end of what the call waited for; a clock that jumped back gives 0."""
        ends = [call.ended for call in self._known(request.parents) if call.ended is not None]
        after = max(ends, default=self._last_end)
        if after is None or not request.arrival > after:
            return 0.0
        return min(request.arrival - after, MAX_TOOL_TIME)

    def _known(self, parents: Iterable[str]) -> list[Call]:
        return [self._named[parent] for parent in parents if parent in self._named]


def _is_final(request: RequestView) -> bool:
    """Whether the client says that no call will follow; a view need not carry that."""
    ref = getattr(request, "ref", None)
    return isinstance(ref, ProgramRef) and ref.final
