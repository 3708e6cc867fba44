"""Service density, by which `tempo` and `jitserve` rank: value per second of generation to come.

Value is what a request earns if its length bound holds and each step takes as long as steps do
now: the gain of `core.slo`. Calls that are judged with their program share the program's density.
Densities are set when a request has arrived and at the start of each frame, and stand in between.

Source: Tempo and JITServe (arXiv 2504.20068): the analyzer and the priority. Differs: no true
length is used anywhere; a stream's last due time is that of its bound's last token, and of its late
tokens none counts; the predictor learns online, so that bounds are renewed as requests end too.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import nsmallest
from statistics import median

from giusto.core.events import (
    Arrived,
    Estimated,
    Finished,
    Preempted,
    ProgramClosed,
    Rejected,
    Stepped,
)
from giusto.core.plan import View
from giusto.core.request import FinishReason, RequestView
from giusto.core.slo import (
    BestEffort,
    Program,
    Streaming,
    Value,
    due,
    is_missed,
    lateness_factor,
    token_due,
)
from giusto.policies.base import Dependencies
from giusto.policies.bounds import Bounds, MeanLengths
from giusto.policies.frames import Frames, Rank, Waits
from giusto.predict.base import LengthPredictor
from giusto.predict.endings import ANSWERED

RANKS = ("density", "sjf")
ESTIMATES = ("bound", "mean")
#: Arrivals over whose values the median is taken.
WINDOW = 255
#: Of a request that nobody has told of.
UNRANKED: Rank = (0.0, math.inf)
#: Of the waiting, so many of the densest are found once per frame; a free slot looks at no others.
HEADS = 256
#: A line that is short enough to be looked through for each free slot.
SHORT = 1000
#: Bounds that are renewed per frame for the sake of others' endings.
RENEWED = 256


@dataclass(frozen=True, slots=True)
class Ranking:
    """What both policies may be told.

    rank: density, or sjf for least generation to come first; estimate: bound, or mean for the mean
    length of all answers; quantile: level of the bound; refresh: output tokens after which it is
    asked anew; split: whether a program's stage has its share of the deadline; w_prompt, w_decode:
    value of a prompt and an output token; alpha: decay with lateness, inf to leave nothing of what
    is late; best_effort: price of a token without a promise; delta: share of the median value that
    a request's value grows by with each frame that it waits.
    """

    rank: str = "density"
    estimate: str = "bound"
    quantile: float = 0.95
    refresh: int = 50
    split: bool = True
    w_prompt: float = 1.0
    w_decode: float = 1.0
    alpha: float = 1.0
    best_effort: float = 0.01
    delta: float = 0.0

    def __post_init__(self) -> None:
        if self.rank not in RANKS:
            raise ValueError(f"rank must be one of {', '.join(RANKS)}, got {self.rank!r}")
        if self.estimate not in ESTIMATES:
            known = ", ".join(ESTIMATES)
            raise ValueError(f"estimate must be one of {known}, got {self.estimate!r}")
        if not 0 < self.quantile < 1:
            raise ValueError(f"quantile must lie between 0 and 1, got {self.quantile}")
        if self.refresh < 1:
            raise ValueError(f"refresh must be at least 1, got {self.refresh}")
        for name in ("w_prompt", "best_effort", "delta"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 < self.w_decode < math.inf:
            raise ValueError(f"w_decode must be above 0, got {self.w_decode}")
        if not self.alpha > 0:
            raise ValueError(f"alpha must be above 0, got {self.alpha}")


@dataclass(slots=True)
class _Entry:
    """What a request would earn, in weighted tokens, and by when; good while it emits nothing.

    earned: whatever comes; opening: if the first token comes by `first_due`; rest: if the last one
    comes by `last_due`; work: output tokens to come; missed_at: when the promise is past keeping;
    asked: renewals of bounds until then.
    """

    request: RequestView
    pool: _Pool | None
    emitted: int = -1
    asked: int = 0
    earned: float = 0.0
    opening: float = 0.0
    first_due: float = math.inf
    rest: float = 0.0
    last_due: float = math.inf
    work: float = 1.0
    missed_at: float = math.inf


@dataclass(slots=True)
class _Pool:
    """A program that is judged as a whole: its live calls, and the value of the answered ones.

    `is_lost` once a call was refused or failed: then it earns nothing, whatever comes.
    """

    live: dict[str, _Entry] = field(default_factory=dict)
    done: float = 0.0
    is_lost: bool = False


class Densities:
    """Ranks of all open requests. `spent` are those that no longer earn anything in time."""

    def __init__(self, ranking: Ranking, deps: Dependencies, frames: Frames) -> None:
        self.ranking = ranking
        self.frames = frames
        self.waits = Waits(frames)
        self.spent: set[str] = set()
        self._mean = MeanLengths()
        lengths: LengthPredictor = self._mean if ranking.estimate == "mean" else deps.lengths
        self._bounds = Bounds(lengths, ranking.quantile, ranking.refresh)
        self._programs = deps.programs
        self._value = Value(ranking.w_prompt, ranking.w_decode, ranking.alpha)
        self._entries: dict[str, _Entry] = {}
        self._fresh: dict[str, _Entry] = {}
        self._pools: dict[str, _Pool] = {}
        self._ranks: dict[str, Rank] = {}
        self._heads: set[str] | None = None
        self._worths: deque[float] = deque(maxlen=WINDOW)
        self._delta = 0.0

    # Asking

    def rank(self, request: RequestView) -> Rank:
        """Where a request stands: the smaller first."""
        return self._ranks.get(request.id, UNRANKED)

    def density(self, request: RequestView) -> float:
        """Weighted tokens per second of generation to come."""
        return -self.rank(request)[0]

    def gain(self, request: RequestView, seconds: float) -> float:
        """Weighted tokens that so many seconds of generation bring."""
        cost, left = self.rank(request)
        return -cost * min(seconds, left)

    def first_waiting(self, view: View, most: int) -> list[RequestView]:
        """The densest in the line, ties by arrival."""
        line, heads = view.waiting, self._heads
        if most and heads is not None and len(line) > SHORT:
            few = [request for request in line if request.id in heads]
            line = few if len(few) >= most else line
        return nsmallest(most, line, key=self.rank) if most else []

    def evictable(self, view: View) -> Iterator[RequestView]:
        """Residents but for the pin, and for those that are about to leave."""
        pin = view.pin.request_id if view.pin else None
        return (r for r in view.running if r.id != pin and r.num_remaining_tokens)

    def earned(self, request_id: str, now: float) -> float:
        """Value that an answer brought which ends now; 0 for best effort."""
        entry = self._entries.get(request_id)
        if entry is None or isinstance(entry.request.slo, BestEffort):
            return 0.0
        request = entry.request
        if isinstance(request.slo, Streaming):
            return self._stream_earned(request.slo, request)
        worth = self._worth(request, request.num_output_tokens)
        return worth * self._late(request, due(request.slo, request), now)

    # Learning

    def observe(self, event: object) -> None:
        self._mean.observe(event)
        self._bounds.observe(event)
        self.waits.observe(event)
        match event:
            case Arrived(request):
                self._enter(request)
            case Stepped(outcome):
                if self.frames.count(outcome):
                    self._rank_all(outcome.ended)
            case Estimated(request_id):
                if request_id in self._entries:
                    self._entries[request_id].emitted = -1
            case Preempted(request_id):
                if self._heads is not None:
                    self._heads.add(request_id)
            case Finished(request_id, _, reason):
                self._leave(request_id, reason)
            case Rejected(request_id):
                self._leave(request_id, FinishReason.ERROR)
            case ProgramClosed(program_id):
                self._close(program_id)

    def settle(self, now: float) -> None:
        """Rank who has arrived since; asked once per plan, and again it changes nothing.

        Not at the arrival itself: predictor and matcher may hear of that later than a policy does.
        """
        if not self._fresh:
            return
        pools: dict[str, _Pool] = {}
        for request_id, entry in self._fresh.items():
            total = self._measure(entry)
            self._worths.append(self._worth(entry.request, total))
            if entry.pool is None:
                self._rank_alone(entry, now)
            else:
                pools[entry.request.program or ""] = entry.pool
            if self._heads is not None:
                self._heads.add(request_id)
        for pool in pools.values():
            self._rank_pool(pool, now)
            if self._heads is not None:
                self._heads.update(pool.live)
        self._fresh.clear()

    def _enter(self, request: RequestView) -> None:
        pool = None
        if isinstance(request.slo, Program) and request.program is not None:
            pool = self._pools.setdefault(request.program, _Pool())
        entry = self._entries[request.id] = self._fresh[request.id] = _Entry(request, pool)
        if pool is not None:
            pool.live[request.id] = entry

    def _leave(self, request_id: str, reason: FinishReason) -> None:
        entry = self._entries.pop(request_id, None)
        self._fresh.pop(request_id, None)
        self._ranks.pop(request_id, None)
        self.spent.discard(request_id)
        if entry is None or entry.pool is None:
            return
        pool = entry.pool
        pool.live.pop(request_id, None)
        pool.is_lost |= reason is FinishReason.ERROR
        if reason in ANSWERED:
            pool.done += self._worth(entry.request, entry.request.num_output_tokens)

    def _close(self, program_id: str) -> None:
        """Forget a program; where it was closed elsewhere, calls may go on here, alone."""
        pool = self._pools.pop(program_id, None)
        for entry in pool.live.values() if pool else ():
            entry.pool = None

    # Ranking

    def _rank_all(self, now: float) -> None:
        """Some microseconds per resident and program, less than one per request that waits."""
        self._delta = self.ranking.delta * median(self._worths or (0.0,))
        self.spent.clear()
        renewals, num_renewed = self._bounds.num_renewals, 0
        for entry in self._entries.values():
            if entry.request.num_output_tokens != entry.emitted:
                self._measure(entry)
            elif entry.asked != renewals and num_renewed < RENEWED:
                num_renewed += 1
                self._measure(entry)
            if entry.pool is None:
                self._rank_alone(entry, now)
        for pool in self._pools.values():
            if pool.live:
                self._rank_pool(pool, now)
        self._heads = None
        if len(self._entries) > SHORT:
            waiting = (i for i, e in self._entries.items() if e.request.resident_since is None)
            self._heads = set(nsmallest(HEADS, waiting, key=self._ranks.__getitem__))

    def _rank_alone(self, entry: _Entry, now: float) -> None:
        request, tau, value = entry.request, self.frames.tau, entry.earned
        left = entry.work * tau
        if entry.opening:
            soon, when = now + tau, entry.first_due
            value += entry.opening * (1.0 if soon <= when else self._late(request, when, soon))
        if entry.rest:
            end, when = now + left, entry.last_due
            value += entry.rest * (1.0 if end <= when else self._late(request, when, end))
        if value <= 0:
            self.spent.add(request.id)
        if self._delta and now <= entry.missed_at:
            value += self._delta * self.waits.frames(request.id)
        self._set(request.id, value / left, left)

    def _rank_pool(self, pool: _Pool, now: float) -> None:
        """One density for all live calls: the program's value over what is left of it.

        Value and work are of the same calls: answered, live and expected. The slowest live call
        tells whether the stage makes its share of the deadline.
        """
        tau, value, work, bonus, factor = self.frames.tau, pool.done, 0.0, 0.0, 1.0
        to_come = work_to_come = 0.0
        for request_id, entry in pool.live.items():
            request, end = entry.request, now + entry.work * tau
            value += entry.rest
            work += entry.work
            if now <= entry.missed_at:
                bonus += self._delta * self.waits.frames(request_id)
            outlook = self._programs.outlook(request)
            share = outlook.share if self.ranking.split else 1.0
            factor = min(factor, self._late(request, entry.last_due, end, share))
            # Of the stage that came last: what is expected follows on that.
            to_come = self._price(outlook.prompt_tokens, outlook.output_tokens) * request.weight
            work_to_come = outlook.output_tokens
            if self._late(request, entry.last_due, end) <= 0:
                self.spent.add(request_id)
        value = 0.0 if pool.is_lost else factor * (value + to_come) + bonus
        density = value / ((work + work_to_come) * tau)
        for request_id, entry in pool.live.items():
            self._set(request_id, density, entry.work * tau)

    def _set(self, request_id: str, density: float, left: float) -> None:
        if self.ranking.rank == "sjf":
            density = 1 / left
        self._ranks[request_id] = (-density, left)

    # Values

    def _measure(self, entry: _Entry) -> float:
        """Find out what a request would earn and by when; returns its length bound."""
        request, slo = entry.request, entry.request.slo
        total = self._bounds.total(request)
        entry.emitted, entry.asked = request.num_output_tokens, self._bounds.num_renewals
        entry.work = total - entry.emitted
        entry.missed_at = due(slo, request)
        if isinstance(slo, BestEffort):
            entry.earned = self.ranking.best_effort * self._worth(request, total)
        elif isinstance(slo, Streaming):
            origin, first = request.origin, request.first_token
            entry.opening = 0.0
            if first is None:
                entry.opening = self._worth(request, 0)
                entry.first_due = token_due(slo, 0, origin, first)
            else:
                # Whether a stream that has begun is missed changes with its tokens alone.
                entry.missed_at = -math.inf if is_missed(slo, request, first) else math.inf
            entry.earned = self._stream_earned(slo, request)
            entry.rest = request.weight * self._price(0, entry.work)
            entry.last_due = token_due(slo, math.ceil(total) - 1, origin, first)
        else:
            entry.rest = self._worth(request, total)
            entry.last_due = due(slo, request)
        return total

    def _stream_earned(self, slo: Streaming, request: RequestView) -> float:
        """What a stream has earned: its prompt by its first token, and tokens in time."""
        first = request.first_token
        if first is None:
            return 0.0
        begun = self._late(request, token_due(slo, 0, request.origin, first), first)
        in_time = request.num_output_tokens - request.late_tokens
        return request.weight * self._price(request.num_prompt_tokens * begun, in_time)

    def _price(self, prompt_tokens: float, output_tokens: float) -> float:
        return self._value.w_prompt * prompt_tokens + self._value.w_decode * output_tokens

    def _worth(self, request: RequestView, output_tokens: float) -> float:
        """Value of a whole request in time, best effort at the price of a promise."""
        return request.weight * self._price(request.num_prompt_tokens, output_tokens)

    def _late(self, request: RequestView, when: float, end: float, share: float = 1.0) -> float:
        """What lateness leaves of a value that is due `when`, or at that share of its time."""
        origin = request.origin
        return lateness_factor(share * (when - origin), end - origin, self._value.alpha)
