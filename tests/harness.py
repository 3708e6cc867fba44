"""Drive the scheduler in virtual time: a fake executor with hidden lengths and a cost model.

Used by property and golden tests, and by benchmarks that tune a policy before it meets the engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from giusto.core.events import Event
from giusto.core.kv import BlockPool
from giusto.core.latency import BatchShape, LinearLatency
from giusto.core.plan import Caps, Limits, Plan, Policy, StepOutcome, Yield
from giusto.core.request import FinishReason, Submission
from giusto.core.scheduler import Scheduler
from giusto.policies import make
from giusto.policies.base import Dependencies
from giusto.predict.histogram import Histogram

#: Seconds: 15 ms a step, 0.7 ms a prompt token, 0.6 ms a decoding sequence, 1 us a context token.
LATENCY = LinearLatency((0.015, 0.0007, 2e-8, 0.0006, 1e-6, 0.0006, 0.001, 0.0, 0.0))


def policy_named(name: str, **options: object) -> tuple[Policy, Histogram]:
    """A policy with a histogram predictor that the caller must subscribe."""
    lengths = Histogram()
    return make(name, Dependencies(latency=LATENCY, lengths=lengths), options), lengths


def shape_of(plan: Plan, scheduler: Scheduler) -> BatchShape:
    """The shape of an applied plan; everything that samples a token counts as decoding."""
    prefill = prefill_kv = decodes = kv = 0
    for grant in plan.grants:
        request = scheduler.requests[grant.request_id]
        before = request.num_computed_tokens
        if grant.num_tokens > 1:
            prefill += grant.num_tokens
            prefill_kv += grant.num_tokens * before
        else:
            decodes += 1
            kv += before + 1
    return BatchShape(prefill, prefill_kv, decodes, kv)


@dataclass
class Drive:
    """One scheduler, its clock and its private truth: output lengths by request id."""

    scheduler: Scheduler
    lengths: dict[str, int]
    now: float = 0.0
    events: list[Event] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)
    steps: int = 0
    emitted: dict[str, int] = field(default_factory=dict)
    _flying: deque[tuple[Plan, BatchShape, dict[str, bool]]] = field(default_factory=deque)

    @classmethod
    def of(
        cls,
        policy: Policy,
        lengths: dict[str, int],
        *,
        num_blocks: int = 512,
        limits: Limits | None = None,
        lookahead: int = 0,
        observers: Iterable[Callable[[Event], None]] = (),
    ) -> Drive:
        limits = limits or Limits(max_num_batched_tokens=256, max_num_seqs=32, block_size=16)
        pool = BlockPool(num_blocks, limits.block_size)
        scheduler = Scheduler(
            policy, pool, limits, caps=Caps(lookahead=lookahead), is_checking=True
        )
        for observe in observers:
            scheduler.subscribe(observe)
        return cls(scheduler, lengths)

    def run(self, asks: Iterable[Submission], *, max_steps: int = 100_000) -> None:
        """Feed submissions at their arrival times and step until all have ended."""
        pending = deque(sorted(asks, key=lambda ask: ask.arrival))
        while pending or self.scheduler.has_work:
            if self.steps >= max_steps:
                raise AssertionError(f"not finished after {max_steps} steps")
            while pending and pending[0].arrival <= self.now:
                self.scheduler.add(pending.popleft(), self.now)
            if not self.scheduler.has_work:
                if pending:
                    self.now = max(self.now, pending[0].arrival)
                continue
            wake_at = self.step()
            if wake_at is not None:
                arrival = pending[0].arrival if pending else wake_at
                self.now = max(self.now, min(wake_at, arrival))
        self.events += self.scheduler.take_events()

    def step(self) -> float | None:
        """Plan one step, land the oldest in flight; returns when to wake if nothing was done."""
        plan = self.scheduler.schedule(self.now)
        self.plans.append(plan)
        if plan.grants:
            self._launch(plan)
            self.steps += 1
        if len(self._flying) > self.scheduler.caps.lookahead or not plan.grants:
            if self._flying:
                self._land()
            else:
                self.events += self.scheduler.take_events()
                return plan.wake_at
        return None

    def _launch(self, plan: Plan) -> None:
        # A grant samples a token when it reaches the last known token or the one in flight.
        samples = {
            grant.request_id: self.scheduler.requests[grant.request_id].num_remaining_tokens == 0
            or self._reaches_end(grant.request_id)
            for grant in plan.grants
        }
        self._flying.append((plan, shape_of(plan, self.scheduler), samples))

    def _reaches_end(self, request_id: str) -> bool:
        request = self.scheduler.requests[request_id]
        in_flight = request.num_computed_tokens + request.num_in_flight_tokens
        return in_flight >= request.num_tokens + request.num_in_flight_outputs - 1 and (
            request.num_in_flight_outputs > 0
        )

    def _land(self) -> None:
        plan, shape, samples = self._flying.popleft()
        started = self.now
        self.now += LATENCY.step_time(shape)
        yields = {}
        for grant in plan.grants:
            if not samples[grant.request_id]:
                yields[grant.request_id] = Yield()
                continue
            count = self.emitted[grant.request_id] = self.emitted.get(grant.request_id, 0) + 1
            is_last = count >= self.lengths.get(grant.request_id, 1)
            finish = FinishReason.STOP if is_last else None
            yields[grant.request_id] = Yield(tokens=(count,), finish=finish)
        outcome = StepOutcome(plan.step, started, self.now, shape, yields)
        self.events += self.scheduler.commit(plan.step, outcome, self.now)
