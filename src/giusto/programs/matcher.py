"""Foretells programs from those that ended: events in, outlooks out.

All work is done when a call comes or ends, a few kernels per candidate of history; `outlook` is a
look-up. Whatever the events say, nothing here raises and nothing grows without bound: a program
that never ends is forgotten when too many others are open, an ending that comes twice finds
nothing, and a clock that jumps makes a tool look quick or slow, no more. No length of a call is
known before it has ended.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from giusto.core.events import Arrived, Finished, Foretold, ProgramClosed, Rejected
from giusto.core.request import FinishReason, RequestView
from giusto.programs import budget
from giusto.programs.base import LAST, Outlook
from giusto.programs.graph import MEASURES, OUTPUT, PATH, STAGES, TOOLS, Row
from giusto.programs.growing import Growing
from giusto.programs.history import CAPACITY, History, Past
from giusto.programs.match import Match, Neighbours, weighted_median
from giusto.programs.quantiles import Quantiles, bucket
from giusto.programs.trust import Claim, Judged, Trust

#: Open programs remembered; the longest untouched is forgotten first.
MAX_OPEN = 4096
#: Judgements kept until somebody asks for them; the oldest go first.
MAX_UNTOLD = 1024
#: Fewer candidates than this tell less than the app's quantiles: the choice among them is chance.
ENOUGH = 10
#: After so many answered calls a program that is another's to the token repeats it. Before, equal
#: lengths may be chance: they settle how its time is shared, but not what is to come.
SURE = 2


@dataclass(slots=True)
class _Place:
    """What calls of one stage of a program look out on; shared by them."""

    outlook: Outlook = LAST


@dataclass(slots=True)
class _Open:
    """A program under way."""

    match: Match
    growing: Growing = field(default_factory=Growing)
    places: dict[int, _Place] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    tokens: int = 0


class HistoryMatcher:
    """A `ProgramMatcher` that compares with history and falls back on the app's quantiles.

    Once a program opens its candidates are settled; what ends later teaches later ones.
    """

    def __init__(
        self, past: Iterable[Past] = (), *, capacity: int = CAPACITY, max_open: int = MAX_OPEN
    ) -> None:
        self.history = History(past, capacity=capacity)
        self.quantiles = Quantiles()
        self.trust = Trust()
        self.token_time = budget.TokenTime()
        self.max_open = max_open
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._calls: dict[str, tuple[RequestView, _Place]] = {}
        self._judged: deque[Judged] = deque(maxlen=MAX_UNTOLD)
        for each in self.history.past():
            self.quantiles.observe(each.graph)

    def outlook(self, request: RequestView) -> Outlook:
        known = self._calls.get(request.id)
        return LAST if known is None else known[1].outlook

    def ahead(self, program_id: str) -> Outlook | None:
        """What a program that goes on has before it once its calls under way have ended.

        Of the present stage counts what it still lacks. None where nothing is known.
        """
        program = self._open.get(program_id)
        if program is None or not program.growing.num_stages:
            return None
        measures = self._matched_rest(program) if self._is_matched(program) else None
        measures = measures or self._counted_rest(program) or self._matched_rest(program)
        return None if measures is None else _outlook(measures)

    def poll(self, now: float) -> list[Foretold]:
        """How programs came out that have ended since the last call, beside what was foretold."""
        if not self._judged:
            return []
        told = [Foretold(*judged, now) for judged in self._judged]
        self._judged.clear()
        return told

    def observe(self, event: object) -> None:
        match event:
            case Arrived(request):
                if request.program is not None:
                    self._arrive(request.program, request)
            case Finished(request_id, now, reason):
                self._end(request_id, now, reason)
            case Rejected(request_id, now):
                self._end(request_id, now, FinishReason.ERROR)
            case ProgramClosed(program_id, now):
                self._close(program_id, now)
            case _:
                pass

    def _arrive(self, name: str, request: RequestView) -> None:
        if request.id in self._calls:
            self._end(request.id, request.arrival, FinishReason.ERROR)
        program = self._open.get(name)
        if program is None:
            program = self._open[name] = _Open(Match(self.history.candidates(request.app)))
            if len(self._open) > self.max_open:
                self._drop(self._open.popitem(last=False)[1])
        self._open.move_to_end(name)
        call = program.growing.arrive(request)
        program.match.arrive(call, request.num_prompt_tokens)
        place = _Place() if call.is_last else program.places.setdefault(call.stage, _Place())
        self._calls[request.id] = (request, place)
        self._look(program)

    def _end(self, request_id: str, now: float, reason: FinishReason) -> None:
        known = self._calls.pop(request_id, None)
        if known is None:
            return
        request = known[0]
        program = self._open[request.program or ""]
        if reason in (FinishReason.ABORT, FinishReason.ERROR):
            program.growing.fail(request_id, by_client=reason is FinishReason.ABORT)
        else:
            self._answer(program, request, now)
        still = {call.stage for call in program.growing.under_way.values()}
        program.places = {at: place for at, place in program.places.items() if at in still}
        self._look(program)

    def _answer(self, program: _Open, request: RequestView, now: float) -> None:
        ended = program.growing.answer(request.id, now)
        if ended is None:
            return
        call, output = ended
        program.tokens += output
        program.match.answer(call, output)
        self.token_time.observe(request.first_token, request.last_token, output)
        done = program.growing.num_answered
        if done == 1 or bucket(done) != bucket(done - 1):
            self._claim(program)
        elif program.claims:
            program.claims[-1].calls += 1

    def _claim(self, program: _Open) -> None:
        """Put on record what both ways say, to be judged at the end."""
        matched, counted = self._matched_rest(program), self._counted_rest(program)
        if matched is not None and counted is not None:
            program.claims.append(Claim(program.tokens, matched[OUTPUT], counted[OUTPUT]))

    def _close(self, name: str, now: float) -> None:
        program = self._open.pop(name, None)
        if program is None:
            return
        self._drop(program)
        graph = program.growing.close()
        if graph is not None:
            self._judged += self.trust.judge(graph.app, program.claims, program.tokens)
            self.history.credit(program.match.neighbours(), now)
            self.history.add(graph, now)
            self.quantiles.observe(graph)

    def _drop(self, program: _Open) -> None:
        for request_id in program.growing.under_way:
            self._calls.pop(request_id, None)

    # What is to come

    def _look(self, program: _Open) -> None:
        """Renew what the calls under way look out on."""
        if not program.places:
            return
        counted = None if self._is_matched(program) else self._counted(program)
        if counted is not None:
            for stage, place in program.places.items():
                place.outlook = _outlook(counted, self._spent_share(program, stage, counted))
            return
        found = self._alike(program)
        in_time = program.match.repeats() or found
        for stage, place in program.places.items():
            place.outlook = self._matched(found, in_time, stage) if found else LAST

    def _matched(self, found: Neighbours, in_time: Neighbours, stage: int) -> Outlook:
        time = self.token_time.seconds
        part = sum(weight * graph.share(stage, time) for graph, weight in in_time)
        part /= sum(weight for _, weight in in_time)
        rows = [(graph.after(stage), weight) for graph, weight in found]
        return _outlook(_medians(rows), min(1.0, part))

    def _alike(self, program: _Open, *, going_on: bool = False) -> Neighbours:
        """Those that tell what is to come; a program that repeats one is as that was."""
        match = program.match
        is_sure = program.growing.num_answered >= SURE
        repeats = match.repeats(going_on=going_on) if is_sure else []
        return repeats or match.neighbours(going_on=going_on)

    def _is_matched(self, program: _Open) -> bool:
        if not self.trust.in_match(program.growing.app):
            return False
        return len(program.match) >= ENOUGH or bool(program.match.repeats())

    def _counted(self, program: _Open) -> Row | None:
        """What the app's programs had left once as many calls had ended as have come."""
        growing = program.growing
        return self.quantiles.ahead(growing.app, growing.num_answered + len(growing.under_way))

    def _spent_share(self, program: _Open, stage: int, counted: Row) -> float:
        """The share of a program without a match: its own work so far, and what is counted on."""
        time = self.token_time.seconds
        stages, path = counted[STAGES], counted[PATH]
        spent = program.growing.spent(stage, path / stages if stages else 0.0, time)
        return budget.share(spent, counted[TOOLS] + time * path)

    def _matched_rest(self, program: _Open) -> Row | None:
        growing = program.growing
        stage = growing.num_stages - 1
        answered = growing.num_answered_in(stage)
        found = self._alike(program, going_on=not growing.under_way)
        rows = [(graph.rest(stage, answered), weight) for graph, weight in found]
        return _medians(rows) if rows else None

    def _counted_rest(self, program: _Open) -> Row | None:
        growing = program.growing
        return self.quantiles.ahead(growing.app, growing.num_answered, going_on=True)


def _outlook(row: Row, part: float = 1.0) -> Outlook:
    stages, calls, prompt, output, path, tools = row
    return Outlook(stages, calls, prompt, output, path, tools, part)


def _medians(rows: list[tuple[Row, float]]) -> Row:
    return tuple(
        weighted_median([(row[measure], weight) for row, weight in rows])
        for measure in range(len(MEASURES))
    )
