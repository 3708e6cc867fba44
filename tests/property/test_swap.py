"""Swapping: whatever the order and however little memory there is, nothing is lost or redone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from giusto.core.events import Event, Finished, Preempted, Rejected, Resumed, Stepped
from giusto.core.pack import Budget, PreemptFor, pack
from giusto.core.plan import Caps, Plan, Policy, Preempt, PreemptHow, View, Want
from giusto.core.request import FinishReason, RequestView
from giusto.policies import REGISTRY
from giusto.policies.base import Stateless
from harness import Drive, policy_named
from strategies import Load, mixed_load

#: Room for one large request of `mixed_load` and a little more.
STARVED = 18
AMPLE = 1000
SEEDS = st.integers(0, 10_000)
LOOKAHEADS = st.sampled_from([0, 1])


class Adversary(Stateless):
    """An order redrawn at random each step with parts left out; it evicts who is in flight too."""

    def __init__(self, seed: int, preempt_for: PreemptFor) -> None:
        self.seed = seed
        self.preempt_for = preempt_for

    def plan(self, view: View) -> Plan:
        draw = random.Random(f"{self.seed}/{view.step}/{view.now}")
        names = [r.id for r in (*view.running, *view.waiting)]
        order = [
            Want(name, draw.choice((None, None, 1, 20)))
            for name in draw.sample(names, draw.randint(0, len(names)))
        ]
        budget = Budget(max_tokens=draw.choice((None, 1, 64)), chunk=draw.random() < 0.8)
        plan = pack(order, view, budget=budget, preempt_for=self.preempt_for)
        return replace(plan, preempt=plan.preempt + self._evicted(plan, view, draw))

    def _evicted(self, plan: Plan, view: View, draw: random.Random) -> tuple[Preempt, ...]:
        spared = {grant.request_id for grant in plan.grants}
        spared |= {preempt.request_id for preempt in plan.preempt}
        spared |= {view.pin.request_id} if view.pin else set()
        swapped = (p.request_id for p in plan.preempt if p.how is PreemptHow.SWAP)
        room = view.free_host_blocks - sum(map(view.held, swapped))
        evicted = []
        for request in view.running:
            if not request.num_in_flight_tokens or request.id in spared or draw.random() < 0.7:
                continue
            is_swapped = view.held(request.id) <= room and draw.random() < 0.7
            room -= view.held(request.id) if is_swapped else 0
            how = PreemptHow.SWAP if is_swapped else PreemptHow.RECOMPUTE
            evicted.append(Preempt(request.id, how))
        return tuple(evicted)


@dataclass
class Ledger:
    """Follows what each request has computed; asserts that only recomputing loses any of it."""

    requests: Mapping[str, RequestView]
    computed: dict[str, int] = field(default_factory=dict)
    preempted: Counter[PreemptHow] = field(default_factory=Counter)

    def observe(self, event: object) -> None:
        match event:
            case Preempted(request_id, _, how):
                self.preempted[how] += 1
                request = self.requests[request_id]
                self.computed[request_id] = request.num_computed_tokens
                assert request.resident_since is None
                assert (request.num_computed_tokens > 0) == (how is PreemptHow.SWAP)
            case Resumed(request_id, _, kept) if self.computed.get(request_id):
                assert kept == self.computed.pop(request_id)
            case _:
                pass


def checked(drive: Drive) -> None:
    scheduler = drive.scheduler
    scheduler.check()
    view = scheduler.view(drive.now)
    held = {block for r in scheduler.requests.values() for block in r.blocks}
    assert view.free_blocks + len(held) == scheduler.pool.num_blocks
    size = scheduler.limits.block_size
    swapped = sum(-(-r.num_computed_tokens // size) for r in view.swapped)
    leaving = sum(len(r.blocks) for r in scheduler.requests.values() if r.is_leaving)
    used = scheduler.caps.host_blocks - view.free_host_blocks
    assert swapped <= used <= swapped + leaving
    assert set(view.swapped) <= set(view.waiting)


def ends(events: list[Event]) -> Counter[str]:
    return Counter(e.request_id for e in events if isinstance(e, Finished | Rejected))


def run(
    policy: Policy, load: Load, host_blocks: int, lookahead: int = 0, **options: object
) -> tuple[Drive, Ledger]:
    """Run to the end on a starved pool and assert that all ended once and nothing is held."""
    caps = Caps(swap=host_blocks > 0, host_blocks=host_blocks, lookahead=lookahead)
    options.setdefault("after_step", checked)
    drive = Drive.of(policy, load.lengths, num_blocks=STARVED, caps=caps, **options)
    ledger = Ledger(drive.scheduler.requests)
    drive.scheduler.subscribe(ledger.observe)
    drive.run(load.asks, max_steps=20_000)
    assert ends(drive.events) == Counter(dict.fromkeys(load.lengths, 1))
    drive.scheduler.check()
    assert drive.scheduler.pool.num_free == STARVED
    assert drive.scheduler.view(drive.now).free_host_blocks == host_blocks
    return drive, ledger


def computed(drive: Drive) -> int:
    return sum(plan.num_tokens for plan in drive.plans)


@settings(max_examples=24)
@given(SEEDS, st.sampled_from([1, 3, 12, AMPLE]), LOOKAHEADS, st.sampled_from(PreemptFor))
def test_an_adversarial_order_finishes_every_request(
    seed: int, host_blocks: int, lookahead: int, preempt_for: PreemptFor
) -> None:
    """Any order, any eviction, any room: each request ends with its tokens, none computed twice
    but of those that were preempted to be recomputed."""
    load = mixed_load(25, seed)
    drive, _ = run(Adversary(seed, preempt_for), load, host_blocks, lookahead)
    assert drive.emitted == load.lengths


@settings(max_examples=10)
@given(SEEDS, LOOKAHEADS)
def test_with_room_for_all_nothing_is_computed_twice(seed: int, lookahead: int) -> None:
    """Where host memory holds everyone, each token of a request is computed once or shared."""
    load = mixed_load(25, seed)
    policy, lengths = policy_named("fcfs")
    drive, ledger = run(policy, load, AMPLE, lookahead, observers=[lengths.observe])
    assert not ledger.preempted[PreemptHow.RECOMPUTE]
    prompts = {ask.id: ask.num_prompt_tokens for ask in load.asks}
    needed = sum(prompts[i.partition("#")[0]] + n - 1 for i, n in load.lengths.items())
    # A step planned ahead of an ending computes one token for nothing.
    assert computed(drive) <= needed + lookahead * len(load.lengths)


@pytest.mark.parametrize("name", REGISTRY)
def test_every_policy_gives_the_same_answers(name: str) -> None:
    """Each policy has every request end with its tokens when it swaps, and it does swap."""
    load = mixed_load(40, seed=3)
    policy, lengths = policy_named(name, truth=load.lengths)
    drive, ledger = run(policy, load, 12, 1, observers=[lengths.observe])
    assert ledger.preempted[PreemptHow.SWAP]
    assert drive.emitted == drive.answered(load.lengths)


@pytest.mark.parametrize("seed", range(4))
def test_swapping_spares_recomputing(seed: int) -> None:
    """Under memory pressure a run computes fewer tokens with host memory than without."""
    load = mixed_load(40, seed, num_prefixes=1)
    totals = []
    for host_blocks in (0, AMPLE):
        policy, lengths = policy_named("sarathi")
        drive, _ = run(policy, load, host_blocks, observers=[lengths.observe])
        totals.append(computed(drive))
    assert totals[1] < totals[0]


@settings(max_examples=10)
@given(SEEDS, st.sampled_from([3, AMPLE]), LOOKAHEADS)
def test_aborts_at_any_time_give_host_memory_back(
    seed: int, host_blocks: int, lookahead: int
) -> None:
    """Cancelled swapped out, on its way out, or running, each ends once and holds nothing."""
    load = mixed_load(30, seed)
    draw = random.Random(seed)

    def cancel(drive: Drive) -> None:
        checked(drive)
        scheduler = drive.scheduler
        names = [r.id for r in scheduler.view(drive.now).swapped] or list(scheduler.requests)
        if names and draw.random() < 0.2:
            scheduler.abort(scheduler.requests[draw.choice(names)].group, drive.now)
            scheduler.check()

    policy = Adversary(seed, PreemptFor.RUNNING)
    drive, _ = run(policy, load, host_blocks, lookahead, after_step=cancel)
    assert any(isinstance(e, Finished) and e.reason is FinishReason.ABORT for e in drive.events)


@settings(max_examples=10)
@given(SEEDS, LOOKAHEADS)
def test_what_goes_out_comes_in(seed: int, lookahead: int) -> None:
    """Blocks that move are counted once each way; those of a request that is not aborted return."""
    load = mixed_load(25, seed)
    out = Counter[str]()

    def observe(event: object) -> None:
        if isinstance(event, Preempted) and event.how is PreemptHow.SWAP:
            request = drive.scheduler.requests[event.request_id]
            out["blocks"] += -(-request.num_computed_tokens // 16)
        elif isinstance(event, Stepped):
            out["told"] += drive.scheduler.take_swapped_blocks()

    caps = Caps(swap=True, host_blocks=12, lookahead=lookahead)
    policy = Adversary(seed, PreemptFor.RUNNING)
    drive = Drive.of(policy, load.lengths, num_blocks=STARVED, caps=caps, observers=[observe])
    drive.run(load.asks, max_steps=20_000)
    out["told"] += drive.scheduler.take_swapped_blocks()
    assert out["told"] == 2 * out["blocks"]
