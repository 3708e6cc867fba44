"""Drive the scheduler in virtual time: a fake executor with hidden lengths and a cost model.

Used by property and golden tests, and by benchmarks that tune a policy before it meets the engine.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from giusto.core.events import Arrived, Event, Finished, Rejected, Stepped
from giusto.core.kv import BlockPool
from giusto.core.latency import BatchShape, LatencyModel, LinearLatency
from giusto.core.plan import Caps, Limits, Plan, Policy, StepOutcome, Yield
from giusto.core.request import FinishReason, Submission
from giusto.core.scheduler import Scheduler
from giusto.core.slo import BestEffort
from giusto.policies import REGISTRY, make
from giusto.policies.base import Dependencies
from giusto.predict.histogram import Histogram

#: Seconds: 15 ms a step, 0.7 ms a prompt token, 0.6 ms a decoding sequence, 1 us a context token.
LATENCY = LinearLatency((0.015, 0.0007, 2e-8, 0.0006, 1e-6, 0.0006, 0.001, 0.0, 0.0))
LIMITS = Limits(max_num_batched_tokens=256, max_num_seqs=32, block_size=16)


#: Policies that any driver can run: all but those that a simulator must tell the truth.
HONEST = [name for name, module in REGISTRY.items() if not getattr(module, "IS_ORACLE", False)]


@dataclass(frozen=True)
class Truth:
    """How long each output will be, by request id: what only a driver without a model can tell."""

    lengths: Mapping[str, int]

    def output_tokens(self, request_id: str) -> int:
        return self.lengths[request_id]


def policy_named(
    name: str,
    latency: LatencyModel = LATENCY,
    truth: Mapping[str, int] | None = None,
    **options: object,
) -> tuple[Policy, Histogram]:
    """A policy with a histogram predictor that the caller must subscribe.

    `truth` has the lengths that the executor will give, for policies that are oracles.
    """
    lengths = Histogram()
    deps = Dependencies(latency, lengths, Truth(truth) if truth is not None else None)
    return make(name, deps, options), lengths


def shape_of(plan: Plan, scheduler: Scheduler) -> BatchShape:
    """The shape of a plan just applied; a grant of one token counts as decoding."""
    prefill = prefill_kv = decodes = kv = 0
    for grant in plan.grants:
        request = scheduler.requests[grant.request_id]
        end = request.num_computed_tokens + request.num_in_flight_tokens
        if grant.num_tokens > 1:
            prefill += grant.num_tokens
            prefill_kv += grant.num_tokens * (end - grant.num_tokens)
        else:
            decodes += 1
            kv += end
    return BatchShape(prefill, prefill_kv, decodes, kv)


@dataclass
class Executor:
    """Runs plans: its private truth is how long each output is, by request id."""

    lengths: Mapping[str, int]
    drawn: Counter[str] = field(default_factory=Counter)

    def run(self, plan: Plan, scheduler: Scheduler) -> dict[str, Yield]:
        """What an applied plan yields; token number k of a request is k + 1."""
        yields = {}
        for grant in plan.grants:
            request = scheduler.requests[grant.request_id]
            end = request.num_computed_tokens + request.num_in_flight_tokens
            if end < request.num_prompt_tokens + self.drawn[request.id]:
                yields[request.id] = Yield()
                continue
            self.drawn[request.id] += 1
            count = self.drawn[request.id]
            is_last = count >= self.lengths.get(request.id, 1)
            yields[request.id] = Yield((count,), finish=FinishReason.STOP if is_last else None)
        return yields


@dataclass
class Drive:
    """One scheduler, its executor and its clock. `after_step` is called after every commit."""

    scheduler: Scheduler
    executor: Executor
    latency: LatencyModel = field(default_factory=lambda: LATENCY)
    after_step: Callable[[Drive], None] | None = None
    now: float = 0.0
    events: list[Event] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)
    steps: int = 0
    _flying: deque[tuple[Plan, BatchShape, dict[str, Yield]]] = field(default_factory=deque)

    @classmethod
    def of(
        cls,
        policy: Policy,
        lengths: Mapping[str, int],
        *,
        num_blocks: int = 512,
        limits: Limits = LIMITS,
        lookahead: int = 0,
        caps: Caps | None = None,
        latency: LatencyModel = LATENCY,
        observers: Iterable[Callable[[Event], None]] = (),
        after_step: Callable[[Drive], None] | None = None,
        is_checking: bool = True,
    ) -> Drive:
        scheduler = Scheduler(
            policy,
            BlockPool(num_blocks, limits.block_size),
            limits,
            caps=caps or Caps(lookahead=lookahead),
            is_checking=is_checking,
        )
        for observe in observers:
            scheduler.subscribe(observe)
        return cls(scheduler, Executor(lengths), latency, after_step)

    def answered(self, lengths: Mapping[str, int]) -> dict[str, int]:
        """Of `lengths` those that were not shed; only for who was promised something may be."""
        shed = {event.request_id for event in self.events if isinstance(event, Rejected)}
        kinds = {e.request.id: e.request.slo for e in self.events if isinstance(e, Arrived)}
        assert not any(isinstance(kinds[request_id], BestEffort) for request_id in shed)
        return {name: length for name, length in lengths.items() if name not in shed}

    @property
    def emitted(self) -> dict[str, int]:
        """Output tokens that were committed for each request, its ending step included."""
        counts: Counter[str] = Counter()
        ended = set()
        for event in self.events:
            if isinstance(event, Stepped):
                for request_id, made in event.outcome.yields.items():
                    if request_id not in ended:
                        counts[request_id] += len(made.tokens)
            elif isinstance(event, Finished):
                ended.add(event.request_id)
        return +counts

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
            shape = shape_of(plan, self.scheduler)
            self._flying.append((plan, shape, self.executor.run(plan, self.scheduler)))
            self.steps += 1
        if self._flying and (not plan.grants or len(self._flying) > self.scheduler.caps.lookahead):
            self.land()
        elif not plan.grants:
            self.events += self.scheduler.take_events()
            return plan.wake_at
        return None

    def land(self) -> None:
        """Commit the oldest step in flight when the time it takes has passed."""
        plan, shape, yields = self._flying.popleft()
        started = self.now
        self.now += self.latency.step_time(shape)
        outcome = StepOutcome(plan.step, started, self.now, shape, yields)
        self.events += self.scheduler.commit(plan.step, outcome, self.now)
        if self.after_step is not None:
            self.after_step(self)
