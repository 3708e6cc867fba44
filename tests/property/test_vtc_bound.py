"""What virtual token counters promise: a bound on how far two tenants in line can drift apart."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from giusto.core.events import Arrived, Finished
from giusto.core.plan import Limits, Plan, Policy, View
from giusto.core.request import SamplingParams, Submission
from harness import Drive, policy_named

BLOCK = 4
W_IN, W_OUT = 1.0, 2.0


@dataclass(frozen=True)
class Client:
    """Load from `start` on: `count` requests in bursts, no longer than stated.

    The tenant is the first letter of the name, so that one may come in two waves.
    """

    name: str
    count: int
    max_prompt: int
    max_output: int
    start: float = 0.0
    gap: float = 0.0
    weight: float = 1.0


@dataclass(frozen=True)
class Machine:
    """What serves them; `num_tokens` is the whole cache."""

    num_blocks: int = 32
    max_num_batched_tokens: int = 32
    max_num_seqs: int = 16
    lookahead: int = 0

    @property
    def num_tokens(self) -> int:
        return self.num_blocks * BLOCK

    @property
    def bound(self) -> float:
        """2 U, where U = max(w_in x prompt, w_out x cache); no prompt exceeds the cache."""
        return 2 * W_OUT * self.num_tokens


@dataclass
class Ledger:
    """Service by tenant over committed steps, counted without the policy's help.

    `drift` is by how much the difference of two tenants moved while both had requests in line;
    `shared` is what each was served in such steps.
    """

    lengths: dict[str, int]
    drift: float = 0.0
    tenants: dict[str, tuple[str, float, int]] = field(default_factory=dict)
    served: dict[str, float] = field(default_factory=dict)
    shared: Counter[str] = field(default_factory=Counter)
    _seen: dict[str, float] = field(default_factory=dict)
    _spans: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    _before: dict[str, float] = field(default_factory=dict)

    def observe(self, event: object) -> None:
        if isinstance(event, Arrived):
            request = event.request
            self.tenants[request.id] = (request.tenant, request.weight, request.num_prompt_tokens)
            self.served.setdefault(request.tenant, 0.0)
        elif isinstance(event, Finished):
            _, _, prompt = self.tenants[event.request_id]
            self._book(event.request_id, prompt, self.lengths[event.request_id])

    def look(self, drive: Drive) -> None:
        """Book a step just committed."""
        for request in drive.scheduler.requests.values():
            if not request.is_leaving:
                prompt = min(request.num_computed_tokens, request.num_prompt_tokens)
                self._book(request.id, prompt, request.num_output_tokens)
        waiting = {request.tenant for request in drive.scheduler.waiting}
        for pair in combinations(sorted(self.served), 2):
            if not waiting.issuperset(pair):
                self._spans.pop(pair, None)
                continue
            if pair in self._spans:
                self.shared.update({t: self.served[t] - self._before[t] for t in pair})
            difference = self.served[pair[0]] - self.served[pair[1]]
            low, high = self._spans.get(pair, (difference, difference))
            low, high = self._spans[pair] = min(low, difference), max(high, difference)
            self.drift = max(self.drift, high - low)
        self._before = self.served.copy()

    def _book(self, request_id: str, num_prompt: int, num_output: int) -> None:
        tenant, weight, _ = self.tenants[request_id]
        total = (W_IN * num_prompt + W_OUT * num_output) / weight
        before = self._seen.get(request_id, 0.0)
        self._seen[request_id] = max(before, total)
        self.served[tenant] += self._seen[request_id] - before


def run(policy: Policy, machine: Machine, clients: list[Client], seed: int = 0) -> Ledger:
    """Serve the clients to the end."""
    draw = random.Random(seed)
    asks, lengths = [], {}
    for client in clients:
        at = client.start
        for i in range(client.count):
            name = f"{client.name}{i}"
            at += client.gap * draw.choice((0, 0, 3))
            prompt = draw.randint(1 + client.max_prompt // 2, client.max_prompt)
            lengths[name] = draw.randint(1 + client.max_output // 2, client.max_output)
            sampling = SamplingParams(max_tokens=client.max_output)
            asks.append(
                Submission(
                    name, at, prompt, tenant=client.name[0], weight=client.weight, sampling=sampling
                )
            )
    ledger = Ledger(lengths)
    limits = Limits(machine.max_num_batched_tokens, machine.max_num_seqs, BLOCK)
    drive = Drive.of(
        policy,
        lengths,
        num_blocks=machine.num_blocks,
        limits=limits,
        lookahead=machine.lookahead,
        observers=[ledger.observe],
        after_step=ledger.look,
    )
    drive.run(asks)
    assert drive.emitted == lengths
    return ledger


def vtc(**options: object) -> Policy:
    return policy_named("vtc", **options)[0]


def sizes(max_tokens: int) -> st.SearchStrategy[int]:
    """Short, long or anything between."""
    return st.sampled_from((2, max_tokens)) | st.integers(2, max_tokens)


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    return Machine(
        draw(st.sampled_from((16, 24, 32, 48))),
        draw(st.sampled_from((8, 32, 128))),
        draw(st.sampled_from((2, 4, 16, 64))),
        draw(st.integers(0, 1)),
    )


@st.composite
def contests(draw: st.DrawFn) -> tuple[Machine, list[Client]]:
    """Two or three tenants, as unlike as can be; a request fills at most half the cache.

    As many run at once as fit whole: the paper reserves memory for whole answers.
    """
    machine = draw(machines())
    clients = []
    for name in "abc"[: draw(st.integers(2, 3))]:
        prompt, output = draw(sizes(machine.num_blocks)), draw(sizes(machine.num_blocks))
        most = 6 * machine.num_tokens // (prompt + output)
        clients.append(
            Client(
                name,
                min(100, most),
                prompt,
                output,
                start=draw(st.sampled_from((0.0, 0.0, 0.5, 2.0))),
                gap=draw(st.sampled_from((0.0, 0.01, 0.1))),
            )
        )
    most = max(-(-(c.max_prompt + c.max_output) // BLOCK) for c in clients)
    fitting = min(machine.max_num_seqs, machine.num_blocks // most)
    return replace(machine, max_num_seqs=max(1, fitting)), clients


@settings(max_examples=80)
@given(contests(), st.integers(0, 1000))
def test_two_tenants_in_line_drift_no_further_apart_than_2u(
    contest: tuple[Machine, list[Client]], seed: int
) -> None:
    """While both wait, the difference of their service moves by 2 U at most, at every step."""
    machine, clients = contest
    assert run(vtc(), machine, clients, seed).drift <= machine.bound


@settings(max_examples=20)
@given(contests(), st.lists(st.sampled_from((0.5, 1.0, 3.0)), min_size=3, max_size=3))
def test_the_bound_holds_by_weight(
    contest: tuple[Machine, list[Client]], weights: list[float]
) -> None:
    """Service over weight drifts by 2 U over the least weight at most."""
    machine, clients = contest
    weighted = [
        Client(c.name, c.count, c.max_prompt, c.max_output, c.start, c.gap, weight)
        for c, weight in zip(clients, weights, strict=False)
    ]
    bound = machine.bound / min(weights)
    assert run(vtc(), machine, weighted).drift <= bound


#: One tenant is alone for long; then the other floods, and both wait.
LATE = [Client("a", 200, 8, 8), Client("b", 120, 8, 8, start=1.0)]
#: The line runs empty before the second tenant floods; the first comes back a moment later.
GONE = [
    Client("a", 60, 8, 8),
    Client("b", 120, 8, 8, start=1.2),
    Client("a-", 120, 8, 8, start=1.21),
]


@pytest.mark.parametrize("clients", [LATE, GONE], ids=["in line", "gone"])
def test_without_the_lift_an_idle_tenant_collects_credit(clients: list[Client]) -> None:
    """Least-counter-first breaks the bound after an idle phase; the lift keeps it.

    Also when nobody is in line to be level with: the tenant that left last stands for it.
    """
    machine = Machine()
    kept, broken = (run(vtc(lift=lift), machine, clients) for lift in (True, False))
    assert min(kept.shared["a"], kept.shared["b"]) > machine.bound
    assert kept.drift <= machine.bound
    assert broken.drift > machine.bound


def test_first_come_first_served_keeps_no_bound() -> None:
    """The ledger finds the difference when one tenant asks for eight times as much."""
    machine = Machine()
    clients = [Client("a", 100, 32, 32), Client("b", 100, 4, 4)]
    assert run(policy_named("fcfs")[0], machine, clients).drift > 2 * machine.bound
    assert run(vtc(), machine, clients).drift <= machine.bound


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_weights_are_shares(weight: float) -> None:
    """While both wait, a tenant of weight 3 is served three times as much as one of weight 1."""
    clients = [Client("a", 600, 8, 8), Client("b", 400, 4, 16)]
    shared = run(vtc(weights=f"a={weight}"), Machine(), clients).shared
    assert shared["a"] / shared["b"] == pytest.approx(weight, rel=0.05)


class Workers:
    """Passes plans through; asserts that none leaves tokens over that somebody could have used."""

    def __init__(self, inner: Policy) -> None:
        self.inner = inner
        self.num_idle = 0

    def plan(self, view: View) -> Plan:
        plan = self.inner.plan(view)
        granted = {grant.request_id for grant in plan.grants}
        if plan.num_tokens < view.limits.max_num_batched_tokens and not plan.preempt:
            left = [r for r in view.waiting if r.id not in granted]
            admitted = sum(r.id in granted for r in view.waiting)
            free = view.free_blocks - sum(
                view.cost(g.request_id, g.num_tokens).total for g in plan.grants
            )
            room = view.limits.max_num_batched_tokens - plan.num_tokens
            heads = {r.tenant: r for r in reversed(left)}.values()
            fits = [view.cost(r.id, min(r.num_remaining_tokens, room)).total <= free for r in heads]
            assert not left or admitted == view.free_slots or not all(fits)
            self.num_idle += 1
        return plan

    def observe(self, event: object) -> None:
        self.inner.observe(event)


@settings(max_examples=20)
@given(contests())
def test_no_work_is_left_undone_for_fairness(contest: tuple[Machine, list[Client]]) -> None:
    """A step leaves tokens over only when slots or memory are out, or nobody is left in line."""
    machine, clients = contest
    run(Workers(vtc()), machine, clients)
