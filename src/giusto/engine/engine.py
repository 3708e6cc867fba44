"""The embedded engine: schedule, execute, commit, over and over.

`Engine` is synchronous and single-threaded; `loop` drives it in a thread or process of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any, Protocol

from giusto.core.clock import Clock
from giusto.core.events import Event, Feed, Finished, Rejected
from giusto.core.explain import explain
from giusto.core.latency import BatchShape, LatencyModel
from giusto.core.plan import Plan, StepOutcome, StepTimes, Yield
from giusto.core.request import FinishReason, Submission
from giusto.core.scheduler import Scheduler
from giusto.engine.runner import Execution, ModelRunner

log = logging.getLogger(__name__)


class Learners(Feed, Protocol):
    """What the scheduler's policy learns with, beside the steps."""

    def close(self, now: float) -> None:
        """Keep what was learned."""
        ...


class Engine:
    """One scheduler, one model runner, one clock.

    `seeds` gives requests that bring no seed one of their own.
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
        execution = self._execute(plan)
        ended = self.clock.now()
        self.step_time += 0.1 * (ended - started - self.step_time)
        self.latency.learn(execution.shape, ended - started)
        times = StepTimes(plan=started - planned, forward=ended - started)
        outcome = StepOutcome(plan.step, started, ended, execution.shape, execution.yields, times)
        return self._taken(self.scheduler.commit(plan.step, outcome, ended)), None

    def close(self) -> None:
        """Keep what was learned; nothing is asked of the engine after it."""
        if self._learners is not None:
            self._learners.close(self.clock.now())

    def take_events(self) -> list[Event]:
        """Hand over the events since the last step."""
        return self._taken(self.scheduler.take_events())

    def _execute(self, plan: Plan) -> Execution:
        """Run the plan; a failure ends the requests in it, never the engine."""
        try:
            return self.runner.execute(plan, self.scheduler.requests)
        except Exception as error:
            log.exception("step %d failed; its %d requests end", plan.step, len(plan.grants))
            failed = Yield(finish=FinishReason.ERROR, error=f"{type(error).__name__} in the model")
            return Execution(BatchShape(), {grant.request_id: failed for grant in plan.grants})

    def _taken(self, events: Sequence[Event]) -> list[Event]:
        for event in events:
            if isinstance(event, Finished | Rejected):
                self.runner.forget(event.request_id)
        return list(events)
