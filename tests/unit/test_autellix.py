"""Attained service by program: queues, quanta, starting over, and what a program is charged."""

from __future__ import annotations

import pytest

from giusto.core.errors import ConfigError
from giusto.core.events import Arrived, Finished, ProgramClosed, Rejected, Stepped
from giusto.core.latency import BatchShape
from giusto.core.plan import Limits, StepOutcome, Yield, check
from giusto.core.request import FinishReason, ProgramRef, Reason, Request, Submission
from giusto.policies.autellix import Autellix
from harness import policy_named
from strategies import LiteralView, decoding, request


class House:
    """A policy and a clock: calls come, take part in steps and end."""

    def __init__(self, **options: object) -> None:
        policy, _ = policy_named("autellix", **options)
        assert isinstance(policy, Autellix)
        self.policy = policy
        self.now = 0.0

    def arrive(self, name: str, program: str | None = "p", *parents: str, group: str = "") -> None:
        ref = ProgramRef(program, name, parents) if program else None
        made = Request.of(Submission(name, self.now, 8, program=ref))
        made.group = group or name
        self.policy.observe(Arrived(made, self.now))

    def step(self, seconds: float, *names: str) -> None:
        """Let a step pass in which these calls take part."""
        started, self.now = self.now, self.now + seconds
        yields = dict.fromkeys(names, Yield((1,)))
        outcome = StepOutcome(0, started, self.now, BatchShape(), yields)
        self.policy.observe(Stepped(outcome, self.now))

    def end(self, name: str, reason: FinishReason = FinishReason.STOP) -> None:
        self.policy.observe(Finished(name, self.now, reason))

    def call(self, name: str, seconds: float, program: str | None = "p", *parents: str) -> None:
        """A call from its arrival to its end, alone on the machine."""
        self.arrive(name, program, *parents)
        self.step(seconds, name)
        self.end(name)

    def learn(self, seconds: float = 4.0) -> None:
        """Make the median call last so long: queues end at a quarter, a half, one, two, …"""
        self.call("first", seconds, None)

    def attained(self, program: str = "p") -> float:
        return self.policy.attained(program)

    def queue(self, name: str) -> int:
        return self.policy.queue(name)


# What a program is charged


@pytest.mark.parametrize("mode", ["plas", "atlas", "atlas_exact"])
def test_calls_in_sequence_add_up(mode: str) -> None:
    """By every mode a chain of calls attains the sum of their runtimes, waits not counted."""
    house = House(mode=mode)
    for i, seconds in enumerate((1.0, 0.5, 2.0)):
        house.arrive(f"c{i}", "p", *([f"c{i - 1}"] if i else []))
        house.step(5.0)
        house.step(seconds, f"c{i}")
        house.end(f"c{i}")
    assert house.attained() == 3.5


@pytest.mark.parametrize(("mode", "expected"), [("plas", 16.0), ("atlas", 13.0)])
def test_a_fork_counts_its_longest_branch(mode: str, expected: float) -> None:
    """ATLAS attains the critical path of fork and join, PLAS the sum of all calls."""
    house = House(mode=mode)
    house.call("root", 1.0)
    house.arrive("x")
    house.arrive("y")
    house.step(3.0, "x", "y")
    house.end("x")
    house.step(7.0, "y")
    house.end("y")
    house.call("join", 2.0)
    assert house.attained() == expected


def test_the_scalar_mixes_branches_and_parents_do_not() -> None:
    """A chain of short calls beside a long one inherits the long one's service, unless parents
    are named."""
    attained = {}
    for mode in ("atlas", "atlas_exact"):
        house = House(mode=mode)
        house.arrive("a1")
        house.arrive("b1")
        house.step(1.0, "a1", "b1")
        house.end("a1")
        house.step(9.0, "b1")
        house.end("b1")
        house.call("a2", 1.0, "p", "a1")
        house.call("a3", 1.0, "p", "a2")
        attained[mode] = house.attained()
    assert attained == {"atlas": 12.0, "atlas_exact": 10.0}


def test_unknown_parents_and_none_fall_back_on_the_scalar() -> None:
    """Naming nobody, or somebody unheard of, earns nothing."""
    house = House(mode="atlas_exact")
    house.call("a", 3.0)
    house.call("b", 1.0, "p", "nobody")
    assert house.attained() == 4.0
    house.call("c", 1.0)
    assert house.attained() == 5.0


def test_samples_of_one_call_are_calls_beside_each_other() -> None:
    """PLAS adds them, ATLAS takes the longest; a parent's end is that of its longest sample."""
    for mode, expected in (("plas", 6.0), ("atlas_exact", 5.0)):
        house = House(mode=mode)
        for sample in ("s", "s#1"):
            ref = ProgramRef("p", "s")
            made = Request.of(Submission(sample, 0.0, 8, program=ref))
            house.policy.observe(Arrived(made, 0.0))
        house.step(1.0, "s", "s#1")
        house.step(3.0, "s")
        house.end("s")
        house.end("s#1")
        house.call("next", 1.0, "p", "s")
        assert house.attained() == expected


