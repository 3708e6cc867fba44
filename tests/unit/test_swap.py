"""Swapping, one promise at a time: who goes to host memory, what that costs, what comes back."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from giusto.core import events as ev
from giusto.core.errors import ConfigError, PlanError
from giusto.core.host import HostMemory
from giusto.core.kv import BlockPool
from giusto.core.latency import BatchShape
from giusto.core.pack import pack
from giusto.core.plan import (
    BlockCost,
    Caps,
    Grant,
    Limits,
    Plan,
    Preempt,
    PreemptHow,
    Refusal,
    StepOutcome,
    View,
    Want,
    Yield,
    check,
)
from giusto.core.request import FinishReason, Reason, SamplingParams, Submission
from giusto.core.scheduler import Scheduler
from giusto.policies.base import Stateless
from giusto.sim.link import Link
from giusto.sim.settings import GIB
from simulated import PROFILE, load, settings
from simulated import cluster as simulated
from strategies import BLOCK, LiteralView, decoding, request

SWAP, RECOMPUTE = PreemptHow.SWAP, PreemptHow.RECOMPUTE


# Who is swapped


def squeezed(free_host_blocks: int, *, missing: int = 1, swap: bool = True) -> LiteralView:
    """The first needs a block for its `missing` tokens, each of the others holds three."""
    first = request("first", 24 + missing, computed=24)
    running = [first, decoding("a", 12), decoding("b", 12)]
    caps = Caps(swap=swap)
    return LiteralView(running, free_blocks=0, caps=caps, free_host_blocks=free_host_blocks)


@pytest.mark.parametrize(
    ("free", "swap", "how"),
    [(6, True, [SWAP]), (3, True, [SWAP]), (2, True, [RECOMPUTE]), (6, False, [RECOMPUTE])],
)
def test_a_victim_is_swapped_while_there_is_room(
    free: int, swap: bool, how: list[PreemptHow]
) -> None:
    """Its blocks must fit into host memory, and the driver must be able to move them."""
    view = squeezed(free, swap=swap)
    plan = pack([Want("first")], view)
    assert [preempt.how for preempt in plan.preempt] == how
    check(plan, view)


def test_room_is_counted_down_over_victims() -> None:
    """With room for one of two, the first victim is swapped and the second recomputed."""
    view = squeezed(5, missing=17)
    plan = pack([Want("first")], view)
    assert plan.preempt == (Preempt("b", SWAP), Preempt("a", RECOMPUTE))
    check(plan, view)


def test_a_plan_that_swaps_more_than_fits_is_refused() -> None:
    """`check` counts the blocks that all the swapped hold."""
    view = squeezed(5)
    both = Plan(view.step, (Grant("first", 1),), preempt=(Preempt("a", SWAP), Preempt("b", SWAP)))
    with pytest.raises(PlanError, match="swaps 6 blocks out, 5 host blocks are free"):
        check(both, view)


# What becomes of it


class Scripted(Stateless):
    """Carries out the plan that the test wrote down."""

    def __init__(self) -> None:
        self.grants: tuple[Grant, ...] = ()
        self.more: dict[str, object] = {}

    def plan(self, view: View) -> Plan:
        return Plan(view.step, self.grants, **self.more)


class Machine:
    """A scheduler of 16 blocks with 8 more in host memory, driven by hand."""

    def __init__(self, lookahead: int = 0) -> None:
        self.policy = Scripted()
        caps = Caps(swap=True, host_blocks=8, lookahead=lookahead)
        pool, limits = BlockPool(16, BLOCK), Limits(64, 8, BLOCK)
        self.made = Scheduler(self.policy, pool, limits, caps=caps, is_checking=True)

    @property
    def free(self) -> tuple[int, int]:
        """Blocks free on the device and in host memory."""
        view = self.made.view(0.0)
        return view.free_blocks, view.free_host_blocks

    def add(self, name: str) -> None:
        ids = tuple(100 * ord(name) + k for k in range(10))
        sampling = SamplingParams(max_tokens=16)
        self.made.add(Submission(name, 0.0, 10, ids, sampling=sampling), 0.0)

    def plan(self, *granted: tuple[str, int], **more: object) -> Plan:
        self.policy.grants, self.policy.more = tuple(Grant(*one) for one in granted), more
        return self.made.schedule(0.0)

    def land(self, plan: Plan, *, mid: str = "", ends: str = "") -> list[ev.Event]:
        """All grants but that of `mid` yield a token, that of `ends` its last."""
        yields = {
            g.request_id: Yield(
                () if g.request_id == mid else (1,),
                finish=FinishReason.STOP if g.request_id == ends else None,
            )
            for g in plan.grants
        }
        outcome = StepOutcome(plan.step, 0.5, 1.0, BatchShape(), yields)
        events = self.made.commit(plan.step, outcome, 1.0)
        self.made.check()
        return events

    def step(self, *granted: tuple[str, int], **more: object) -> list[ev.Event]:
        return self.land(self.plan(*granted, **more))

    def swapped_out(self) -> None:
        """Let `a` run beside `b`, then swap `b` out: 10 computed tokens in 3 blocks."""
        for name in "ab":
            self.add(name)
        self.step(("a", 10), ("b", 10))
        self.step(("a", 1), preempt=(Preempt("b", SWAP),))


def test_a_swapped_request_keeps_what_it_computed() -> None:
    """It holds host blocks in place of device blocks, and waits in its place in the line."""
    machine = Machine()
    machine.swapped_out()
    view = machine.made.view(1.0)
    b = view.request("b")
    assert (b.num_computed_tokens, b.num_remaining_tokens, b.resident_since) == (10, 1, None)
    assert list(view.swapped) == list(view.waiting) == [b]
    assert view.held("b") == 0
    assert machine.free == (16 - 3, 8 - 3)


def test_it_costs_all_its_blocks_to_come_back() -> None:
    """Cached blocks of its prompt do not make it cheaper: its own return."""
    machine = Machine()
    machine.swapped_out()
    view = machine.made.view(1.0)
    assert machine.made.pool.lookup(machine.made.requests["b"].block_keys)
    assert view.cost("b", 1) == BlockCost(3)
    assert view.cost("b", 3) == BlockCost(4)


def test_a_grant_brings_it_back() -> None:
    """One token is all it needs to go on; its events tell how it left and what it kept."""
    machine = Machine()
    machine.swapped_out()
    events = machine.step(("a", 1), ("b", 1))
    assert [e for e in events if isinstance(e, ev.Resumed)] == [ev.Resumed("b", 0.0, 10)]
    b = machine.made.requests["b"]
    assert (b.num_computed_tokens, b.num_output_tokens, b.num_preemptions) == (11, 2, 1)
    assert machine.free == (16 - 6, 8)


def test_what_comes_back_can_be_found_again() -> None:
    """When its cached blocks were overwritten meanwhile, its own are named once more."""
    machine = Machine()
    machine.swapped_out()
    b = machine.made.requests["b"]
    crowd = machine.made.pool.allocate(13)
    assert not machine.made.pool.lookup(b.block_keys)
    machine.made.pool.release(crowd)
    machine.step(("b", 1))
    assert machine.made.pool.lookup(b.block_keys) == b.blocks[:2]


def test_blocks_are_told_once_with_the_step_that_moves_them() -> None:
    """Three go out beside one step, three come in beside the next."""
    machine = Machine()
    machine.swapped_out()
    assert machine.made.take_swapped_blocks() == 3
    machine.step(("b", 1))
    assert machine.made.take_swapped_blocks() == 3
    machine.step(("b", 1))
    assert machine.made.take_swapped_blocks() == 0


def test_one_in_flight_is_swapped_when_it_has_landed() -> None:
    """Room is kept from the plan on; what its last steps computed moves with it."""
    machine = Machine(lookahead=1)
    machine.add("a")
    machine.add("b")
    first = machine.plan(("a", 10), ("b", 10))
    second = machine.plan(("a", 1), preempt=(Preempt("b", SWAP),))
    assert machine.free == (16 - 6, 8 - 3)
    assert machine.made.take_swapped_blocks() == 0
    events = machine.land(first)
    assert [e for e in events if isinstance(e, ev.Preempted)] == [ev.Preempted("b", 1.0, SWAP)]
    assert machine.free == (16 - 3, 8 - 3)
    assert machine.made.take_swapped_blocks() == 3
    machine.land(second)
    assert machine.made.requests["b"].num_computed_tokens == 10


@pytest.mark.parametrize("lands_first", [True, False])
def test_an_abort_gives_host_memory_back(lands_first: bool) -> None:
    """Whether it lies there already or is on its way."""
    machine = Machine(lookahead=1)
    machine.add("a")
    machine.add("b")
    first = machine.plan(("a", 10), ("b", 10))
    second = machine.plan(("a", 1), preempt=(Preempt("b", SWAP),))
    if lands_first:
        machine.land(first)
    machine.made.abort("b", 1.0)
    if not lands_first:
        machine.land(first)
    machine.land(second)
    assert machine.free == (16 - 3, 8)
    assert "b" not in machine.made.requests


def test_who_ends_on_its_way_out_leaves_nothing() -> None:
    """An answer that ends with the step in flight needs no host memory."""
    machine = Machine(lookahead=1)
    machine.add("a")
    machine.add("b")
    first = machine.plan(("a", 10), ("b", 10))
    second = machine.plan(("a", 1), preempt=(Preempt("b", SWAP),))
    machine.land(first, ends="b")
    machine.land(second)
    assert machine.free == (16 - 3, 8)
    assert not machine.made.take_swapped_blocks()


def test_shedding_a_swapped_prompt_gives_host_memory_back() -> None:
    """One that has sent no token may be swapped out in mid-prompt, and refused there."""
    machine = Machine()
    machine.add("a")
    machine.add("b")
    machine.land(machine.plan(("a", 10), ("b", 6)), mid="b")
    machine.step(("a", 1), preempt=(Preempt("b", SWAP),))
    assert machine.free == (16 - 3, 8 - 2)
    machine.step(("a", 1), reject=(Refusal("b", Reason.DEADLINE_UNREACHABLE),))
    assert machine.free == (16 - 3, 8)


def test_host_memory_is_bounded() -> None:
    """Keeping more than there is fails, and leaves everything as it was."""
    host = HostMemory(4)
    host.keep("a", 3)
    with pytest.raises(PlanError, match="asked for 2 host blocks, 1 are free"):
        host.keep("b", 2)
    host.write("a", 2)
    assert (host.num_free, host.num_moved) == (2, 2)
    host.read("a")
    host.drop("a")
    assert (host.num_free, host.num_moved) == (4, 4)


# The link


def test_a_step_waits_for_what_overlap_does_not_hide() -> None:
    """Blocks move during a share of the computation; only the rest makes the step longer."""
    assert Link(0.1).wait(3, computing=1.0) == pytest.approx(0.3)
    assert Link(0.1, overlap=0.2).wait(3, computing=1.0) == pytest.approx(0.1)
    assert Link(0.1, overlap=1.0).wait(3, computing=1.0) == 0.0
    assert Link(0.1).wait(0, computing=1.0) == 0.0


LINKED = replace(PROFILE, num_blocks=40, bytes_per_block=GIB // 1000, swap_bandwidth=1e9, noise=0.0)


def test_settings_count_host_blocks() -> None:
    """GiB and bytes per block, whole blocks only; seconds per block from the profile's link."""
    made = settings(profile=LINKED, swap_space=0.0105, overlap=0.5)
    assert made.host_blocks == 10
    assert made.link == Link(LINKED.bytes_per_block / 1e9, 0.5)
    assert settings(profile=LINKED).link is None
    assert settings(profile=LINKED).host_blocks == 0


