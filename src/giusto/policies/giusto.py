"""Keep as many promises as the time allows: urgency by slack, then gain density, paced steps.

Every promise is a pace: a stream states its own, a deadline needs its likely remaining tokens
within the time left. A step may last as long as the tightest pace allows; streams that ran ahead
have slack, and half of it may be spent on prompts that would come late otherwise, a quarter on
work that nobody waits for. Prompts are chosen so that most promises are kept, by what the kept
decodes leave of the time; whoever is missed, hopeless or without a promise gets the rest.

Source: the choice is Moore and Hodgson's rule for the fewest late jobs (1968) with two changes:
the machine's speed is what decoding leaves, and jobs are dropped by gain density (value per second
of work to come, after Tempo, arXiv 2504.20068). Slack of multi-call programs is split evenly.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush, nsmallest
from itertools import chain, islice
from typing import NamedTuple

from giusto.core.events import Arrived, Finished, Rejected
from giusto.core.latency import BatchShape, LatencyModel
from giusto.core.pack import Budget, pack
from giusto.core.plan import Plan, View, Want
from giusto.core.request import RequestView
from giusto.core.slo import LATE_TOKENS_PER, BestEffort, Program, Streaming, due, is_missed
from giusto.policies.base import FLOOR_SHARE, Dependencies, with_floor
from giusto.predict.calls import CallCounts

#: Tokens that a deadline is ahead of its schedule, against noise.
MARGIN = 2
#: What takes no more than this share of a step costs nothing.
FREE_SHARE = 0.01
#: Of all time that a deadline's prompt may count on, at least.
LEAST_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Parameters:
    """What was tuned (`benchmarks/policies/probe.py`), not what a user must set.

    headroom: share of the tightest slack that a step may use for the sake of a promise; spare: for
    other work; eager: prompts due within so many of the tightest TTFT targets are worth the
    former; blocking: share of the tightest TTFT target that a step may last, for an arrival
    waits until it ends; window: how many waiting prompts are weighed against each other; reserve:
    share of slots and blocks that only promises may take.
    """

    headroom: float = 0.5
    spare: float = 0.25
    eager: float = 3.0
    blocking: float = 0.5
    window: int = 32
    reserve: float = 0.25

    def __post_init__(self) -> None:
        for name in ("headroom", "spare", "blocking", "reserve"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in (0, 1], got {getattr(self, name)}")
        if not self.eager > 0:
            raise ValueError(f"eager must be above 0, got {self.eager}")
        if self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")


class Job(NamedTuple):
    """A prompt that competes for time. Ordered by `due`, when its last chunk must be done.

    work: seconds of prefill; load: share of all time that its decoding will take; density: value
    of the promise per second of work to come.
    """

    due: float
    id: str
    work: float
    load: float
    density: float


class Supply(NamedTuple):
    """Prefill time to come: so much within this step, then a share of all time.

    This step ends `step` seconds from now at the latest; `base` of it is not prefill.
    """

    step: float
    base: float
    share: float

    def until(self, span: float, load: float) -> float:
        """Seconds of prefill within `span` seconds from now, beside `load` of further decoding."""
        burst = min(self.step, span) - self.base
        return burst + max(0.0, self.share - load) * max(0.0, span - self.step)


class Giusto:
    """See the module."""

    def __init__(self, parameters: Parameters, deps: Dependencies) -> None:
        self.parameters = parameters
        self.latency = deps.latency
        self.lengths = deps.lengths
        self._dues: dict[str, float] = {}
        self._ttfts: dict[str, float] = {}
        self._calls = CallCounts()
        self._has_promises = False

    # Learning

    def observe(self, event: object) -> None:
        self._calls.observe(event)
        match event:
            case Arrived(request):
                self._has_promises |= not isinstance(request.slo, BestEffort)
                if isinstance(request.slo, Streaming) and request.slo.ttft is not None:
                    self._ttfts[request.service_class] = request.slo.ttft
            case Finished(request_id) | Rejected(request_id):
                self._dues.pop(request_id, None)

    # Deciding

    def plan(self, view: View) -> Plan:
        cost = _Cost.of(self.latency, view.running)
        batch = self._batch(view, cost)
        base = cost.decode_time(len(batch.kept))
        full = base + view.limits.max_num_batched_tokens * cost.per_prefill
        most = min(full, self._step_time(batch, base, self.parameters.headroom))
        some = min(most, self._step_time(batch, base, self.parameters.spare), batch.pace)
        jobs = self._jobs(view, batch, cost)
        ids = {job.id for job in jobs}
        chosen, dropped = choose(jobs, view.now, Supply(most, base, batch.share_left(cost)))
        soon = view.now + self.parameters.eager * min(self._ttfts.values(), default=math.inf)
        wanted = sum(job.work for job in chosen if job.due < soon)
        left = max(0.0, some - base)
        num_rest = int(max(FLOOR_SHARE * most, left - wanted) / cost.per_decode)
        rest = batch.rest[:num_rest] if view.caps.pause else batch.rest
        prefill = max(min(wanted, most - base), left - len(rest) * cost.per_decode)
        prefill = max(prefill, FREE_SHARE * base)
        order = chain(
            batch.kept,
            (job.id for job in chosen),
            rest,
            (job.id for job in dropped),
            self._other_prompts(view, batch, ids),
        )
        floor = int(max(FLOOR_SHARE * most, prefill - wanted) / cost.per_prefill)
        wants = with_floor(map(Want, order), view, max_tokens=max(1, floor))
        return pack(wants, view, budget=Budget(max_prefill_tokens=_tokens(prefill, view, cost)))

    def _step_time(self, batch: _Batch, base: float, share: float) -> float:
        """How long a step may last that spends `share` of the tightest slack."""
        blocking = self.parameters.blocking * min(self._ttfts.values(), default=math.inf)
        return max(base, min(share * batch.slack, max(blocking, 2 * base)))

    # Decodes

    def _batch(self, view: View, cost: _Cost) -> _Batch:
        """Part decoding residents into promises to keep, by urgency, and the rest."""
        now, lengths, batch = view.now, self.lengths, _Batch()
        kept: list[tuple[float, str]] = []
        deadlines: list[tuple[float, str]] = []
        tpots: defaultdict[float, int] = defaultdict(int)
        rest: list[tuple[int, float, str]] = []
        decodes: list[RequestView] = []
        for request in view.running:
            num_remaining = request.num_remaining_tokens
            if num_remaining == 1 and request.num_output_tokens:
                decodes.append(request)
            elif num_remaining:
                batch.prompts.append(request)
        fastest = cost.decode_time(len(decodes))
        for request in decodes:
            slo = request.slo
            when = due(slo, request)
            if when == math.inf:
                rest.append((2, request.arrival, request.id))
            elif is_missed(slo, request, now) or self._is_lost(request):
                rest.append((1, request.arrival, request.id))
            elif isinstance(slo, Streaming):
                tpots[slo.tpot or math.inf] += 1
                kept.append((when - now, request.id))
            else:
                left = lengths.remaining(request)
                span = self._call_due(request, view) - now
                pace = span / (left + MARGIN)
                if pace < fastest:
                    rest.append((0, request.arrival, request.id))
                    continue
                batch.pace = min(batch.pace, pace)
                batch.rate += 1 / pace
                deadlines.append((span - left * fastest, request.id))
        batch.slack = min(kept, default=(math.inf, ""))[0]
        batch.tightest = min(tpots, default=math.inf)
        batch.rate += sum(count / tpot for tpot, count in tpots.items())
        kept += deadlines
        kept.sort()
        rest.sort()
        batch.kept = [request_id for _, request_id in kept]
        batch.rest = [request_id for _, _, request_id in rest]
        return batch

    def _is_lost(self, request: RequestView) -> bool:
        """Demoted, or a stream with more late tokens than its likely length forgives."""
        if request.is_demoted or not request.late_tokens:
            return request.is_demoted
        length = request.num_output_tokens + self.lengths.remaining(request)
        return request.late_tokens > length / LATE_TOKENS_PER

    def _call_due(self, request: RequestView, view: View) -> float:
        """When a call must end for its program to make it: an even split over calls to come."""
        when = due(request.slo, request)
        if not isinstance(request.slo, Program):
            return when
        return request.arrival + (when - request.arrival) / self._calls_left(request, view)

    def _calls_left(self, request: RequestView, view: View) -> float:
        """Calls that the program is still to make, this one included; 1 for others."""
        program = view.program(request.program) if request.program else None
        if program is None:
            return 1.0
        return max(1.0, self._calls.expected(request.app) - program.num_finished_calls)

    # Prompts

    def _jobs(self, view: View, batch: _Batch, cost: _Cost) -> list[Job]:
        """Prompts whose promise can still be kept: residents and the tightest waiting ones."""
        window = self.parameters.window if view.free_slots else 0
        waiting = nsmallest(window, self._promised(view, cost)) if window else []
        share = batch.share_left(cost)
        usual = max(2 * cost.base, batch.tightest if batch.tightest < math.inf else 0.0)
        jobs = []
        for request in chain(batch.prompts, (view.waiting[index] for _, index in waiting)):
            job = self._job(request, view, usual, share, cost)
            if job is not None:
                jobs.append(job)
        jobs.sort()
        return jobs

    def _promised(self, view: View, cost: _Cost) -> Iterator[tuple[float, int]]:
        """Due times and places in line of waiting requests that could make it if alone.

        Goes over the whole line, so it asks for one length per class only.
        """
        memo, now = self._dues, view.now
        needs: dict[str, float] = {}
        for index, request in enumerate(view.waiting):
            when = memo.get(request.id)
            if when is None or request.num_output_tokens:
                when = memo[request.id] = due(request.slo, request)
            if when < now or when == math.inf:
                continue
            need = needs.get(request.service_class)
            if need is None:
                is_stream = isinstance(request.slo, Streaming)
                left = 0.0 if is_stream else self.lengths.remaining(request)
                need = needs[request.service_class] = left * cost.decode_time(1)
            if now + need <= when:
                yield when, index

    def _job(
        self, request: RequestView, view: View, usual: float, share: float, cost: _Cost
    ) -> Job | None:
        """The prompt of a request as a job; None without a promise that could be kept."""
        when = due(request.slo, request)
        missed = is_missed(request.slo, request, view.now)
        if missed or math.isinf(when) or self._is_lost(request):
            return None
        tokens = request.num_remaining_tokens
        if request.resident_since is None:
            tokens -= view.cost(request.id, 1).cached_tokens
        work = max(1, tokens) * cost.per_prefill
        left = self.lengths.remaining(request)
        calls, extra = 1.0, 0.0
        if isinstance(request.slo, Streaming):
            rate = 1 / request.slo.tpot if request.slo.tpot else 0.0
        else:
            when = self._call_due(request, view)
            calls = self._calls_left(request, view)
            # The pace of streams if there is time for it, else what its prompt leaves.
            reach = 2 * cost.base + work / max(share, LEAST_SHARE)
            pace = min(usual, (when - view.now - reach) / (left + MARGIN))
            if pace < cost.base + cost.per_decode:
                return None
            rate = 1 / pace
            when -= (left + MARGIN) * pace
            extra = cost.base * (1 - pace / usual)
        if when < view.now + work:
            return None
        value = request.weight / (calls * (work + left * (cost.per_decode + extra)))
        return Job(when, request.id, work, rate * (cost.per_decode + extra), value)

    def _other_prompts(self, view: View, batch: _Batch, jobs: set[str]) -> Iterator[str]:
        """Prompts of missed promises and best effort, in order of arrival.

        They leave a share of slots and blocks to promises to come, once there was any.
        """
        yield from (r.id for r in batch.prompts if r.id not in jobs)
        others = (r.id for r in view.waiting if r.id not in jobs)
        first = next(others, None)
        if first is None:
            return
        room, reserve = 1, self.parameters.reserve if self._has_promises else 0.0
        if view.running:
            some = _sample(view.running)
            held = sum(view.held(r.id) for r in some) * len(view.running) / len(some)
            num_blocks = view.free_blocks + held
            room = view.free_slots - int(reserve * view.limits.max_num_seqs)
            if room < 1 or view.free_blocks < reserve * num_blocks:
                return
        yield first
        yield from islice(others, room - 1)


def _tokens(prefill: float, view: View, cost: _Cost) -> int:
    """Seconds of prefill as tokens; something must move even when streams leave no time."""
    tokens = int(min(prefill / cost.per_prefill, view.limits.max_num_batched_tokens))
    return max(1 if view.running else view.limits.block_size, tokens)


def _sample(requests: Sequence[RequestView]) -> Sequence[RequestView]:
    """Every so many of them, some dozens at most: enough for a mean."""
    return requests[:: 1 + len(requests) // 32]


def choose(jobs: Sequence[Job], now: float, supply: Supply) -> tuple[list[Job], list[Job]]:
    """Pick the prompts to finish in time, one after another, with the time that there is.

    `jobs` in order of due time. Moore and Hodgson: take each in turn; when one comes late, drop
    the job of least density among those taken. With equal weights and no load the fewest possible
    are dropped. Returns (kept, dropped), both by due time; O(n log n).
    """
    by_density: list[tuple[float, str]] = []
    kept: dict[str, Job] = {}
    dropped: set[str] = set()
    work = load = 0.0
    for job in jobs:
        kept[job.id] = job
        heappush(by_density, (job.density, job.id))
        work += job.work
        load += job.load
        while kept and work > supply.until(job.due - now, load):
            _, worst = heappop(by_density)
            gone = kept.pop(worst)
            work -= gone.work
            load -= gone.load
            dropped.add(worst)
    return list(kept.values()), [job for job in jobs if job.id in dropped]


@dataclass(slots=True)
class _Batch:
    """Residents: ids of decodes to serve now and later, what the former need, and prompts.

    slack: seconds until the tightest stream's next token is due; pace: seconds that a step may
    last for the tightest deadline; tightest: the least TPOT promised; rate: tokens a second that
    all of them need.
    """

    kept: list[str] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)
    prompts: list[RequestView] = field(default_factory=list)
    slack: float = math.inf
    pace: float = math.inf
    tightest: float = math.inf
    rate: float = 0.0

    def share_left(self, cost: _Cost) -> float:
        """Share of all time that decoding the kept at their pace leaves for prompts."""
        pace = min(self.pace, self.tightest)
        return max(0.0, 1 - cost.base / pace - cost.per_decode * self.rate)


@dataclass(frozen=True, slots=True)
class _Cost:
    """Seconds of a step around the present batch, by the latency model."""

    base: float
    per_decode: float
    per_prefill: float

    @classmethod
    def of(cls, latency: LatencyModel, running: Sequence[RequestView]) -> _Cost:
        contexts = [r.num_tokens for r in _sample(running) if r.num_output_tokens]
        context = sum(contexts) // len(contexts) if contexts else 128
        one = latency.step_time(BatchShape(decode_seqs=1, kv_tokens=context))
        nine = latency.step_time(BatchShape(decode_seqs=9, kv_tokens=9 * context))
        prefill = latency.step_time(BatchShape(decode_seqs=1, kv_tokens=context, prefill_tokens=64))
        tiny = 1e-7
        per_decode = max((nine - one) / 8, tiny)
        return cls(max(one - per_decode, tiny), per_decode, max((prefill - one) / 64, tiny))

    def decode_time(self, num_decodes: int) -> float:
        return self.base + num_decodes * self.per_decode


def make(parameters: Parameters, deps: Dependencies) -> Giusto:
    return Giusto(parameters, deps)
