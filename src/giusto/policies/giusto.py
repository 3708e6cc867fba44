"""Keep as many promises as the time allows: urgency by slack, then gain density, paced steps.

A step may last no longer than the tightest running stream can wait. Within that time come, in
order: tokens of promises that can still be kept, the tightest first; prompts of those, chosen so
that the most of them make it; then, with what is left, promises already missed and best effort.
A stream ahead of its schedule, or a deadline with time to spare, is paused when the step is full.

Source: the choice of prompts is Moore and Hodgson's rule for the fewest late jobs (1968), with
jobs dropped by gain density; the slack of multi-call programs is split evenly over their calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush, nsmallest
from itertools import chain

from giusto.core.events import Arrived, Finished, Preempted, ProgramClosed, Rejected
from giusto.core.latency import BatchShape, LatencyModel
from giusto.core.pack import Budget, pack
from giusto.core.plan import Plan, View, Want
from giusto.core.request import RequestView
from giusto.core.slo import LATE_TOKENS_PER, Deadline, Program, Streaming, due, is_missed
from giusto.policies.base import Dependencies, with_floor


@dataclass(frozen=True, slots=True)
class Parameters:
    """What was tuned (`benchmarks/policies`), not what a user must set.

    headroom: share of the tightest stream's slack that a step may use; blocking: share of the
    tightest TTFT target that a step may last, for an arrival waits until it ends; window: how
    many waiting prompts are weighed against each other; reserve: share of the slots that only
    promises may take.
    """

    headroom: float = 0.5
    blocking: float = 0.35
    window: int = 64
    reserve: float = 0.25

    def __post_init__(self) -> None:
        for name in ("headroom", "blocking", "reserve"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in (0, 1], got {getattr(self, name)}")
        if self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")


@dataclass(frozen=True, slots=True)
class Job:
    """A prompt that competes for prefill time: `due` is when its last chunk must be done.

    Ordered by due time. `density` is what keeping the promise is worth per prompt token.
    """

    due: float
    id: str
    tokens: int
    density: float


class Giusto:
    """See the module."""

    def __init__(self, parameters: Parameters, deps: Dependencies) -> None:
        self.parameters = parameters
        self.latency = deps.latency
        self.lengths = deps.lengths
        self._jobs: dict[str, Job | None] = {}
        self._ttfts: dict[str, float] = {}
        self._calls = _CallCounts()

    # Learning

    def observe(self, event: object) -> None:
        self._calls.observe(event)
        match event:
            case Arrived(request):
                if isinstance(request.slo, Streaming) and request.slo.ttft is not None:
                    self._ttfts[request.service_class] = request.slo.ttft
            case Preempted(request_id) | Finished(request_id) | Rejected(request_id):
                self._jobs.pop(request_id, None)

    # Deciding

    def plan(self, view: View) -> Plan:
        step = _StepCost.of(self.latency, view.running)
        keep, rest = self._split_decodes(view, step)
        time = self._time(view, keep, step)
        num_prefill = int(max(0.0, time - step.decode_time(len(keep))) / step.per_prefill_token)
        jobs = self._jobs_of(view)
        chosen, dropped = choose(jobs, view.now, self._prefill_rate(num_prefill, time, step))
        order = chain(
            keep,
            (job.id for job in chosen),
            self._fill(rest, time, len(keep), step),
            (job.id for job in dropped),
            self._hopeless_prompts(view, jobs),
        )
        wants = with_floor((Want(request_id) for request_id in order), view)
        # A prompt must move even when the streams leave no time for it: a twentieth of a step.
        least = max(view.limits.block_size, view.limits.max_num_batched_tokens // 20)
        return pack(wants, view, budget=Budget(max_prefill_tokens=max(num_prefill, least)))

    def _split_decodes(
        self, view: View, step: _StepCost
    ) -> tuple[list[str], list[tuple[float, str]]]:
        """Part decoding residents into those to serve now and those that can wait.

        Returns ids by slack, and (rank, id) pairs of the rest, lower rank first.
        """
        keep: list[tuple[float, str]] = []
        rest: list[tuple[float, str]] = []
        for request in view.running:
            if request.num_remaining_tokens != 1 or request.num_output_tokens == 0:
                continue
            if math.isinf(due(request.slo, request)):
                rest.append((2.0, request.id))
            elif self._is_lost(request, view.now):
                rest.append((1.0, request.id))
            else:
                keep.append((self._slack(request, view, step), request.id))
        keep.sort()
        return [request_id for _, request_id in keep], sorted(rest)

    def _time(self, view: View, keep: list[str], step: _StepCost) -> float:
        """How long this step may last: as long as the tightest stream can wait."""
        blocking = self.parameters.blocking * min(self._ttfts.values(), default=1.0)
        floor = step.decode_time(len(keep))
        slack = math.inf
        for request_id in keep:
            request = view.request(request_id)
            if isinstance(request.slo, Streaming):
                slack = min(slack, due(request.slo, request) - view.now)
        return max(floor, min(self.parameters.headroom * slack, max(blocking, 2 * floor)))

    def _fill(
        self, rest: Sequence[tuple[float, str]], time: float, num_kept: int, step: _StepCost
    ) -> Iterator[str]:
        """Decodes without a promise, as many as the step has time for."""
        room = int(max(0.0, time - step.decode_time(num_kept)) / step.per_decode)
        free = max(0, step.free_decodes - num_kept)
        return (request_id for _, request_id in rest[: max(room, free)])

    def _hopeless_prompts(self, view: View, jobs: Sequence[Job]) -> Iterator[str]:
        """Prompts of missed promises and best effort, in order of arrival.

        They leave a share of the slots to promises still to come.
        """
        kept = {job.id for job in jobs}
        reserve = int(self.parameters.reserve * view.limits.max_num_seqs)
        for request in view.running:
            if request.num_output_tokens == 0 and request.id not in kept:
                yield request.id
        for request in view.waiting[: max(0, view.free_slots - reserve)]:
            if request.id not in kept:
                yield request.id

    # Prompts

    def _jobs_of(self, view: View) -> list[Job]:
        """Prompts whose promise can still be kept: residents and the tightest waiting ones."""
        jobs = [
            job
            for request in view.running
            if request.num_output_tokens == 0 and request.num_remaining_tokens > 0
            if (job := self._job(request, view)) is not None and job.due >= view.now
        ]
        memo, now = self._jobs, view.now
        waiting = []
        for request in view.waiting:
            if request.id not in memo:
                memo[request.id] = self._job(request, view)
            job = memo[request.id]
            if job is not None and job.due >= now:
                waiting.append(job)
        jobs += nsmallest(self.parameters.window, waiting, key=_due)
        return sorted(jobs, key=_due)

    def _job(self, request: RequestView, view: View) -> Job | None:
        """The prompt of a request as a job; None without a promise that could be kept."""
        if request.is_demoted or is_missed(request.slo, request, view.now):
            return None
        when = due(request.slo, request)
        if math.isinf(when):
            return None
        if isinstance(request.slo, Deadline | Program):
            when = self._call_due(request, view) - self._decode_time_left(request)
        tokens = max(1, request.num_remaining_tokens)
        return Job(when, request.id, tokens, request.weight / tokens)

    def _prefill_rate(self, num_prefill: int, time: float, step: _StepCost) -> float:
        """Prompt tokens per second at this step's mix; never nothing."""
        slowest = 0.1 / step.per_prefill_token
        return max(slowest, num_prefill / time if time > 0 else slowest)

    # Slack

    def _is_lost(self, request: RequestView, now: float) -> bool:
        """Missed, or a stream with more late tokens than its likely length forgives."""
        if request.is_demoted or is_missed(request.slo, request, now):
            return True
        if not request.late_tokens:
            return False
        length = request.num_output_tokens + self.lengths.remaining(request)
        return request.late_tokens > length / LATE_TOKENS_PER

    def _slack(self, request: RequestView, view: View, step: _StepCost) -> float:
        """Seconds that the request can do without service."""
        if isinstance(request.slo, Streaming):
            return due(request.slo, request) - view.now
        return self._call_due(request, view) - self._decode_time_left(request) - view.now

    def _decode_time_left(self, request: RequestView) -> float:
        """Likely seconds of decoding to come, at the pace of a half-full batch."""
        one = self.latency.step_time(BatchShape(decode_seqs=8, kv_tokens=8 * 256))
        return one * self.lengths.remaining(request)

    def _call_due(self, request: RequestView, view: View) -> float:
        """When a call must end for its program to make it: an even split over calls to come."""
        when = due(request.slo, request)
        program = view.program(request.program) if request.program else None
        if program is None or not isinstance(request.slo, Program):
            return when
        left = max(1.0, self._calls.expected(request.app) - program.num_finished_calls)
        return request.arrival + (when - request.arrival) / left