@pytest.mark.parametrize(
    ("profile", "asked", "message"),
    [
        (PROFILE, {"swap_space": 4.0}, "profile tiny has no link to swap over"),
        (LINKED, {"swap_space": 0.0}, "swap_space must hold a block, 0.001 GiB or more, got 0"),
        (LINKED, {"swap_space": -1.0}, "swap_space must hold a block"),
        (LINKED, {"swap_space": math.nan}, "swap_space must hold a block"),
        (LINKED, {"swap_space": math.inf}, "swap_space must hold a block"),
        (LINKED, {"swap_space": 4.0, "overlap": 1.5}, r"overlap must lie in \[0, 1\], got 1.5"),
        (LINKED, {"overlap": math.nan}, "overlap must lie in"),
    ],
)
def test_what_cannot_be_swapped_to_is_refused(
    profile: object, asked: dict[str, float], message: str
) -> None:
    """A space without a link, too small or no number, and a share beyond all."""
    with pytest.raises(ConfigError, match=message):
        settings(profile=profile, **asked)


# The simulator


def steps_of(**more: object) -> tuple[list[ev.Stepped], list[PreemptHow]]:
    """Simulate a starved replica; its steps, and how its requests were preempted."""
    entries = load(40, rate=20.0)
    made = simulated(entries, profile=LINKED, check=True, model_error=0.0, **more)
    steps, hows = [], []

    def observe(event: object) -> None:
        if isinstance(event, ev.Stepped):
            steps.append(event)
        elif isinstance(event, ev.Preempted):
            hows.append(event.how)

    made.replicas[0].scheduler.subscribe(observe)
    made.run(entries)
    return steps, hows


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("overlap", [0.0, 1.0])
def test_a_simulated_step_takes_as_long_as_its_blocks(overlap: float, lookahead: int) -> None:
    """Seconds = computation + what of the transfer it does not hide, for every step."""
    steps, hows = steps_of(swap_space=1.0, overlap=overlap, lookahead=lookahead)
    assert set(hows) == {SWAP}
    moved = 0
    for event in steps:
        outcome = event.outcome
        computing = LINKED.latency.step_time(outcome.shape)
        transfer = outcome.shape.swapped_blocks * LINKED.bytes_per_block / LINKED.swap_bandwidth
        expected = computing + max(0.0, transfer - overlap * computing)
        assert outcome.ended - outcome.started == pytest.approx(expected)
        moved += outcome.shape.swapped_blocks
    assert moved > 0


def test_the_policys_model_learns_what_steps_compute() -> None:
    """Waiting for the link is not taken for a slow machine."""
    entries = load(40, rate=20.0)
    made = simulated(entries, profile=LINKED, swap_space=1.0, model_error=0.0)
    made.run(entries)
    assert made.replicas[0]._latency.correction == pytest.approx(1.0)


def test_without_swap_space_all_is_recomputed() -> None:
    """A profile that has a link does not swap unless it is asked to."""
    steps, hows = steps_of()
    assert set(hows) == {RECOMPUTE}
    assert not any(event.outcome.shape.swapped_blocks for event in steps)
