"""What a policy sees (`View`) and what it decides (`Plan`): the contract of all three drivers.

The one place where tokens and blocks are granted is `core.pack`; a policy supplies an order and a
budget. Views are read-only protocols, everything else is a frozen value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from giusto.core.errors import PlanError
from giusto.core.latency import BatchShape
from giusto.core.request import FinishReason, Reason, RequestView


@dataclass(frozen=True, slots=True)
class Limits:
    """Budgets of one step, read each step: they may change live. Resident means holding blocks."""

    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 256
    block_size: int = 16

    def __post_init__(self) -> None:
        for name in ("max_num_batched_tokens", "max_num_seqs", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Caps:
    """What a driver can carry out. A policy that needs more fails when it is built.

    `host_blocks` is how many blocks of host memory there are to swap to.
    """

    exact_grants: bool = True
    pause: bool = True
    swap: bool = False
    token_trees: bool = False
    lookahead: int = 0
    host_blocks: int = 0


@dataclass(frozen=True, slots=True)
class BlockCost:
    """Blocks a grant takes from the free ones.

    `revived` are blocks of its cached prefix that nobody holds now: a hit, but no longer free.
    `sole` are those that one request alone holds: shared at no cost, but preempting that request
    would not free them. `cached_tokens` is how many tokens all its hits save.
    """

    fresh: int
    revived: int = 0
    sole: int = 0
    cached_tokens: int = 0

    @property
    def total(self) -> int:
        return self.fresh + self.revived


@dataclass(frozen=True, slots=True)
class Pin:
    """The oldest resident: never preempted, served first once it was passed over too long."""

    request_id: str
    is_overdue: bool


class ProgramView(Protocol):
    """What a policy may know of a program."""

    @property
    def id(self) -> str: ...
    @property
    def app(self) -> str | None: ...
    @property
    def opened(self) -> float: ...
    @property
    def deadline(self) -> float | None:
        """Seconds from `opened`; None without a program SLO."""
        ...

    @property
    def is_missed(self) -> bool: ...
    @property
    def num_active_calls(self) -> int: ...
    @property
    def num_finished_calls(self) -> int: ...
    @property
    def attained_service(self) -> int:
        """Tokens computed for its finished calls (Autellix)."""
        ...


class View(Protocol):
    """The world at `now`, as a policy sees it. Nothing in it changes while a plan is made."""

    @property
    def now(self) -> float: ...
    @property
    def step(self) -> int: ...
    @property
    def waiting(self) -> Sequence[RequestView]:
        """Queued requests in order of arrival; preempted ones are among them, swapped or not."""
        ...

    @property
    def unanswered(self) -> Sequence[RequestView]:
        """Who of `waiting` waits longest for a first token: of each starvation span of best effort,
        and of all who were promised more."""
        ...

    @property
    def running(self) -> Sequence[RequestView]:
        """Resident requests in order of residence; the oldest first."""
        ...

    @property
    def swapped(self) -> Sequence[RequestView]:
        """Those of `waiting` whose KV is in host memory: what they computed is kept.

        A grant moves it back first, and costs all their blocks.
        """
        ...

    @property
    def limits(self) -> Limits: ...
    @property
    def caps(self) -> Caps: ...
    @property
    def free_blocks(self) -> int:
        """Blocks that are unused, or cached and held by nobody."""
        ...

    @property
    def free_slots(self) -> int:
        """Requests that may still become resident."""
        ...

    @property
    def free_host_blocks(self) -> int:
        """Blocks of host memory that requests may still be swapped to."""
        ...

    @property
    def pin(self) -> Pin | None: ...
    def request(self, request_id: str) -> RequestView:
        """Look one up by id; KeyError when it is not in the view."""
        ...

    def program(self, program_id: str) -> ProgramView | None: ...
    def held(self, request_id: str) -> int:
        """Blocks that a request holds."""
        ...

    def freeable(self, request_id: str) -> int:
        """Blocks that preempting a request would free; 0 while it is in flight."""
        ...

    def cost(self, request_id: str, num_tokens: int) -> BlockCost:
        """Blocks that a grant of `num_tokens`, after any prefix hit, takes from the free ones.

        A swapped request has no hit: it takes blocks for all its computed tokens too.
        """
        ...


@dataclass(frozen=True, slots=True)
class Spec:
    """Speculation asked for one request.

    need: tokens owed this step; max_nodes: ceiling of verified nodes, for which blocks are
    reserved; depth, width: draft shape; weight: value of a token beyond the need; least: a
    candidate less likely is not worth drafting; toll: tokens that a draft model's pass must bring.
    """

    need: float = 1.0
    max_nodes: int = 0
    depth: int = 0
    width: int = 1
    weight: float = 1.0
    least: float = 0.0
    toll: float = 0.0


class Want(NamedTuple):
    """One entry of a policy's order: serve this request, with at most so many tokens.

    0 keeps a resident's place in the order for a step that it skips: it is not the first to lose
    its blocks.
    """

    request_id: str
    max_tokens: int | None = None
    spec: Spec | None = None


class Grant(NamedTuple):
    """Certain work of one request in one step: a chunk of its prompt, or 1 = the next token.

    For a request that becomes resident, `num_tokens` counts after its prefix hit.
    """

    request_id: str
    num_tokens: int
    spec: Spec | None = None


class PreemptHow(StrEnum):
    """Where the KV of a preempted request goes: dropped and recomputed, or to host memory."""

    RECOMPUTE = "recompute"
    SWAP = "swap"


@dataclass(frozen=True, slots=True)
class Preempt:
    """Take all blocks of a resident request; it goes back to waiting.

    One that is in flight goes when its last step in flight commits, and gets nothing until then.
    `SWAP` takes room in host memory at once, for all that it holds.
    """

    request_id: str
    how: PreemptHow = PreemptHow.RECOMPUTE


@dataclass(frozen=True, slots=True)
class Refusal:
    """Shed a request that has sent no token, or demote one; with what the client is told."""

    request_id: str
    reason: Reason
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The decision for one step; grants are in service order.

    A plan without grants while requests are runnable carries `wake_at`, later than `now`: the
    driver sleeps until then or until the next arrival, abort or estimate.
    """

    step: int
    grants: tuple[Grant, ...] = ()
    node_budget: int = 0
    preempt: tuple[Preempt, ...] = ()
    reject: tuple[Refusal, ...] = ()
    demote: tuple[Refusal, ...] = ()
    wake_at: float | None = None

    @property
    def num_tokens(self) -> int:
        return sum(grant.num_tokens for grant in self.grants)