def choose(jobs: Sequence[Job], now: float, rate: float) -> tuple[list[Job], list[Job]]:
    """Pick the jobs to finish in time when each takes tokens / rate seconds, one after another.

    `jobs` in order of due time. Moore and Hodgson: take each in turn; when one comes late, drop
    the job of least density among those taken. With equal weights the fewest possible jobs are
    dropped. Returns (kept, dropped), both by due time; O(n log n).
    """
    by_density: list[tuple[float, str]] = []
    kept: dict[str, Job] = {}
    dropped: set[str] = set()
    end = now
    for job in jobs:
        kept[job.id] = job
        heappush(by_density, (job.density, job.id))
        end += job.tokens / rate
        while end > job.due and kept:
            _, worst = heappop(by_density)
            end -= kept.pop(worst).tokens / rate
            dropped.add(worst)
    return list(kept.values()), [job for job in jobs if job.id in dropped]


@dataclass(frozen=True, slots=True)
class _StepCost:
    """Seconds of a step around the present batch, by the latency model."""

    base: float
    per_decode: float
    per_prefill_token: float
    free_decodes: int = 8

    @classmethod
    def of(cls, latency: LatencyModel, running: Sequence[RequestView]) -> _StepCost:
        decodes = [r for r in running if r.num_output_tokens]
        context = sum(r.num_tokens for r in decodes) / len(decodes) if decodes else 128
        one = latency.step_time(BatchShape(decode_seqs=1, kv_tokens=int(context)))
        nine = latency.step_time(BatchShape(decode_seqs=9, kv_tokens=int(9 * context)))
        prefill = latency.step_time(
            BatchShape(decode_seqs=1, kv_tokens=int(context), prefill_tokens=64)
        )
        tiny = 1e-7
        per_decode = max((nine - one) / 8, tiny)
        return cls(one - per_decode, per_decode, max((prefill - one) / 64, tiny))

    def decode_time(self, num_decodes: int) -> float:
        return self.base + num_decodes * self.per_decode


class _CallCounts:
    """How many calls the programs of an app make, as a running mean over those that closed."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[str | None, int]] = {}
        self._means: dict[str | None, float] = {}

    def expected(self, app: str | None) -> float:
        """Calls of a program of this app; 1 before any history."""
        return self._means.get(app, 1.0)

    def observe(self, event: object) -> None:
        if isinstance(event, Arrived) and event.request.program is not None:
            program = event.request.program
            self._open[program] = (event.request.app, self._open.get(program, (None, 0))[1] + 1)
        elif isinstance(event, ProgramClosed):
            app, count = self._open.pop(event.program_id, (None, 0))
            mean = self._means.get(app)
            if count:
                self._means[app] = count if mean is None else mean + 0.1 * (count - mean)


def _due(job: Job) -> float:
    return job.due


def make(parameters: Parameters, deps: Dependencies) -> Giusto:
    return Giusto(parameters, deps)
