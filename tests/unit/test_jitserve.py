"""Goodput density, GMAX batches, exchanges that pay, ageing and refusals of `jitserve`."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest

from densities import TAU, House, call, preempted
from giusto.core.errors import ConfigError
from giusto.core.events import Admitted, Finished, Preempted, Resumed
from giusto.core.latency import BatchShape
from giusto.core.plan import Caps
from giusto.core.request import FinishReason, Reason, Request
from giusto.core.slo import Deadline, Streaming
from giusto.policies.jitserve import ARMS, REFUSALS, TRIAL, Climb, best_window
from giusto.programs.base import Outlook
from harness import policy_named
from strategies import LiteralView, decoding, request

LOOSE = Deadline(1000.0)
PASSED = Deadline(0.001)


@dataclass
class Machine:
    """Steps take nothing but for computing prompts and moving blocks, so many seconds each."""

    per_token: float = 0.0
    per_block: float = 0.0

    def step_time(self, shape: BatchShape) -> float:
        seconds = self.per_token * shape.prefill_tokens if shape.prefill_tokens else 0.0
        return seconds + (self.per_block * shape.swapped_blocks if shape.swapped_blocks else 0.0)

    def learn(self, shape: BatchShape, seconds: float) -> None:
        """Nothing to learn."""


def ask(name: str, prompt: int = 8, **more: object) -> Request:
    """A request with time enough."""
    return request(name, prompt, **{"slo": LOOSE, **more})


def house(**options: object) -> House:
    """Frames are counted in steps here, unless told otherwise."""
    return House("jitserve", **{"frame_time": math.inf, **options})


# Goodput density


def test_goodput_is_all_or_nothing() -> None:
    """Tokens count one each; whoever cannot make it by its bound is worth nothing."""
    case = house()
    for seconds, density in ((0.21, 18 / 0.2), (0.19, 0.0)):
        made = case.arrive(request(f"r{seconds}", slo=Deadline(seconds)), 10)
        assert case.density(made) == pytest.approx(density)


def test_a_stream_is_worth_its_tokens_in_time() -> None:
    """A late prompt is lost apart from the tokens after it, and the other way round."""
    case = house()
    for slo, value in (
        (Streaming(1.0, 0.1), 18),
        (Streaming(0.01, 0.1), 10),
        (Streaming(0.05, 0.001), 8),
        (Streaming(0.01, 0.001), 0),
    ):
        made = case.arrive(request(f"{slo}", slo=slo), 10)
        assert case.density(made) == pytest.approx(value / 0.2)


@pytest.mark.parametrize(("share", "seconds"), [(0.25, 10.0), (0.5, 20.0), (1.0, 40.0)])
def test_stages_have_cumulative_shares_of_the_deadline(share: float, seconds: float) -> None:
    """Shares 1, 1, 2 of a program's 40 s: its stages are due at 10, 20 and 40 s."""
    for left, is_worth in ((seconds - 0.1, True), (seconds + 0.1, False)):
        case = house(outlooks={"x": Outlook(share=share)})
        x = case.arrive(call("x", 8, deadline=40.0), left / TAU)
        assert (case.density(x) > 0) == is_worth


def test_scaling_prompts_and_bounds_leaves_the_order() -> None:
    """Before the first token the order is by prompt over answer alone."""
    draw = random.Random(1)
    sizes = [(draw.randint(1, 200), draw.randint(1, 200)) for _ in range(40)]
    orders = []
    for factor in (1, 7):
        case = house()
        waiting = [
            case.arrive(ask(f"r{i}", factor * prompt), factor * total)
            for i, (prompt, total) in enumerate(sizes)
        ]
        waiting.sort(key=case.policy.densities.rank)
        orders.append([made.id for made in waiting])
    assert orders[0] == orders[1]


