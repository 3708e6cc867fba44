"""The embedded engine: schedule, execute, commit, over and over.

`Engine` is synchronous and single-threaded; `loop` drives it in a thread or process of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Protocol

from giusto.core.clock import Clock
from giusto.core.events import Event, Feed, Finished, Rejected
from giusto.core.explain import explain
from giusto.core.latency import BatchShape, LatencyModel
from giusto.core.plan import Plan, StepOutcome, StepTimes, Yield
from giusto.core.request import FinishReason, Submission
from giusto.core.scheduler import Scheduler
from giusto.core.shape import shape_of
from giusto.engine.runner import Execution, ModelRunner
from giusto.spec.speculator import Speculator
from giusto.spec.tree import TokenTree

log = logging.getLogger(__name__)


class Learners(Feed, Protocol):
    """What the scheduler's policy learns with, beside the steps."""

    def close(self, now: float) -> None:
        """Keep what was learned."""
        ...


@dataclass(frozen=True, slots=True)
class _Speculation:
    """What was drafted for a step, what of it is verified, and the seconds that both took.

    `work`: passes of a draft model, and tokens in them.
    """

    drafts: Mapping[str, TokenTree] = field(default_factory=dict)
    trees: Mapping[str, TokenTree] = field(default_factory=dict)
    draft: float = 0.0
    select: float = 0.0
    work: tuple[int, int] = (0, 0)


class Engine:
    """One scheduler, one model runner, one clock.

    `seeds` gives requests that bring no seed one of their own. A `speculator`, where one is set,
    guesses ahead; one that fails is given up, and `speculation_error` says why.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        clock: Clock,
        latency: LatencyModel,
        seeds: Random,
        learners: Learners | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.clock = clock
        self.latency = latency
        self._seeds = seeds
        self._learners = learners
        self.speculator: Speculator | None = None
        self.speculation_error: str | None = None
        self.step_time = 0.0

    def submit(self, ask: Submission) -> None:
        """Queue a request; what becomes of it is told by events."""
        if ask.sampling.seed is None:
            sampling = replace(ask.sampling, seed=self._seeds.getrandbits(63))
            ask = replace(ask, sampling=sampling)
        self.scheduler.add(ask, self.clock.now())

    def abort(self, request_id: str) -> None:
        self.scheduler.abort(request_id, self.clock.now())

    def explain(self, request_id: str) -> dict[str, Any] | None:
        """Why a request stands where it stands; None when it is not here."""
        now = self.clock.now()
        try:
            return explain(self.scheduler.view(now), self.scheduler.policy, request_id)
        except KeyError:
            return None

    def step(self) -> tuple[list[Event], float | None]:
        """Do one step; returns the events since the last, and when to wake if nothing was done."""
        planned = self.clock.now()
        if self._learners is not None:
            for found in self._learners.poll(planned):
                self.scheduler.inform(found)
        plan = self.scheduler.schedule(planned)
        started = self.clock.now()
        if not plan.grants:
            return self.take_events(), plan.wake_at
        made = self._speculate(plan)
        execution = self._execute(plan, made.trees)
        if made.drafts:
            self._learn(execution, made.drafts)
        ended = self.clock.now()
        self.step_time += 0.1 * (ended - started - self.step_time)
        shape = _drafted(execution.shape, made.work)
        self.latency.learn(shape, ended - started)
        forward = ended - started - made.draft - made.select
        times = StepTimes(started - planned, made.draft, made.select, forward=forward)
        outcome = StepOutcome(plan.step, started, ended, shape, execution.yields, times)
        return self._taken(self.scheduler.commit(plan.step, outcome, ended)), None

    def close(self) -> None:
        """Keep what was learned; nothing is asked of the engine after it."""
        if self._learners is not None:
            self._learners.close(self.clock.now())

    def take_events(self) -> list[Event]:
        """Hand over the events since the last step."""
        return self._taken(self.scheduler.take_events())

    def _speculate(self, plan: Plan) -> _Speculation:
        """Draft and choose; a failure costs the speed that speculation gave, never a request."""
        speculator, requests = self.speculator, self.scheduler.requests
        if speculator is None or not plan.node_budget:
            return _Speculation()
        started = self.clock.now()
        try:
            drafts = speculator.draft(plan, requests)
            drafted = self.clock.now()
            work = speculator.take_work()
            shape = _drafted(shape_of(plan, requests.__getitem__), work)
            trees = speculator.choose(drafts, plan, shape)
        except Exception as error:
            self._stop_speculating(error)
            return _Speculation()
        chosen = self.clock.now()
        return _Speculation(drafts, trees, drafted - started, chosen - drafted, work)

    def _stop_speculating(self, error: Exception) -> None:
        log.exception("speculation failed and is off from now on; requests go on without it")
        self.speculation_error = f"{type(error).__name__} while drafting"
        self.speculator = None

    def _execute(self, plan: Plan, trees: Mapping[str, TokenTree]) -> Execution:
        """Run the plan; a failure ends the requests in it, never the engine."""
        try:
            return self.runner.execute(plan, self.scheduler.requests, trees)
        except Exception as error:
            log.exception("step %d failed; its %d requests end", plan.step, len(plan.grants))
            failed = Yield(finish=FinishReason.ERROR, error=f"{type(error).__name__} in the model")
            return Execution(BatchShape(), {grant.request_id: failed for grant in plan.grants})

    def _learn(self, execution: Execution, drafts: Mapping[str, TokenTree]) -> None:
        """Note how many candidates there were, and which of them were right."""
        assert self.speculator is not None
        yields = execution.yields
        for request_id, tree in drafts.items():
            yields[request_id] = replace(yields[request_id], drafted=len(tree))
        try:
            self.speculator.learn(drafts, {name: yields[name].tokens for name in drafts})
        except Exception as error:
            self._stop_speculating(error)

    def _taken(self, events: Sequence[Event]) -> list[Event]:
        for event in events:
            if isinstance(event, Finished | Rejected):
                self.runner.forget(event.request_id)
                if self.speculator is not None:
                    self.speculator.forget(event.request_id)
        return list(events)


def _drafted(shape: BatchShape, work: tuple[int, int]) -> BatchShape:
    """The shape of a step with what its draft model computed."""
    if work == (0, 0):
        return shape
    return replace(shape, draft_steps=work[0], draft_tokens=work[1])
