"""Turn a policy's order into grants: the only place where tokens and blocks are given out.

`pack` walks the order once, on counts alone; blocks get their numbers later, when the scheduler
applies the plan. It holds the progress rule (docs/design/0004-the-progress-rule.md): only a running
request may evict by default, the oldest resident is pinned, and a pin that was passed over too long
goes first. With it any order whatsoever finishes all requests, even one that is redrawn at random
each step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import chain

from giusto.core.plan import Grant, Plan, Preempt, PreemptHow, Refusal, Spec, View, Want
from giusto.core.request import RequestView


class PreemptFor(Enum):
    """For whose sake a resident request may lose its blocks; also NOBODY yields to a stall."""

    NOBODY = "nobody"
    RUNNING = "running"
    ANYBODY = "anybody"


@dataclass(frozen=True, slots=True)
class Budget:
    """What one step may spend. None leaves the view's own limit.

    max_tokens: certain tokens; max_prefill_tokens: those of them that may go to prompts;
    node_budget: speculated nodes beside them; chunk: whether a prompt may be cut.
    """

    max_tokens: int | None = None
    max_prefill_tokens: int | None = None
    node_budget: int = 0
    chunk: bool = True


FULL = Budget()


def pack(
    wants: Iterable[Want],
    view: View,
    *,
    budget: Budget = FULL,
    preempt_for: PreemptFor = PreemptFor.RUNNING,
    reject: Iterable[Refusal] = (),
    wake_at: float | None = None,
) -> Plan:
    """Serve `wants` in order until tokens, slots or blocks run out.

    A resident that is not wanted keeps its blocks but is the first to lose them. The first waiting
    request that does not fit ends admission, so that small ones cannot starve a large one; so does
    a preemption. Reads no further in `wants` than it must. `wake_at` stands only when nothing is
    granted; without it someone is served rather than nobody, the pin first.

    Raises KeyError for a want whose request the view does not know.
    """
    refused = tuple(reject)
    if (pin := view.pin) is not None and pin.is_overdue:
        wants = _pin_first(wants, view, pin.request_id)
        if budget.max_prefill_tokens is not None:
            least = max(budget.max_prefill_tokens, view.limits.block_size)
            budget = replace(budget, max_prefill_tokens=least)
    packing = _Packing(view, budget, preempt_for, refused)
    packing.serve(iter(wants))
    if not packing.grants and wake_at is None and not _is_in_flight(view):
        everyone = (Want(request.id) for request in chain(view.running, view.waiting))
        preempt_for = PreemptFor.RUNNING
        packing = _Packing(view, Budget(view.limits.block_size), preempt_for, refused)
        packing.serve(everyone)
    return Plan(
        step=view.step,
        grants=tuple(packing.grants),
        node_budget=packing.num_nodes,
        preempt=tuple(packing.preempted),
        reject=refused,
        wake_at=None if packing.grants else wake_at,
    )


def speculate(plan: Plan, view: View, specs: Iterable[tuple[str, Spec]], *, max_nodes: int) -> Plan:
    """Let decodes of a plan speculate with the tokens and blocks that it leaves.

    `specs` has what each of them asks for, who comes first when blocks are short in front; together
    they get at most `max_nodes`. Certain work is never displaced: whoever finds no room decodes as
    it would have. A plan that takes anybody's blocks stays as it is, for memory is short; so does
    one that speculates already.
    """
    room = view.limits.max_num_batched_tokens - plan.num_tokens
    budget = min(max_nodes, room)
    if budget < 1 or plan.preempt or plan.reject or any(grant.spec for grant in plan.grants):
        return plan
    places = {grant.request_id: place for place, grant in enumerate(plan.grants)}
    costs = {grant.request_id: view.cost(*grant[:2]).total for grant in plan.grants}
    free_blocks = view.free_blocks - sum(costs.values())
    grants = list(plan.grants)
    total = 0
    for request_id, spec in specs:
        grant = grants[places[request_id]]
        nodes = min(spec.max_nodes, budget)
        blocks = view.cost(request_id, grant.num_tokens + nodes).total - costs[request_id]
        if nodes < 1 or blocks > free_blocks:
            continue
        free_blocks -= blocks
        total += nodes
        grants[places[request_id]] = grant._replace(spec=replace(spec, max_nodes=nodes))
    return replace(plan, grants=tuple(grants), node_budget=min(total, budget))


def _pin_first(wants: Iterable[Want], view: View, pin: str) -> Iterator[Want]:
    """Move the pin to the front; with one block's worth of tokens when it was to get nothing."""
    rest = list(wants)
    wanted = [want for want in rest if want.request_id == pin]
    is_served = wanted and wanted[0].max_tokens != 0
    front = wanted[0] if is_served else Want(pin, view.limits.block_size)
    return iter([front, *(want for want in rest if want.request_id != pin)])