def test_the_past_is_never_preferred_to_the_feasible() -> None:
    """However long it waits and whatever it is worth, a missed deadline comes last."""
    case = house(frame=1, latency=Machine())
    past = case.arrive(request("past", 200, output=1, weight=9.0, slo=Deadline(0.5)), 3)
    small = case.arrive(ask("small", 1, weight=0.01), 400)
    assert case.density(past) > case.density(small)
    case.frame(100)
    assert case.density(past) == 0 < case.density(small)
    for slots in (1, 2):
        view = case.view([], [past, small], slots=slots)
        assert case.order(view) == ["small", "past"][:slots]
    running = decoding("past", 200, slo=Deadline(0.5))
    assert preempted(case.plan(case.view([running], [small], slots=1))) == ["past"]


# Ageing


def test_waiting_adds_a_hundredth_of_the_median_value_per_frame() -> None:
    """Of all arrivals' values; also to best effort, whose own is small."""
    case = house(frame=1)
    a, b = case.arrive(ask("a"), 10), case.arrive(request("b"), 10)
    case.arrive(ask("c", 100), 90)
    for frames in (1, 2, 3):
        case.frame()
        assert case.density(a) == pytest.approx((18 + 0.18 * frames) / 0.2)
        assert case.density(b) == pytest.approx((0.18 + 0.18 * frames) / 0.2)


def test_a_bonus_is_kept_and_grows_only_in_the_line() -> None:
    """Admitted it stands; preempted it grows on from there."""
    case = house(frame=1)
    case.arrive(ask("a"), 10)
    waited = []
    for event in (None, Admitted("a", 0.0, 0), None, Preempted("a", 0.0), None, Resumed("a", 0, 0)):
        if event is not None:
            case.policy.observe(event)
        case.frame()
        waited.append(case.policy.densities.waits.frames("a"))
    assert waited == [1, 1, 1, 2, 3, 3]


def test_calls_of_a_program_age_together() -> None:
    """Each call's wait adds to the density that all have."""
    case = house(frame=1)
    x, y = case.arrive(call("x", 8), 10), case.arrive(call("y", 8), 10)
    case.frame(2)
    assert case.density(x) == case.density(y) == pytest.approx((36 + 2 * 0.36) / 0.4)


# Batches


def crowd(case: House, count: int, seed: int = 2) -> list[Request]:
    """Requests of all lengths."""
    draw = random.Random(seed)
    return [
        case.arrive(ask(f"r{i}", draw.randint(1, 300)), draw.randint(1, 300)) for i in range(count)
    ]


@pytest.mark.parametrize(
    "options", [{"candidates": "k", "k": 1}, {"p": 1.0}, {"gmax": False}], ids=str
)
def test_without_a_choice_the_batch_is_the_densest(options: dict[str, object]) -> None:
    """With one batch of candidates, with those as dense as the last alone, or without GMAX."""
    case = house(**options)
    everyone = crowd(case, 50)
    for size in (1, 7, 49, 50, 60):
        batch = case.policy._batch(everyone, size)
        densest = sorted(map(case.density, everyone), reverse=True)[:size]
        chosen = sorted((case.density(r) for r in everyone if r.id in batch), reverse=True)
        assert chosen == densest


@pytest.mark.parametrize("options", [{}, {"p": 0.8}, {"candidates": "k", "k": 3}], ids=str)
def test_a_batch_is_of_neighbours_nearly_as_dense(options: dict[str, object]) -> None:
    """Full, and nobody between its shortest and its longest prompt was left out for nothing."""
    case = house(**options)
    everyone = crowd(case, 200)
    batch = case.policy._batch(everyone, 10)
    densest = sorted(everyone, key=case.policy.densities.rank)
    candidates = densest[:30]
    if "k" not in options:
        p = {"p": 0.95, **options}["p"]
        candidates = [r for r in everyone if case.density(r) >= p * case.density(densest[9])]
    prompts = sorted((r.num_prompt_tokens, r.id in batch) for r in candidates)
    chosen = [is_in for _, is_in in prompts]
    first = chosen.index(True)
    assert sum(chosen) == len(batch) == 10
    assert prompts[first + 9][0] == max(prompt for prompt, is_in in prompts if is_in)