@dataclass(frozen=True, slots=True)
class Yield:
    """What a step yielded for one request: `tokens` is empty after a chunk that ends mid-prompt.

    `logprobs` is opaque to the core: the driver's record per token, passed on to the client.
    """

    tokens: tuple[int, ...] = ()
    drafted: int = 0
    selected: int = 0
    accepted: int = 0
    finish: FinishReason | None = None
    error: str | None = None
    logprobs: tuple[object, ...] | None = None


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of the parts of a step."""

    plan: float = 0.0
    draft: float = 0.0
    select: float = 0.0
    verify: float = 0.0
    forward: float = 0.0


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What the executor reports of one step; `yields` has one entry per grant."""

    step: int
    started: float
    ended: float
    shape: BatchShape
    yields: dict[str, Yield] = field(default_factory=dict)
    times: StepTimes = StepTimes()


class Policy(Protocol):
    """Maps a view to a plan. `plan` decides and changes nothing; `observe` learns."""

    def plan(self, view: View) -> Plan: ...
    def observe(self, event: object) -> None: ...


def check(plan: Plan, view: View) -> None:
    """Raise PlanError unless the plan keeps the contract; complexity linear in the view."""
    running = {r.id: r for r in view.running}
    waiting = {r.id: r for r in view.waiting}
    preempted = {p.request_id for p in plan.preempt}
    rejected = {r.request_id for r in plan.reject}
    granted = [g.request_id for g in plan.grants]
    if plan.step != view.step:
        raise PlanError(f"plan is for step {plan.step}, the view for step {view.step}")
    if len(set(granted)) != len(granted):
        raise PlanError("a request was granted twice in one step")
    if plan.num_tokens + plan.node_budget > view.limits.max_num_batched_tokens:
        raise PlanError(
            f"{plan.num_tokens} tokens and {plan.node_budget} nodes exceed the budget of "
            f"{view.limits.max_num_batched_tokens}"
        )
    for grant in plan.grants:
        _check_grant(grant, running, waiting, preempted | rejected)
    if unknown := preempted - running.keys():
        raise PlanError(f"preempted requests are not resident: {sorted(unknown)}")
    if view.pin is not None and view.pin.request_id in preempted:
        raise PlanError(f"{view.pin.request_id} is pinned and cannot be preempted")
    _check_caps(plan, view)
    for refusal in (*plan.reject, *plan.demote):
        if refusal.request_id not in running and refusal.request_id not in waiting:
            raise PlanError(f"cannot refuse unknown request {refusal.request_id}")
    for request_id in rejected:
        if (running.get(request_id) or waiting[request_id]).has_begun:
            raise PlanError(f"{request_id} has sent a token: it may be demoted, not shed")
    _check_room(plan, view, waiting)
    _check_wake(plan, view)


