"""One scheduler in the event loop: plan, let the step's time pass, commit, plan again."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from giusto.core.errors import PlanError
from giusto.core.events import Event, Feed, Finished, Rejected
from giusto.core.latency import LatencyModel
from giusto.core.plan import Plan, StepOutcome, StepTimes
from giusto.core.request import Submission
from giusto.core.scheduler import Scheduler
from giusto.sim.executor import Execution, SimExecutor
from giusto.sim.kernel import Kernel, Order

NO_TIMES = StepTimes()


class Replica:
    """Satisfies `routing.ReplicaView`.

    `latency` is the policy's model, which learns from the steps; the executor's is the truth.
    `gap` is the seconds that planning and booking take between two steps. A `feed`, where one is
    set, tells the scheduler length bounds.
    """

    def __init__(
        self,
        index: int,
        kernel: Kernel,
        scheduler: Scheduler,
        executor: SimExecutor,
        latency: LatencyModel,
        *,
        gap: float = 0.0,
    ) -> None:
        self.index = index
        self.scheduler = scheduler
        self.feed: Feed | None = None
        self.step_time = 0.0
        self.num_steps = 0
        self._kernel = kernel
        self._executor = executor
        self._latency = latency
        self._gap = gap
        self._flying: deque[tuple[Plan, float, Execution]] = deque()
        self._free_at = 0.0
        self._is_planning = False
        self._wake_at = 0.0

    # What routers see

    @property
    def running(self) -> int:
        return self.scheduler.num_running

    @property
    def waiting(self) -> int:
        return self.scheduler.num_waiting

    @property
    def queued_tokens(self) -> int:
        return self.scheduler.num_queued_tokens

    @property
    def free_blocks(self) -> int:
        return self.scheduler.pool.num_free

    # Life

    def submit(self, ask: Submission) -> None:
        """Queue a request; it is planned for once the step under way has ended."""
        self.scheduler.add(ask, self._kernel.now)
        self._plan_soon()

    def abort(self, request_id: str) -> None:
        """Cancel a request."""
        self.scheduler.abort(request_id, self._kernel.now)
        self._plan_soon()

    def _plan_soon(self) -> None:
        """Plan at the end of this instant, when all that happens in it is known."""
        if not self._is_planning and len(self._flying) <= self.scheduler.caps.lookahead:
            self._is_planning = True
            self._kernel.at(self._kernel.now, Order.PLAN, self._plan)

    def _plan(self) -> None:
        self._is_planning = False
        now = self._kernel.now
        if not self.scheduler.has_work:
            self._forget(self.scheduler.take_events())
            return
        if self.feed is not None:
            for estimate in self.feed.poll(now):
                self.scheduler.inform(estimate)
        plan = self.scheduler.schedule(now)
        if not plan.grants:
            self._forget(self.scheduler.take_events())
            if plan.wake_at is not None:
                if not now < plan.wake_at < math.inf:
                    raise PlanError(f"wake_at {plan.wake_at} is not a time after now, {now}")
                self._wake_at = plan.wake_at
                self._kernel.at(plan.wake_at, Order.PLAN, self._wake)
            return
        swapped = self.scheduler.take_swapped_blocks()
        execution = self._executor.execute(plan, self.scheduler.requests, swapped)
        started = max(now + self._gap, self._free_at)
        self._free_at = started + execution.seconds
        self._flying.append((plan, started, execution))
        self._kernel.at(self._free_at, Order.END, self._land)
        self._plan_soon()

    def _wake(self) -> None:
        if self._kernel.now >= self._wake_at:
            self._plan_soon()

    def _land(self) -> None:
        """Commit the oldest step in flight."""
        plan, started, execution = self._flying.popleft()
        now = self._kernel.now
        # The model is of what steps compute; it knows nothing of the link.
        self._latency.learn(execution.shape, execution.seconds - execution.waited)
        self.step_time += 0.1 * (execution.seconds - self.step_time)
        self.num_steps += 1
        times = StepTimes(draft=execution.drafted) if execution.drafted else NO_TIMES
        outcome = StepOutcome(plan.step, started, now, execution.shape, execution.yields, times)
        self._forget(self.scheduler.commit(plan.step, outcome, now))
        self._plan_soon()

    def _forget(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, Finished | Rejected):
                self._executor.forget(event.request_id)
