"""One scheduler for the engine, the simulator and every test: schedule, execute, commit.

It owns all request state and the block tables. `schedule` asks the policy for a plan and applies
it; the driver executes; `commit` books what came of it. Up to `Caps.lookahead` plans may be out
uncommitted. It has no clock: `now` is an argument, and must not go back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from giusto.core import events as ev
from giusto.core.errors import PlanError
from giusto.core.host import HostMemory
from giusto.core.kv import BlockPool, chain_keys
from giusto.core.pin import PinWatch
from giusto.core.plan import (
    Caps,
    Grant,
    Limits,
    Plan,
    Policy,
    PreemptHow,
    StepOutcome,
    Yield,
    check,
)
from giusto.core.programs import ProgramState, ProgramTable
from giusto.core.queue import QueueLimits, WaitingQueue
from giusto.core.request import FinishReason, Reason, Request, Submission
from giusto.core.residents import Residents
from giusto.core.view import PrefixHits, SchedulerView


class Scheduler:
    """Requests from arrival to end, on integers alone.

    Events reach subscribers (the policy is the first) at once and in order, and are handed to the
    driver by `take_events` and `commit`.
    """

    def __init__(
        self,
        policy: Policy,
        pool: BlockPool,
        limits: Limits,
        *,
        caps: Caps = Caps(),  # noqa: B008  frozen
        queue_limits: QueueLimits = QueueLimits(),  # noqa: B008  frozen
        is_checking: bool = False,
    ) -> None:
        if limits.block_size != pool.block_size:
            raise ValueError("limits and pool disagree on the block size")
        self.policy = policy
        self.pool = pool
        self.limits = limits
        self.caps = caps
        self.queue_limits = queue_limits
        self.programs = ProgramTable()
        self.is_checking = is_checking
        self.is_draining = False
        self._subscribers: list[Callable[[ev.Event], None]] = [policy.observe]
        self._requests: dict[str, Request] = {}
        self._groups: dict[str, list[Request]] = {}
        self._siblings: dict[str, list[Request]] = {}
        self._waiting = WaitingQueue()
        self._host = HostMemory(caps.host_blocks)
        self._running = Residents(pool, self._host)
        self._in_flight: deque[Plan] = deque()
        self._hits = PrefixHits(pool)
        self._events: list[ev.Event] = []
        self._next_step = 0
        self._next_serial = 0
        self._pin = PinWatch()
        self._token_time = 0.0

    # Asking

    @property
    def requests(self) -> Mapping[str, Request]:
        """All requests that have not ended, by id."""
        return self._requests

    @property
    def waiting(self) -> Sequence[Request]:
        """Queued requests, the earliest arrival first."""
        return self._waiting.requests

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_queued_tokens(self) -> int:
        """Tokens that waiting requests have yet to compute, prefix hits not deducted."""
        return self._waiting.num_prefill_tokens

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def view(self, now: float) -> SchedulerView:
        """Show the world to a policy."""
        return SchedulerView(
            now,
            self._next_step,
            self._waiting.requests,
            self._waiting.unanswered,
            tuple(self._running),
            self.limits,
            self.caps,
            self._pin.look(self._running, now),
            self.pool,
            self._hits,
            self._requests,
            self.programs,
            self._host,
        )

    def check(self) -> None:
        """Raise AssertionError when state is inconsistent; for tests and `--check`."""
        self._running.check(self._requests.values())
        waiting = {request.id for request in self._waiting.requests}
        running = {request.id for request in self._running}
        held_back = {r.id for siblings in self._siblings.values() for r in siblings}
        assert waiting | held_back | running == self._requests.keys()
        assert not waiting & running

    # Telling

    def subscribe(self, observe: Callable[[ev.Event], None]) -> None:
        """Call `observe` with every event from now on."""
        self._subscribers.append(observe)

    def add(self, ask: Submission, now: float) -> None:
        """Queue a submission, all its samples or none.

        Publishes an `Arrived` per sample, followed by a `Rejected` per sample when it is refused.
        Raises ValueError for an id that is in use.
        """
        requests = [Request.of(ask, sample) for sample in range(ask.n)]
        # One that was aborted in flight keeps its id until its last step commits.
        if ask.id in self._groups or any(request.id in self._requests for request in requests):
            raise ValueError(f"request id {ask.id} is in use")
        leader = requests[0]
        # Before anything is booked: tokens that cannot be hashed must leave no trace.
        if not leader.block_keys and leader.token_ids:
            leader.block_keys = chain_keys(
                leader.token_ids, self.pool.block_size, salt=leader.cache_salt
            )
        self._close_idle_programs(now)
        if opened := self.programs.enter(leader, now):
            self._publish(ev.ProgramOpened(opened.id, now, opened.deadline))
        for request in requests:
            request.slo, request.origin = leader.slo, leader.origin
            self._publish(ev.Arrived(request, now))
        if reason := self._refusal(requests):
            retry_after = max(1.0, self.num_queued_tokens * self._token_time)
            for request in requests:
                self._publish(ev.Rejected(request.id, now, reason, retry_after))
            self._leave_program(leader, now, FinishReason.ERROR)
            return
        self._groups[ask.id] = requests
        for request in requests:
            request.block_keys = list(leader.block_keys)
            request.serial = self._next_serial
            self._next_serial += 1
            self._requests[request.id] = request
        self._waiting.push(leader)
        if ask.n > 1:
            self._siblings[ask.id] = requests[1:]

    def abort(self, request_id: str, now: float) -> bool:
        """End a submission with all its samples; False when it is unknown or has ended.

        Blocks of a sample in flight are freed by the commit of its last step in flight.
        """
        if request_id not in self._groups:
            return False
        for request in list(self._groups[request_id]):
            self._finish(request, FinishReason.ABORT, now)
        return True

    def inform(self, event: ev.Estimated | ev.Foretold) -> None:
        """Pass on what a predictor found out: the events that come from outside."""
        self._publish(event)

    def close_program(self, program_id: str, now: float) -> None:
        """Close a program on its client's word."""
        self._publish_closed(self.programs.close(program_id), now)

    def take_events(self) -> list[ev.Event]:
        """Hand over the events since the last call."""
        taken, self._events = self._events, []
        return taken

    def take_swapped_blocks(self) -> int:
        """Tell how many blocks were swapped in or out since the last call.

        They move beside the step that is scheduled last; a driver that swaps asks once per step.
        """
        taken, self._host.num_moved = self._host.num_moved, 0
        return taken

    # Deciding

    def schedule(self, now: float) -> Plan:
        """Ask the policy for the next step and apply its plan.

        Raises PlanError when more plans are in flight than the driver's lookahead allows, or,
        under `is_checking`, when the plan breaks its contract.
        """
        if len(self._in_flight) > self.caps.lookahead:
            raise PlanError(f"{len(self._in_flight)} plans are in flight already")
        self._close_idle_programs(now)
        view = self.view(now)
        plan = self.policy.plan(view)
        if self.is_checking:
            check(plan, view)
        self._apply(plan, now)
        if plan.grants:
            self._in_flight.append(plan)
            self._next_step += 1
        return plan

    def commit(self, step: int, outcome: StepOutcome, now: float) -> list[ev.Event]:
        """Book the outcome of the oldest plan in flight; returns the events since last taken."""
        if not self._in_flight or self._in_flight[0].step != step or outcome.step != step:
            raise PlanError(f"step {step} is not the oldest in flight")
        plan = self._in_flight.popleft()
        took = (outcome.ended - outcome.started) / plan.num_tokens
        self._token_time += 0.05 * (took - self._token_time)
        # Told before any ending, so that subscribers know a request's last tokens when it ends.
        self._publish(ev.Stepped(outcome, now))
        requests, yields, ended = self._requests, outcome.yields, outcome.ended
        for grant in plan.grants:
            request_id = grant.request_id
            self._book(requests[request_id], grant, yields[request_id], ended)
        return self.take_events()

    # Applying a plan

    def _apply(self, plan: Plan, now: float) -> None:
        hits: dict[str, list[int]] = {}
        granted = [(grant, self._requests[grant.request_id]) for grant in plan.grants]
        for _, request in granted:
            if request.resident_since is None:
                hits[request.id] = list(self._hits.blocks(request))
        for blocks in hits.values():
            self.pool.hold(blocks)
        for refusal in plan.reject:
            self._shed(refusal.request_id, refusal.reason, refusal.retry_after, now)
        for refusal in plan.demote:
            self._requests[refusal.request_id].is_demoted = True
            self._publish(ev.Demoted(refusal.request_id, now, refusal.reason))
        for preempt in plan.preempt:
            request = self._requests[preempt.request_id]
            if preempt.how is PreemptHow.SWAP:
                self._host.keep(request.id, len(request.blocks))
            self._preempt(request, now)
        for grant, request in granted:
            if request.resident_since is None:
                self._admit(request, hits[request.id], now)
            extra = min(grant.spec.max_nodes, plan.node_budget) if grant.spec else 0
            request.launch(grant.num_tokens)
            self._running.grow(request, extra)
        self._pin.count(plan, now)

    def _admit(self, request: Request, hits: list[int], now: float) -> None:
        self._waiting.remove(request)
        self._running.enter(request, hits, now)
        if request.first_scheduled is None:
            request.first_scheduled = now
            request.num_cached_tokens = request.num_computed_tokens
            self._publish(ev.Admitted(request.id, now, request.num_computed_tokens))
        else:
            self._publish(ev.Resumed(request.id, now, request.num_computed_tokens))

    def _preempt(self, request: Request, now: float) -> None:
        """Send a resident back to the queue: at once, or when its last step in flight commits."""
        if request.num_in_flight_tokens:
            request.is_leaving = True
            return
        how = self._running.preempt(request)
        request.is_leaving = False
        request.num_preemptions += 1
        self._waiting.push(request)
        self._publish(ev.Preempted(request.id, now, how))

    # Booking an outcome

    def _book(self, request: Request, grant: Grant, made: Yield, ended: float) -> None:
        before = request.num_computed_tokens
        request.land(grant.num_tokens, made.accepted)
        if request.has_ended:
            if not request.num_in_flight_tokens:
                self._forget(request)
            return
        if made.tokens and request.first_token is None:
            for sample in self._groups[request.group]:
                sample.has_begun = True
        request.emit(made.tokens, ended)
        reason = made.finish
        if reason is not FinishReason.ERROR:
            self._running.name(request, before)
        if reason is None and request.num_output_tokens >= request.sampling.max_tokens:
            reason = FinishReason.LENGTH
        if reason is not None:
            self._finish(request, reason, ended, made.error)
            return
        if grant.spec is not None:
            self._running.shrink(request)
        if self._siblings and request.num_computed_tokens >= request.num_prompt_tokens:
            self._release_siblings(request)
        if request.is_leaving:
            self._preempt(request, ended)

    def _release_siblings(self, leader: Request) -> None:
        """Let the other samples in once the prompt they share is computed."""
        for sibling in self._siblings.pop(leader.group, ()) if leader.sample == 0 else ():
            self._waiting.push(sibling)

    # Ending

    def _finish(
        self, request: Request, reason: FinishReason, now: float, message: str | None = None
    ) -> None:
        self._end(request, reason, ev.Finished(request.id, now, reason, message))

    def _shed(self, request_id: str, reason: Reason, retry_after: float | None, now: float) -> None:
        """Refuse a submission that waits; all its samples go together."""
        request = self._requests.get(request_id)
        if request is None:
            return  # a sibling that the same plan refused took it along
        if request.has_begun:
            raise PlanError(f"{request_id} has sent a token: it may be demoted, not shed")
        for sample in list(self._groups[request.group]):
            event = ev.Rejected(sample.id, now, reason, retry_after)
            self._end(sample, FinishReason.ERROR, event)

    def _end(
        self, request: Request, reason: FinishReason, event: ev.Finished | ev.Rejected
    ) -> None:
        group = self._groups[request.group]
        self._release_siblings(request)
        self.programs.charge(request, reason)
        if request.resident_since is None:
            self._waiting.remove(request)
            self._host.drop(request.id)
            del self._requests[request.id]
        elif request.num_in_flight_tokens:
            request.is_leaving = request.has_ended = True
        else:
            self._forget(request)
        group.remove(request)
        self._publish(event)
        if not group:
            del self._groups[request.group]
            self._leave_program(request, event.now, reason)

    def _leave_program(self, request: Request, now: float, reason: FinishReason) -> None:
        self._publish_closed(self.programs.leave(request, now, reason), now)

    def _close_idle_programs(self, now: float) -> None:
        for program in self.programs.expire(now):
            self._publish_closed(program, now)

    def _forget(self, request: Request) -> None:
        self._running.leave(request)
        del self._requests[request.id]

    def _refusal(self, requests: list[Request]) -> Reason | None:
        if self.is_draining:
            return Reason.DRAINING
        most = requests[0].max_total_tokens
        if -(-most // self.pool.block_size) > self.pool.num_blocks:
            return Reason.TOO_LARGE
        num_tokens = sum(request.num_prompt_tokens for request in requests)
        return self._waiting.refuse(len(requests), num_tokens, self.queue_limits)

    # Publishing

    def _publish(self, event: ev.Event) -> None:
        self._events.append(event)
        for observe in self._subscribers:
            observe(event)

    def _publish_closed(self, program: ProgramState | None, now: float) -> None:
        if program is not None:
            ended = program.opened if program.ended is None else program.ended
            calls = program.num_finished_calls
            self._publish(ev.ProgramClosed(program.id, now, ended, program.met, program.app, calls))