def test_the_best_window_is_the_densest_run_of_neighbours() -> None:
    """Of equal sums the shorter prompts; fewer than fit are all taken."""
    prompts = {"a": 100, "b": 4, "c": 96, "d": 5}
    requests = [ask(name, prompt) for name, prompt in prompts.items()]

    def window(size: int, **densities: float) -> set[str]:
        found = best_window(requests, size, lambda request: densities[request.id])
        return {request.id for request in found}

    assert window(2, a=10.0, b=9.9, c=9.8, d=1.0) == {"a", "c"}
    assert window(2, a=1.0, b=1.0, c=1.0, d=1.0) == {"b", "d"}
    assert window(9, a=1.0, b=1.0, c=1.0, d=1.0) == {"a", "b", "c", "d"}


# Tuning p


@pytest.mark.parametrize("best", ARMS)
def test_p_climbs_to_where_goodput_is_best(best: float) -> None:
    """And stays within one arm of it."""
    climb = Climb()
    seen = []
    for _ in range(40):
        for _ in range(TRIAL):
            climb.spend(0.5)
            climb.earn(10 - abs(climb.p - best))
            climb.end_frame()
        seen.append(climb.p)
    assert max(abs(p - best) for p in seen[10:]) < 0.11
    assert set(seen) <= set(ARMS)


def test_goodput_is_what_came_in_time() -> None:
    """Answers by their deadline in full, streams by the token, the late and best effort nothing."""
    case = house()
    stream = request("s", computed=11, output=4, slo=Streaming(1.0, 0.1))
    stream.late_tokens = 1
    kinds = (
        (ask("a", output=5), 13.0),
        (request("b", output=5, slo=Deadline(0.5)), 0.0),
        (stream, 11.0),
        (request("c", output=5), 0.0),
        (call("d", 8, deadline=2.0), 8.0),
    )
    case.now = 1.0
    for made, value in kinds:
        case.arrive(made, 10)
        case.policy.observe(Finished(made.id, 1.0, FinishReason.STOP))
        assert case.policy.climb._earned == value
        case.policy.climb._earned = 0.0
    case.arrive(ask("e", output=5), 10)
    case.end(ask("e"), FinishReason.ABORT)
    case.end(ask("unknown"))
    assert case.policy.climb._earned == 0.0


# Exchanges


def full_house(machine: Machine, **options: object) -> tuple[House, LiteralView]:
    """One slot, a resident of 8 computed tokens that is too late, and one that could make it."""
    case = House("jitserve", latency=machine, **options)
    old = case.arrive(decoding("old", slo=PASSED), 10)
    new = case.arrive(ask("new"), 10)
    return case, case.view([old], [new], slots=1)


@pytest.mark.parametrize(
    ("machine", "place"),
    [
        # In 0.2 s the new one brings 18, the old one nothing; 0.36 s at 50 tokens/s cost as much.
        (Machine(per_token=0.35 / 8), "new"),
        (Machine(per_token=0.37 / 8), "old"),
        (Machine(per_token=math.inf), "old"),
    ],
)
def test_it_must_bring_more_than_the_stall_costs(machine: Machine, place: str) -> None:
    """A gain in weighted tokens within the frame against those that the batch loses."""
    case, view = full_house(machine)
    plan = case.plan(view)
    assert [grant.request_id for grant in plan.grants] == [place]
    assert preempted(plan) == ([] if place == "old" else ["old"])


@pytest.mark.parametrize(("per_block", "place"), [(0.08, "new"), (0.1, "old"), (math.inf, "old")])
def test_a_swap_stalls_for_its_blocks_out_and_in(per_block: float, place: str) -> None:
    """Two blocks twice, where there is room in host memory; else recomputing counts."""
    case, view = full_house(Machine(per_block=per_block))
    view.caps, view.free_host_blocks = Caps(swap=True), 2
    assert case.order(view) == [place]
    view.free_host_blocks = 1
    assert case.order(view) == ["new"]


def test_a_gain_is_bounded_by_the_frame() -> None:
    """Whoever takes long brings only what it does until the next frame."""
    for frame_time, place in ((0.1, "old"), (0.2, "new")):
        case, view = full_house(Machine(per_token=0.3 / 8), frame_time=frame_time)
        assert case.order(view) == [place]