def test_cut_short_is_charged_all_the_same() -> None:
    """A cancelled or refused call costs its program what it ran, and does not move the median."""
    house = House()
    house.arrive("a")
    house.step(2.0, "a")
    house.end("a", FinishReason.ABORT)
    assert house.attained() == 2.0
    house.arrive("b")
    house.policy.observe(Rejected("b", house.now, Reason.QUEUE_FULL))
    assert house.attained() == 2.0
    house.arrive("c")
    assert house.queue("c") == 0


def test_who_left_in_flight_is_no_longer_charged() -> None:
    """A step that ends after its request did is no news."""
    house = House()
    house.arrive("a")
    house.end("a", FinishReason.ABORT)
    house.step(2.0, "a")
    assert house.attained() == 0.0
    leaving = decoding("a", in_flight=1)
    leaving.is_leaving = True
    assert house.policy.plan(LiteralView([leaving])).grants == ()


# Queues


def test_until_a_call_has_ended_there_is_one_queue() -> None:
    """Nothing is known then of how long calls are."""
    house = House()
    house.arrive("a")
    house.step(1000.0, "a")
    assert house.queue("a") == 0


def test_a_first_call_enters_the_first_queue() -> None:
    """Whatever others have had; so does every request without a program."""
    house = House()
    house.learn()
    for i in range(3):
        house.call(f"c{i}", 10.0)
    house.arrive("new", "q")
    house.arrive("alone", None)
    assert (house.queue("new"), house.queue("alone")) == (0, 0)


@pytest.mark.parametrize(
    ("service", "queue"),
    [(0.9, 0), (1.0, 1), (1.9, 1), (2.0, 2), (4.0, 3), (8.0, 4), (16.0, 5), (32.0, 6), (999.0, 6)],
)
def test_a_call_enters_the_queue_of_its_programs_service(service: float, queue: int) -> None:
    """Bounds are 1/4, 1/2, 1, 2, 4 and 8 of the median call, here 4 seconds."""
    house = House()
    house.call("c", service)
    for name in ("x", "y", "z"):
        house.call(name, 4.0, None)
    house.arrive("next")
    assert house.queue("next") == queue


def test_bounds_follow_the_median_call() -> None:
    """Learned from calls that ended with an answer; fewer queues end earlier."""
    house = House(queues=3)
    house.learn(8.0)
    house.call("c", 3.0)
    house.arrive("next")
    assert house.queue("next") == 2
    for i in range(3):
        house.call(f"long{i}", 100.0, None)
    house.arrive("later")
    assert house.queue("later") == 0


def test_a_call_sinks_as_it_uses_up_quanta() -> None:
    """A quantum is as wide as its queue; the last has none."""
    house = House(queues=4)
    house.learn()
    house.arrive("a")
    seen = []
    for _ in range(12):
        house.step(0.5, "a")
        seen.append(house.queue("a"))
    assert seen == [0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3]


def test_one_long_step_may_pass_several_queues() -> None:
    """What exceeds one quantum counts for the next."""
    house = House()
    house.learn()
    house.arrive("a")
    house.step(4.5, "a")
    assert house.queue("a") == 3


# Starting over


def test_who_waits_beta_times_its_service_starts_over() -> None:
    """Wait over service counts, of the program and the call; then it is in the first queue."""
    house = House(beta=2)
    house.learn()
    house.call("c", 3.0)
    house.arrive("next")
    assert house.queue("next") == 2
    waited = 0
    while house.queue("next"):
        house.step(0.5)
        waited += 1
    assert waited * 0.5 == pytest.approx(2 * 3.0, abs=0.5)


def test_it_is_charged_for_what_it_ran_before() -> None:
    """A promotion resets what the next promotion looks at, not the account."""
    house = House(beta=2)
    house.learn()
    house.arrive("a")
    house.step(3.0, "a")
    assert house.queue("a") == 2
    while house.queue("a"):
        house.step(0.5)
    house.step(1.0, "a")
    house.end("a")
    assert house.attained() == 4.0


def test_a_wait_in_the_first_queue_does_not_count() -> None:
    """A promotion could not have helped; after sinking the clock starts anew."""
    house = House(beta=2)
    house.learn()
    house.arrive("a")
    house.step(100.0)
    house.step(2.0, "a")
    house.step(1.0)
    assert house.queue("a") == 2


def test_a_resident_that_is_passed_over_waits_too() -> None:
    """Wait is time without taking part in a step, memory or not."""
    house = House(beta=1)
    house.learn()
    house.arrive("a")
    house.arrive("b", "q")
    house.step(2.0, "a")
    for _ in range(8):
        house.step(0.5, "b")
    assert house.queue("a") == 0


