"""Replicas behind a router, and the users in front of it: one simulated run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from giusto.core.errors import ConfigError, PlanError
from giusto.core.events import Event, ProgramClosed
from giusto.metrics.records import Record, Recorder
from giusto.routing.base import Router, Visitor
from giusto.sim.asks import Asks
from giusto.sim.kernel import Kernel
from giusto.sim.replica import Replica
from giusto.sim.users import Users, never_sent
from giusto.workload.records import Entry


@dataclass(slots=True)
class Outcome:
    """What came of a run. Times are virtual seconds; `records` is empty when they were streamed."""

    records: list[Record] = field(default_factory=list)
    num_steps: int = 0
    ended: float = 0.0


class Cluster:
    """Runs entries to their end. `sink` takes the records of each request as it ends."""

    def __init__(
        self,
        kernel: Kernel,
        replicas: Sequence[Replica],
        router: Router,
        asks: Asks,
        *,
        sink: Callable[[tuple[Record, ...]], None] | None = None,
    ) -> None:
        self._kernel = kernel
        self.replicas = replicas
        self._router = router
        self._asks = asks
        self._outcome = Outcome()
        self._sink = sink or self._outcome.records.extend
        self._recorder = Recorder(self._sink)

    def run(self, entries: Sequence[Entry]) -> Outcome:
        """Let all arrive and end. Raises PlanError when a policy leaves requests for ever."""
        users = Users(self._kernel, entries, self._send, self._give_up)

        def observe(replica: Replica, event: Event) -> None:
            self._recorder.observe(event)
            users.observe(event)
            if isinstance(event, ProgramClosed):
                self._tell_others(replica, event)

        for replica in self.replicas:
            replica.scheduler.subscribe(partial(observe, replica))
        self._kernel.run()
        if left := sum(len(replica.scheduler.requests) for replica in self.replicas):
            raise PlanError(
                f"the policy left {left} requests for ever: a plan that grants nothing while "
                "requests wait must have wake_at"
            )
        if users.num_left:
            raise ConfigError(f"{users.num_left} calls wait for calls that are not in the workload")
        self._outcome.num_steps = sum(replica.num_steps for replica in self.replicas)
        self._outcome.ended = self._kernel.now
        return self._outcome

    def _tell_others(self, replica: Replica, event: ProgramClosed) -> None:
        """A program may have had calls on any replica; whose call was the last tells of its end."""
        for other in self.replicas:
            if other is not replica:
                other.scheduler.policy.observe(event)

    def _send(self, entry: Entry) -> None:
        ask = self._asks.ask(entry, self._kernel.now)
        chosen = 0
        if len(self.replicas) > 1:
            chosen = self._router.choose(_visitor(entry), self.replicas)
        self.replicas[chosen].submit(ask)

    def _give_up(self, entry: Entry, opened: float) -> None:
        now = self._kernel.now
        self._sink((never_sent(self._asks.ask(entry, now), entry, now, opened),))


def _visitor(entry: Entry) -> Visitor:
    return Visitor(
        entry.id,
        entry.prompt_tokens or 0,
        session=entry.step.program if entry.step else None,
        prefix=entry.pieces[0].source if entry.pieces else None,
    )
