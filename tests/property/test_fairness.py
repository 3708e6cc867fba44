"""Nobody starves while capacity is left, and no work is left undone for nothing."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from giusto.core.events import Admitted, Finished, Stepped
from giusto.core.latency import LinearLatency
from giusto.core.plan import Limits, Plan, Policy, View
from giusto.core.request import SamplingParams, Submission
from giusto.core.slo import BestEffort, Streaming
from giusto.policies import REGISTRY
from harness import LATENCY, Drive, policy_named
from strategies import Load, mixed_load

#: A machine ten times slower, so that minutes take few steps.
SLOW = LinearLatency(tuple(10 * c for c in LATENCY.coefficients))
#: Every step takes as long, whatever is in it.
FLAT = LinearLatency((0.02, 0, 0, 0, 0, 0, 0, 0, 0))
SPAN = 240.0
SMALL = Limits(max_num_batched_tokens=64, max_num_seqs=16, block_size=16)


def urgent(name: str, at: float) -> Submission:
    """A stream whose promise can be kept and is tight enough to come before best effort."""
    return Submission(
        name,
        at,
        48,
        slo=Streaming(5.0, 1.0),
        service_class="urgent",
        priority=0,
        cap=8,
        sampling=SamplingParams(max_tokens=8),
    )


def patient(name: str, at: float) -> Submission:
    """Best effort, the least urgent of all."""
    return replace(urgent(name, at), slo=BestEffort(), service_class="batch", priority=9)


def drive(name: str, load: Load) -> Drive:
    policy, lengths = policy_named(name, latency=SLOW, truth=load.lengths)
    run = Drive.of(
        policy,
        load.lengths,
        num_blocks=64,
        limits=SMALL,
        latency=SLOW,
        observers=[lengths.observe],
        is_checking=False,
    )
    run.run(load.asks)
    return run


def capacity(name: str) -> float:
    """Urgent requests answered per second when there is always one more."""
    asks = [urgent(f"u{i}", 0.0) for i in range(150)]
    run = drive(name, Load(asks, dict.fromkeys((ask.id for ask in asks), 8)))
    return sum(isinstance(event, Finished) for event in run.events) / run.now


def loaded(rate: float, *, is_flooding: bool) -> Load:
    """Urgent traffic at `rate`, spread out or in floods, and a little best effort.

    A flood brings two minutes of arrivals in 90 s: a backlog then lasts almost until the next.
    """
    draw = random.Random(17)
    asks, now = [], 0.0
    while now < SPAN:
        now += draw.expovariate(rate)
        at = now - 0.25 * (now % 120.0) if is_flooding else now
        asks.append(urgent(f"u{len(asks)}", at))
    asks += [patient(f"b{i}", 5.0 + 12.0 * i) for i in range(int(SPAN / 12))]
    return Load(asks, dict.fromkeys((ask.id for ask in asks), 8))


@pytest.mark.parametrize("is_flooding", [False, True])
@pytest.mark.parametrize("name", REGISTRY)
def test_best_effort_does_not_starve(name: str, is_flooding: bool) -> None:
    """With arrivals at 95 % of capacity, its first token comes within 60 s, flooded or not."""
    rate = 0.95 * capacity(name) - 1 / 12
    load = loaded(rate, is_flooding=is_flooding)
    run = drive(name, load)
    arrivals = {ask.id: ask.arrival for ask in load.asks}
    firsts: dict[str, float] = {}
    for event in run.events:
        if isinstance(event, Stepped):
            for request_id, made in event.outcome.yields.items():
                if made.tokens:
                    firsts.setdefault(request_id, event.now)
    waits = {name: firsts[name] - at for name, at in arrivals.items() if name.startswith("b")}
    assert max(waits.values()) < 60.0


class NoWorkLeft:
    """Passes plans through; asserts that none leaves work undone that costs nothing to do."""

    def __init__(self, inner: Policy) -> None:
        self.inner = inner
        self.looked = 0

    def plan(self, view: View) -> Plan:
        plan = self.inner.plan(view)
        if not view.waiting:
            work = sum(request.num_remaining_tokens for request in view.running)
            assert plan.num_tokens == min(work, view.limits.max_num_batched_tokens)
            self.looked += work > 0
        return plan

    def observe(self, event: object) -> None:
        self.inner.observe(event)


@pytest.mark.parametrize("name", REGISTRY)
def test_nobody_is_paused_for_nothing(name: str) -> None:
    """With nothing waiting, room for all and steps of one length, all that can be done is done."""
    load = mixed_load(40, seed=19, rate=4.0)
    policy, lengths = policy_named(name, latency=FLAT, truth=load.lengths)
    watched = NoWorkLeft(policy)
    run = Drive.of(
        watched, load.lengths, num_blocks=2000, latency=FLAT, observers=[lengths.observe]
    )
    run.run(load.asks)
    assert watched.looked > 100


@pytest.mark.parametrize("name", REGISTRY)
def test_without_promises_it_takes_no_longer_than_in_order(name: str) -> None:
    """All best effort and present from the start, a load takes at most a tenth more than fcfs."""
    load = mixed_load(60, seed=23, rate=1e6, slos=[BestEffort()])
    load = Load([replace(ask, program=None) for ask in load.asks], load.lengths)

    def seconds(policy_name: str) -> float:
        policy, lengths = policy_named(policy_name, truth=load.lengths)
        run = Drive.of(policy, load.lengths, num_blocks=2000, observers=[lengths.observe])
        run.run(load.asks)
        assert sum(isinstance(event, Admitted) for event in run.events) == len(load.lengths)
        return run.now

    assert seconds(name) <= 1.1 * seconds("fcfs")