def _is_in_flight(view: View) -> bool:
    return any(request.num_in_flight_tokens for request in view.running)


@dataclass(slots=True)
class _Packing:
    """The running account of one step.

    A hit that one resident alone holds is free only as long as that resident stays. `num_lent`
    counts such hits; when anyone is evicted they are paid for, and so are later ones at once.
    """

    view: View
    budget: Budget
    preempt_for: PreemptFor
    refused: tuple[Refusal, ...]
    grants: list[Grant] = field(default_factory=list)
    preempted: list[Preempt] = field(default_factory=list)
    num_nodes: int = 0
    order: Iterator[Want] = field(default_factory=lambda: iter(()))
    is_admitting: bool = True
    visited: set[str] = field(default_factory=set)
    num_unvisited: int = 0
    free_tokens: int = 0
    free_prefill: int = 0
    free_blocks: int = 0
    free_slots: int = 0
    free_host_blocks: int = 0
    num_lent: int = 0
    has_reclaimed: bool = False
    candidates: list[str] | None = None
    hopeless: int | None = None

    def __post_init__(self) -> None:
        budget, view = self.budget, self.view
        room = view.limits.max_num_batched_tokens - budget.node_budget
        self.free_tokens = room if budget.max_tokens is None else min(room, budget.max_tokens)
        prefill = budget.max_prefill_tokens
        self.free_prefill = room if prefill is None else prefill
        self.free_blocks = view.free_blocks
        self.free_slots = view.free_slots
        self.free_host_blocks = view.free_host_blocks if view.caps.swap else 0
        self.num_unvisited = len(view.running)
        for refusal in self.refused:
            if view.request(refusal.request_id).resident_since is not None:
                self._reclaim(refusal.request_id)
            else:
                self.visited.add(refusal.request_id)

    def serve(self, order: Iterator[Want]) -> None:
        self.order = order
        visited, request_of = self.visited, self.view.request
        while self.free_tokens > 0 and (self.is_admitting or self.num_unvisited):
            want = next(self.order, None)
            if want is None:
                break
            if want.request_id in visited:
                continue
            visited.add(want.request_id)
            request = request_of(want.request_id)
            if request.resident_since is not None:
                self.num_unvisited -= 1
                self._serve_resident(want, request)
            elif self.is_admitting:
                self.is_admitting = self._admit(want, request)

    def _serve_resident(self, want: Want, request: RequestView) -> None:
        remaining = request.num_remaining_tokens
        is_decode = remaining == 1 and want.spec is None and want.max_tokens is None
        num_tokens = 1 if is_decode else self._num_tokens(want, remaining)
        if num_tokens < 1:
            return
        nodes = self._num_nodes(want) if want.spec else 0
        cost = self.view.cost(want.request_id, num_tokens + nodes)
        blocks = cost.fresh + cost.revived
        if blocks > self.free_blocks and self.preempt_for is not PreemptFor.NOBODY:
            self._preempt(blocks, slots=0)
        if blocks > self.free_blocks:
            return
        self.free_blocks -= blocks
        if is_decode:  # nearly all grants: spelt out
            self.free_tokens -= 1
            self.grants.append(Grant(want.request_id, 1))
        else:
            self._grant(want, num_tokens, remaining)

    def _admit(self, want: Want, request: RequestView) -> bool:
        """Try to make a waiting request resident; False ends admission for this step."""
        may_preempt = self.preempt_for is PreemptFor.ANYBODY
        if (self.preempted or self.free_slots < 1) and not may_preempt:
            return False
        if request.num_remaining_tokens < 1:
            return True
        cached = self.view.cost(want.request_id, 1).cached_tokens
        remaining = request.num_remaining_tokens - cached
        num_tokens = self._num_tokens(want, remaining)
        if num_tokens < 1:
            return False
        cost = self.view.cost(want.request_id, num_tokens + self._num_nodes(want))
        if may_preempt and (cost.total > self.free_blocks or self.free_slots < 1):
            self._preempt(cost.total + cost.sole, slots=1)
        blocks = cost.total + (cost.sole if self.has_reclaimed else 0)
        if blocks > self.free_blocks or self.free_slots < 1:
            return False
        if not self.has_reclaimed:
            self.num_lent += cost.sole
        self.free_slots -= 1
        self.free_blocks -= blocks
        self._grant(want, num_tokens, remaining)
        return True

    def _num_tokens(self, want: Want, remaining: int) -> int:
        """Tokens that the budgets leave for one request; 0 when it must wait."""
        most = self.free_tokens if remaining == 1 else min(self.free_tokens, self.free_prefill)
        granted = min(remaining, most)
        if want.max_tokens is not None:
            granted = min(granted, want.max_tokens)
        # An uncut prompt may exceed an empty step's budget only by being cut all the same.
        is_whole = granted == remaining or self.budget.chunk or not self.grants
        return granted if is_whole else 0

    def _num_nodes(self, want: Want) -> int:
        if want.spec is None:
            return 0
        return min(want.spec.max_nodes, self.budget.node_budget)

    def _grant(self, want: Want, num_tokens: int, remaining: int) -> None:
        if want.spec is not None:
            nodes = self.num_nodes + self._num_nodes(want)
            self.num_nodes = min(nodes, self.budget.node_budget)
        self.free_tokens -= num_tokens
        if remaining > 1:
            self.free_prefill -= num_tokens
        self.grants.append(Grant(want.request_id, num_tokens, want.spec))

    def _preempt(self, blocks: int, slots: int) -> None:
        """Evict the least wanted residents until `blocks` and `slots` are free; all or nothing."""
        if self.hopeless is not None and blocks >= self.hopeless:
            return
        victims: list[str] = []
        free_blocks, free_slots = self.free_blocks - self.num_lent, self.free_slots
        for victim in self._victims():
            if free_blocks >= blocks and free_slots >= slots:
                break
            victims.append(victim)
            free_blocks += self.view.freeable(victim)
            free_slots += 1
        if free_blocks < blocks or free_slots < slots:
            if free_blocks < blocks:
                self.hopeless = blocks
            return
        for victim in victims:
            self.preempted.append(Preempt(victim, self._how(victim)))
            self._reclaim(victim)

    def _how(self, victim: str) -> PreemptHow:
        """To host memory while there is room; else what it computed is lost."""
        num_blocks = self.view.held(victim)
        if num_blocks > self.free_host_blocks:
            return PreemptHow.RECOMPUTE
        self.free_host_blocks -= num_blocks
        return PreemptHow.SWAP

    def _victims(self) -> Iterator[str]:
        """Residents that may be evicted: unwanted ones youngest first, then the order's tail."""
        if self.candidates is None:
            rest = list(self.order)
            self.order = iter(rest)
            pin = self.view.pin.request_id if self.view.pin else None
            evictable = {r.id for r in self.view.running if r.id != pin}
            wanted = {want.request_id for want in rest}
            unwanted = (r.id for r in reversed(self.view.running) if r.id not in wanted)
            tail = (want.request_id for want in reversed(rest))
            self.candidates = [i for i in dict.fromkeys(chain(unwanted, tail)) if i in evictable]
        for request_id in self.candidates:
            if request_id not in self.visited and self.view.freeable(request_id) > 0:
                yield request_id

    def _reclaim(self, request_id: str) -> None:
        """Take a resident's blocks back, and pay for the hits that were lent until now."""
        self.visited.add(request_id)
        self.num_unvisited -= 1
        freed = self.view.freeable(request_id)
        self.free_blocks += freed - self.num_lent
        self.free_slots += freed > 0
        self.num_lent = 0
        self.has_reclaimed = True
