"""The progress rule: whatever the order, every request ends, and nothing is lost on the way."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest

from giusto.core.events import Event, Finished, Preempted, Rejected, Stepped
from giusto.core.pack import Budget, PreemptFor, pack
from giusto.core.plan import Caps, Plan, Policy, Preempt, View, Want
from giusto.core.request import FinishReason
from giusto.policies import REGISTRY
from giusto.policies.base import Stateless
from harness import Drive, policy_named
from strategies import Load, mixed_load

#: Room for one large request of `mixed_load` and a little more.
STARVED = 18
LOOKAHEADS = [0, 1]


class Adversary(Stateless):
    """An order redrawn at random each step, with parts left out, under random budgets."""

    def __init__(self, seed: int, preempt_for: PreemptFor) -> None:
        self.seed = seed
        self.preempt_for = preempt_for

    def plan(self, view: View) -> Plan:
        draw = random.Random(f"{self.seed}/{view.step}/{view.now}")
        names = [r.id for r in (*view.running, *view.waiting)]
        wants = [
            Want(name, draw.choice((None, None, 1, 20)))
            for name in draw.sample(names, draw.randint(0, len(names)))
        ]
        budget = Budget(
            max_tokens=draw.choice((None, 1, 64)),
            max_prefill_tokens=draw.choice((None, None, 0, 32)),
            chunk=draw.random() < 0.8,
        )
        wake_at = view.now + 0.1 if draw.random() < 0.05 else None
        return pack(wants, view, budget=budget, preempt_for=self.preempt_for, wake_at=wake_at)


class Evictor(Adversary):
    """Also preempts residents that a step in flight is writing."""

    def plan(self, view: View) -> Plan:
        plan = super().plan(view)
        draw = random.Random(f"{self.seed}/{view.step}/{view.now}/evict")
        spared = {grant.request_id for grant in plan.grants} | {p.request_id for p in plan.preempt}
        spared |= {view.pin.request_id} if view.pin else set()
        flying = [r.id for r in view.running if r.num_in_flight_tokens and r.id not in spared]
        evicted = tuple(Preempt(name) for name in flying if draw.random() < 0.3)
        return replace(plan, preempt=plan.preempt + evicted)


def checked(drive: Drive) -> None:
    drive.scheduler.check()


def ends(events: list[Event]) -> Counter[str]:
    return Counter(e.request_id for e in events if isinstance(e, Finished | Rejected))


def run(policy: Policy, load: Load, lookahead: int, **options: object) -> Drive:
    """Run to the end on a starved pool and assert that all ended once and nothing is held."""
    drive = Drive.of(
        policy,
        load.lengths,
        num_blocks=STARVED,
        lookahead=lookahead,
        after_step=checked,
        **options,
    )
    drive.run(load.asks, max_steps=20_000)
    assert ends(drive.events) == Counter(dict.fromkeys(load.lengths, 1))
    drive.scheduler.check()
    assert drive.scheduler.pool.num_free == STARVED
    return drive


@pytest.mark.parametrize("lookahead", LOOKAHEADS)
@pytest.mark.parametrize("name", REGISTRY)
def test_every_policy_finishes_every_request(name: str, lookahead: int) -> None:
    """On a starved pool each request ends once, with all its tokens unless it was shed."""
    load = mixed_load(60, seed=3)
    policy, lengths = policy_named(name, truth=load.lengths)
    drive = run(policy, load, lookahead, observers=[lengths.observe])
    assert any(isinstance(event, Preempted) for event in drive.events)
    assert drive.emitted == drive.answered(load.lengths)


@pytest.mark.parametrize("name", REGISTRY)
def test_every_policy_gets_by_on_a_driver_that_can_do_nothing(name: str) -> None:
    """A driver without exact grants, pauses, swapping or trees still has every request end."""
    nothing = Caps(exact_grants=False, pause=False, swap=False, token_trees=False)
    load = mixed_load(60, seed=3)
    policy, lengths = policy_named(name, truth=load.lengths)
    drive = run(policy, load, 0, observers=[lengths.observe], caps=nothing)
    assert drive.emitted == drive.answered(load.lengths)


@pytest.mark.parametrize("lookahead", LOOKAHEADS)
@pytest.mark.parametrize("seed", range(16))
def test_an_adversarial_order_finishes_every_request(seed: int, lookahead: int) -> None:
    """Ranks redrawn each step, wants left out, odd budgets: the pin sees all of them through."""
    load = mixed_load(25, seed)
    drive = run(Adversary(seed, PreemptFor.RUNNING), load, lookahead)
    assert drive.emitted == load.lengths


@pytest.mark.parametrize("seed", range(8))
def test_preempting_in_flight_loses_nothing(seed: int) -> None:
    """Residents that lose their blocks at the commit of a step in flight still get every token."""
    load = mixed_load(25, seed)
    policy = Evictor(seed, PreemptFor.RUNNING)
    drive = run(policy, load, 1)
    assert drive.emitted == load.lengths
    assert any(isinstance(event, Preempted) for event in drive.events)


@pytest.mark.parametrize("preempt_for", [PreemptFor.NOBODY, PreemptFor.ANYBODY])
@pytest.mark.parametrize("seed", range(2))
def test_progress_does_not_hang_on_who_may_evict(seed: int, preempt_for: PreemptFor) -> None:
    """Under ANYBODY the pin is enough; under NOBODY the pin evicts when nobody else can go on."""
    run(Adversary(seed, preempt_for), mixed_load(25, seed), 0)


@pytest.mark.parametrize("lookahead", LOOKAHEADS)
@pytest.mark.parametrize("name", REGISTRY)
def test_aborts_at_any_time_lose_nothing(name: str, lookahead: int) -> None:
    """Cancelled in flight, waiting, held back or running, each ends once and frees its blocks."""
    load = mixed_load(60, seed=5)
    draw = random.Random(5)
    held: dict[str, int] = {}

    def cancel(drive: Drive) -> None:
        drive.scheduler.check()
        for gone, due in list(held.items()):
            if drive.steps > due:
                assert gone not in drive.scheduler.requests
                del held[gone]
        if drive.scheduler.has_work and draw.random() < 0.1:
            victim = drive.scheduler.requests[draw.choice(list(drive.scheduler.requests))]
            if drive.scheduler.abort(victim.group, drive.now):
                held[victim.id] = drive.steps + lookahead + 1

    policy, lengths = policy_named(name, truth=load.lengths)
    drive = Drive.of(
        policy,
        load.lengths,
        num_blocks=STARVED,
        lookahead=lookahead,
        observers=[lengths.observe],
        after_step=cancel,
    )
    drive.run(load.asks)
    assert ends(drive.events) == Counter(dict.fromkeys(load.lengths, 1))
    assert any(isinstance(e, Finished) and e.reason == FinishReason.ABORT for e in drive.events)
    assert drive.scheduler.pool.num_free == STARVED


@dataclass
class Watcher:
    """Passes plans through; asserts that it hears of steps in time and plans twice alike."""

    inner: Policy
    lookahead: int
    known: int = -1
    lags: Counter[int] = field(default_factory=Counter)

    def plan(self, view: View) -> Plan:
        lag = view.step - 1 - self.known
        self.lags[lag] += 1
        assert 0 <= lag <= self.lookahead
        plan = self.inner.plan(view)
        assert plan == self.inner.plan(view)
        return plan

    def observe(self, event: object) -> None:
        if isinstance(event, Stepped):
            self.known = event.outcome.step
        self.inner.observe(event)


@pytest.mark.parametrize("lookahead", LOOKAHEADS)
@pytest.mark.parametrize("name", REGISTRY)
def test_plans_are_pure_and_events_hardly_late(name: str, lookahead: int) -> None:
    """Asked twice with one view a policy answers alike; it lags by the lookahead at most."""
    load = mixed_load(40, seed=7)
    policy, lengths = policy_named(name, truth=load.lengths)
    watcher = Watcher(policy, lookahead)
    run(watcher, load, lookahead, observers=[lengths.observe])
    assert watcher.lags[lookahead] > 0


@pytest.mark.parametrize("name", REGISTRY)
def test_lookahead_changes_times_not_answers(name: str) -> None:
    """With a plan in flight each request gets the tokens that it gets without."""
    load = mixed_load(40, seed=9)
    runs = []
    for lookahead in LOOKAHEADS:
        policy, lengths = policy_named(name, truth=load.lengths)
        runs.append(run(policy, load, lookahead, observers=[lengths.observe]))
    for drive in runs:
        assert drive.emitted == drive.answered(load.lengths)