def test_younger_siblings_start_over_with_the_oldest() -> None:
    """The wait of a program's oldest call counts for those beside it, and for no other program."""
    house = House(beta=4)
    house.learn()
    house.call("root", 2.0)
    house.call("stem", 2.0, "q")
    house.arrive("x")
    house.step(5.0)
    house.arrive("y")
    house.arrive("other", "q")
    house.step(2.5)
    assert [house.queue(name) > 0 for name in ("x", "y", "other")] == [True, False, True]
    house.step(1.0)
    assert [house.queue(name) > 0 for name in ("x", "y", "other")] == [False, False, True]


def test_waits_of_ended_calls_count_for_the_next() -> None:
    """A program that waited long for its first calls does not wait as long for its last."""
    spans = []
    for earlier in (0.0, 4.0):
        house = House(beta=4)
        house.learn()
        house.call("root", 2.0)
        house.arrive("x")
        house.step(earlier)
        house.step(1.0, "x")
        house.end("x")
        house.arrive("y")
        began = house.now
        while house.queue("y"):
            house.step(0.25)
        spans.append(house.now - began)
    assert spans[0] - spans[1] == pytest.approx(4.0, abs=0.5)


# Forgetting


def test_programs_are_forgotten_when_they_close() -> None:
    """Its last call has ended then; a call that comes all the same is a new program's."""
    house = House()
    house.call("a", 2.0)
    house.policy.observe(ProgramClosed("p", house.now, house.now, None))
    assert house.attained() == 0.0
    house.policy.observe(ProgramClosed("p", house.now, house.now, None))
    house.policy.observe(ProgramClosed("unknown", house.now, house.now, None))


def test_programs_without_calls_are_forgotten_in_time() -> None:
    """After `ttl` seconds, unless a call is open or came since."""
    house = House(ttl=10)
    house.call("a", 2.0, "p")
    house.call("b", 2.0, "q")
    house.arrive("open", "r")
    house.step(1.0, "open")
    house.step(6.0)
    house.call("c", 1.0, "q")
    house.step(5.0)
    house.arrive("d", "s")
    assert [house.attained(name) for name in "pq"] == [0.0, 3.0]
    house.end("open")
    assert house.attained("r") == 1.0


def test_requests_without_a_program_leave_nothing() -> None:
    """Each is a program of one call; its samples are one program."""
    house = House(mode="plas")
    house.arrive("a", None)
    house.arrive("a#1", None, group="a")
    house.step(1.0, "a", "a#1")
    house.end("a")
    house.end("a#1")
    house.arrive("b", "a")
    assert house.attained("a") == 0.0
    assert not house.policy._idle
    assert len(house.policy._programs) == 1


# Order


def test_queues_go_in_turn_and_arrivals_within() -> None:
    """Residents and waiting calls alike; who waits goes before a resident further down."""
    house = House()
    house.learn()
    house.call("c", 3.0)
    for name, program in (("low", "p"), ("high", "q"), ("old", "r"), ("slow", "p")):
        house.arrive(name, program)
    running = [decoding("low", arrival=1.0), decoding("high", arrival=2.0)]
    waiting = [request("slow"), request("old", arrival=3.0)]
    view = LiteralView(running, waiting)
    plan = house.policy.plan(view)
    check(plan, view)
    assert [g.request_id for g in plan.grants] == ["high", "old", "slow", "low"]


def test_only_as_many_wait_at_the_front_as_there_are_slots() -> None:
    """Those of the first queue, wherever they stand in line."""
    house = House()
    house.learn()
    house.call("c", 3.0)
    house.arrive("slow", "p")
    for i in range(4):
        house.arrive(f"q{i}", f"q{i}")
    names = ("slow", "q0", "q1", "q2", "q3")
    waiting = [request(name, arrival=float(i)) for i, name in enumerate(names)]
    view = LiteralView([], waiting, limits=Limits(64, 3, 4))
    assert [g.request_id for g in house.policy.plan(view).grants] == ["q0", "q1", "q2"]
    view = LiteralView([], waiting[:3], limits=Limits(64, 3, 4))
    assert [g.request_id for g in house.policy.plan(view).grants] == ["q0", "q1", "slow"]


def test_prompts_leave_residents_their_next_token() -> None:
    """What is in the batch goes on, whatever its queue."""
    house = House()
    house.learn()
    house.arrive("low", "p")
    house.step(9.0, "low")
    house.arrive("new", "q")
    view = LiteralView([decoding("low")], [request("new", 60)], limits=Limits(16, 8, 4))
    grants = [(g.request_id, g.num_tokens) for g in house.policy.plan(view).grants]
    assert grants == [("new", 15), ("low", 1)]


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "mlfq"}, "mode must be one of plas, atlas, atlas_exact, got 'mlfq'"),
        ({"queues": 0}, "queues must be at least 1, got 0"),
        ({"beta": 0}, "beta must be above 0"),
        ({"beta": "nan"}, "beta must be above 0"),
        ({"ttl": -1}, "ttl must be above 0"),
    ],
)
def test_bad_values_are_refused(options: dict[str, object], message: str) -> None:
    """The error names the option and what it may be."""
    with pytest.raises(ConfigError, match=f"policy autellix: {message}"):
        policy_named("autellix", **options)