def test_a_resident_that_is_as_good_stays() -> None:
    """Only the difference counts, and who is in the batch is never a victim."""
    case = house(latency=Machine(), gmax=False)
    old, new = case.arrive(decoding("old", slo=LOOSE), 10), case.arrive(ask("new"), 10)
    assert case.density(old) > case.density(new)
    assert case.order(case.view([old], [new], slots=1)) == ["old"]


def late_crowd(case: House, count: int = 5) -> tuple[list[Request], list[Request]]:
    """Residents that are too late, the later the longer, and as many that could make it."""
    running = [case.arrive(decoding(f"o{i}", slo=PASSED), 10 + i) for i in range(count)]
    waiting = [case.arrive(ask(f"n{i}"), 10 + i) for i in range(count)]
    return running, waiting


def test_three_are_exchanged_in_a_frame() -> None:
    """The least dense for the densest; no more until the next frame, even when asked again."""
    case = house(latency=Machine())
    running, waiting = late_crowd(case)
    plan = case.plan(case.view(running, waiting, slots=5))
    assert preempted(plan) == ["o4", "o3", "o2"]
    assert [g.request_id for g in plan.grants] == ["o0", "o1", "n0", "n1", "n2"]
    for name in preempted(plan):
        case.policy.observe(Preempted(name, case.now))
    assert preempted(case.plan(case.view(running, waiting, slots=5))) == []
    case.frame()
    assert len(preempted(case.plan(case.view(running, waiting, slots=5)))) == 3


def test_free_places_need_no_exchange() -> None:
    """They are filled by density, those of a batch first, and within a frame too."""
    case = house(latency=Machine(), swaps=0)
    running, waiting = late_crowd(case)
    assert case.order(case.view(running[:2], waiting, slots=4)) == ["o0", "o1", "n0", "n1"]
    case.step()
    assert case.order(case.view(running[:2], waiting, slots=4)) == ["o0", "o1", "n0", "n1"]


def test_within_a_frame_nobody_is_exchanged() -> None:
    """Fifty steps, or 0.3 s of them, whichever is shorter."""
    for frame_time, seconds, first in ((math.inf, 0.1, 50), (0.3, 0.1, 3), (0.3, 0.001, 50)):
        case = house(latency=Machine(), frame_time=frame_time, drop=False)
        running, waiting = late_crowd(case, 1)
        starts = []
        for _ in range(51):
            plan = case.plan(case.view(running, waiting, slots=1))
            starts += [case.next_step] if preempted(plan) else []
            case.step(seconds)
        assert starts[:2] == [0, first]


def test_who_enters_gets_what_resident_prompts_leave() -> None:
    """In a step that exchanges, they go on by two tokens."""
    case = house(latency=Machine())
    old = case.arrive(decoding("old", slo=PASSED), 10)
    slow = case.arrive(ask("slow", 90, computed=8), 1)
    new = case.arrive(ask("new", 40), 10)
    view = case.view([old, slow], [new], slots=2)
    grants = [(grant.request_id, grant.num_tokens) for grant in case.plan(view).grants]
    assert grants == [("slow", 2), ("new", 40)]


# Refusals


def refused(case: House, *waiting: Request) -> dict[str, Reason]:
    """Who is refused and why; nobody can be admitted."""
    view = case.view([decoding("z", slo=LOOSE)], list(waiting), slots=1)
    return {refusal.request_id: refusal.reason for refusal in case.plan(view).reject}


def test_who_has_waited_too_long_is_refused() -> None:
    """After five seconds without having been scheduled, whatever was promised."""
    case = house(frame=1)
    a, b = case.arrive(ask("a"), 10), case.arrive(request("b", slo=Streaming(9.0)), 10)
    case.step(4.9)
    assert refused(case, a, b) == {}
    case.step(0.2)
    assert refused(case, a, b) == dict.fromkeys("ab", Reason.DEADLINE_UNREACHABLE)