def _check_caps(plan: Plan, view: View) -> None:
    swapped = [p.request_id for p in plan.preempt if p.how is PreemptHow.SWAP]
    if swapped and not view.caps.swap:
        raise PlanError("the plan swaps, and the driver cannot")
    num_blocks = sum(view.held(request_id) for request_id in swapped)
    if num_blocks > view.free_host_blocks:
        raise PlanError(
            f"the plan swaps {num_blocks} blocks out, {view.free_host_blocks} host blocks are free"
        )
    if not view.caps.token_trees and plan.node_budget:
        raise PlanError("the plan has a node budget, and the driver verifies no token trees")


def _check_grant(
    grant: Grant,
    running: dict[str, RequestView],
    waiting: dict[str, RequestView],
    gone: set[str],
) -> None:
    request = running.get(grant.request_id) or waiting.get(grant.request_id)
    if request is None or grant.request_id in gone:
        raise PlanError(f"granted {grant.request_id}, which is unknown, preempted or refused")
    if not 1 <= grant.num_tokens <= request.num_remaining_tokens:
        raise PlanError(
            f"granted {grant.num_tokens} tokens to {grant.request_id}, "
            f"which has {request.num_remaining_tokens} left to compute"
        )


def _check_room(plan: Plan, view: View, waiting: dict[str, RequestView]) -> None:
    leaving = [p.request_id for p in plan.preempt]
    leaving += [r.request_id for r in plan.reject if r.request_id not in waiting]
    # Who is in flight leaves later, and gives nothing to this step.
    leaving = [i for i in leaving if not view.request(i).num_in_flight_tokens]
    free = view.free_blocks + sum(view.freeable(request_id) for request_id in leaving)
    needed = 0
    admitted = 0
    for grant in plan.grants:
        extra = min(grant.spec.max_nodes, plan.node_budget) if grant.spec else 0
        cost = view.cost(grant.request_id, grant.num_tokens + extra)
        needed += cost.total + (cost.sole if leaving else 0)
        admitted += grant.request_id in waiting
    if needed > free:
        raise PlanError(f"grants need {needed} blocks, {free} are free")
    if admitted > view.free_slots + len(leaving):
        raise PlanError(f"{admitted} admissions exceed {view.free_slots} free slots")


def _check_wake(plan: Plan, view: View) -> None:
    if plan.wake_at is not None and plan.wake_at <= view.now:
        raise PlanError(f"wake_at {plan.wake_at} is not later than now {view.now}")
    refused = {r.request_id for r in plan.reject}
    is_runnable = any(
        r.num_remaining_tokens > 0 and r.id not in refused for r in (*view.running, *view.waiting)
    )
    in_flight = any(r.num_in_flight_tokens for r in view.running)
    if not plan.grants and is_runnable and not in_flight and plan.wake_at is None:
        raise PlanError("nothing is granted while requests are runnable, and wake_at is not set")