def test_who_cannot_make_it_is_refused_sooner() -> None:
    """As soon as its deadline, less what its bound takes, has passed; a missed one says so."""
    case = house(frame=1)
    a, b = (case.arrive(request(name, slo=Deadline(0.25)), 10) for name in "ab")
    case.step()
    assert refused(case, a, b) == {}
    case.step(0.04)
    assert refused(case, a, b) == dict.fromkeys("ab", Reason.DEADLINE_UNREACHABLE)
    case.step(0.2)
    assert refused(case, a, b) == dict.fromkeys("ab", Reason.DEADLINE_PASSED)


def test_a_free_place_is_tried_before_anybody_is_refused() -> None:
    """Bounds may be wrong: nobody is refused before a whole frame in the line has passed."""
    case = house()
    a = case.arrive(request("a", slo=PASSED), 10)
    assert refused(case, a) == {}
    assert case.order(case.view([], [a])) == ["a"]
    case.frame()
    assert refused(case, a) == {}
    case.frame()
    assert refused(case, a) == {"a": Reason.DEADLINE_PASSED}
    case.step()
    assert refused(case, a) == {}, "only at the start of a frame"


def test_who_was_ever_served_is_not_refused() -> None:
    """Nor a sample whose sibling has begun, nor best effort; nor anybody if so told."""
    begun, scheduled, patient = (request(name, slo=PASSED) for name in "abc")
    begun.has_begun = True
    scheduled.first_scheduled = 0.1
    effort = request("d")
    for drop in (True, False):
        case = house(frame=1, drop=drop)
        for made in (begun, scheduled, patient, effort):
            case.arrive(made, 10)
        case.step(6.0)
        case.step()
        assert list(refused(case, begun, scheduled, patient, effort)) == (["c"] if drop else [])


def test_a_late_stage_is_not_a_late_program() -> None:
    """A call whose stage is late is worth nothing, and refused only when the program is lost."""
    case = house(frame=1, outlooks={"x": Outlook(share=0.5)})
    x = case.arrive(call("x", 8, deadline=0.5), 15)
    case.step()
    assert case.density(x) == pytest.approx(0.01 * 23 / 0.3)
    assert refused(case, x) == {}
    case.step(0.2)
    assert refused(case, x) == {"x": Reason.DEADLINE_UNREACHABLE}


def test_a_flood_is_refused_bit_by_bit() -> None:
    """The oldest first, so many at the start of each frame."""
    case = house(frame=1)
    flood = [case.arrive(request(f"r{i}", slo=PASSED), 10) for i in range(REFUSALS + 9)]
    case.frame(2)
    assert list(refused(case, *flood)) == [made.id for made in flood[:REFUSALS]]


def test_the_refused_take_no_place() -> None:
    """Who remains is admitted in the same step."""
    case = house(frame=1)
    a, b = case.arrive(request("a", slo=PASSED), 10), case.arrive(ask("b"), 10)
    case.frame(2)
    plan = case.plan(case.view([], [a, b], slots=1))
    assert [refusal.request_id for refusal in plan.reject] == ["a"]
    assert [grant.request_id for grant in plan.grants] == ["b"]


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": "edf"}, "rank must be one of density, sjf, got 'edf'"),
        ({"candidates": "q"}, "candidates must be p or k, got 'q'"),
        ({"p": 1.1}, r"p must lie in \[0, 1\], got 1.1"),
        ({"p": "nan"}, r"p must lie in \[0, 1\], got nan"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"frame": 0}, "frame must be at least 1, got 0"),
        ({"frame_time": 0}, "frame_time must be above 0, got 0.0"),
        ({"waiting_time": "nan"}, "waiting_time must be above 0, got nan"),
        ({"swaps": -1}, "swaps must be at least 0, got -1"),
    ],
)
def test_bad_values_are_refused(options: dict[str, object], message: str) -> None:
    """The error names the option and what it may be."""
    with pytest.raises(ConfigError, match=f"policy jitserve: {message}"):
        policy_named("jitserve", **options)


def test_times_may_be_unbounded() -> None:
    """Text says so."""
    policy, _ = policy_named("jitserve", frame_time="inf", waiting_time="inf", alpha="inf")
    assert policy.parameters.frame_time == math.inf
