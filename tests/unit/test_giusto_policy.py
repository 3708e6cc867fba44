"""Giusto's rules, one small example each; the choice of prompts against enumeration."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from giusto.core.events import Arrived, Finished, Stepped
from giusto.core.latency import BatchShape, LinearLatency, RooflineLatency
from giusto.core.plan import Caps, Limits, Plan, Refusal, StepOutcome, Yield, check
from giusto.core.request import FinishReason, Reason, RequestView
from giusto.core.slo import SLO, BestEffort, Deadline, Program, Streaming
from giusto.policies import make
from giusto.policies.base import Dependencies
from giusto.policies.giusto import Giusto
from giusto.policies.giusto.choice import Job, Supply, choose
from giusto.policies.giusto.cost import Cost
from giusto.policies.giusto.forecast import Forecast
from giusto.policies.giusto.shares import Shares
from giusto.predict.base import Constant
from giusto.programs.base import Outlook, Unforeseen
from strategies import LiteralView, decoding, request

#: 10 ms a step, 1 ms a prompt token, 0.5 ms a decoding sequence.
LATENCY = LinearLatency((0.01, 0.001, 0.0, 0.0005, 0.0, 0.0, 0.0, 0.0, 0.0))
NOW = 10.0
LIMITS = Limits(512, 16, 4)
NO_CAPS = Caps(exact_grants=False, pause=False)


def policy(output_tokens: float = 20, **options: object) -> Giusto:
    made = make("giusto", Dependencies(LATENCY, Constant(output_tokens)), options)
    assert isinstance(made, Giusto)
    return made


def view_of(**parts: object) -> LiteralView:
    return LiteralView(**{"limits": LIMITS, "free_blocks": 1000, "now": NOW, **parts})


def plan_of(view: LiteralView, made: Giusto | None = None) -> Plan:
    made = made or policy()
    plan = made.plan(view)
    check(plan, view)
    assert plan == made.plan(view), "asked twice with one view, it answers alike"
    return plan


def tokens(plan: Plan) -> dict[str, int]:
    return {grant.request_id: grant.num_tokens for grant in plan.grants}


def stream(name: str, due_in: float, tpot: float = 0.04, context: int = 8) -> object:
    """A stream with one token out whose second is due in so many seconds."""
    return decoding(name, context, slo=Streaming(0.2, tpot), arrival=NOW + due_in - tpot - 0.2)


# Choosing prompts


def jobs_of(draw: random.Random, count: int, *, load: float = 0.0) -> list[Job]:
    jobs = []
    for index in range(count):
        work = draw.uniform(0.01, 0.2)
        jobs.append(Job(draw.uniform(0, 1), f"j{index}", work, draw.random() * load, 1 / work))
    return sorted(jobs)


def is_feasible(jobs: list[Job], supply: Supply) -> bool:
    """Whether all make it, one after another in order of due time."""
    work = load = 0.0
    for job in jobs:
        work, load = work + job.work, load + job.load
        if work > supply.until(job.due, load):
            return False
    return True


@pytest.mark.parametrize("seed", range(60))
def test_the_fewest_possible_jobs_are_dropped(seed: int) -> None:
    """With equal weights and no load, no larger set of jobs would make it."""
    draw = random.Random(seed)
    step = draw.uniform(0.02, 0.1)
    supply = Supply(step, step - 0.02, draw.uniform(0.2, 1))
    jobs = jobs_of(draw, 7)
    kept, dropped = choose(jobs, 0.0, supply)
    best = max(
        size
        for size in range(len(jobs) + 1)
        if any(is_feasible(list(some), supply) for some in combinations(jobs, size))
    )
    assert len(kept) == best
    assert sorted(kept + dropped) == jobs


@pytest.mark.parametrize("seed", range(60))
def test_what_is_chosen_makes_it_beside_its_own_decoding(seed: int) -> None:
    """With loads too, the kept are feasible as the supply counts."""
    draw = random.Random(seed)
    supply = Supply(0.05, 0.03, draw.uniform(0.2, 1))
    kept, dropped = choose(jobs_of(draw, 8, load=0.2), 0.0, supply)
    assert is_feasible(kept, supply)
    assert kept == sorted(kept) and dropped == sorted(dropped)


def test_of_two_in_conflict_the_denser_is_kept() -> None:
    """Value per second of work decides, not urgency."""
    supply = Supply(0.1, 0.1, 1.0)
    cheap, dear = Job(0.3, "cheap", 0.2, 0.0, 5.0), Job(0.25, "dear", 0.2, 0.0, 1.0)
    assert choose([dear, cheap], 0.0, supply) == ([cheap], [dear])


def test_supply_is_what_the_step_leaves_and_then_a_share() -> None:
    """Within the step its first part, less what comes too late; then the share that is left."""
    supply = Supply(step=0.1, first=0.08, share=0.5)
    assert supply.until(0.06, 0.0) == pytest.approx(0.04)
    assert supply.until(0.3, 0.0) == pytest.approx(0.08 + 0.5 * 0.2)
    assert supply.until(0.3, 0.2) == pytest.approx(0.08 + 0.3 * 0.2)
    assert supply.until(0.3, 0.9) == pytest.approx(0.08)


# Deciding


def test_a_prompt_is_cut_where_the_tightest_stream_must_go_on() -> None:
    """Half of 100 ms of slack: 50 ms, of which 10.5 ms are the stream's own step; a twentieth more,
    which nobody else wants."""
    view = view_of(
        running=[stream("s", 0.1)], waiting=[request("p", 300, slo=Streaming(1.0), arrival=NOW)]
    )
    assert tokens(plan_of(view)) == pytest.approx({"s": 1, "p": 41}, abs=1)


def test_whoever_starves_takes_nothing_from_chosen_prompts() -> None:
    """It gets a twentieth of what they and the stream take, and the step lasts as much longer."""
    old = request("old", 300, arrival=NOW - 40)
    chosen = request("p", 300, slo=Streaming(1.0), arrival=NOW)
    granted = tokens(plan_of(view_of(running=[stream("s", 0.1)], waiting=[old, chosen])))
    assert granted == pytest.approx({"s": 1, "p": 39, "old": 2}, abs=1)


def test_work_without_a_promise_gets_a_quarter_of_the_slack() -> None:
    """The same with a best-effort prompt: 25 ms."""
    view = view_of(running=[stream("s", 0.1)], waiting=[request("p", 300, arrival=NOW)])
    assert tokens(plan_of(view)) == pytest.approx({"s": 1, "p": 14}, abs=1)


def test_prompts_are_whole_when_no_stream_waits() -> None:
    """Nothing bounds the step but its tokens."""
    view = view_of(running=[decoding("b")], waiting=[request("p", 300, arrival=NOW)])
    assert tokens(plan_of(view)) == {"b": 1, "p": 300}


def test_a_missed_promise_is_never_urgent() -> None:
    """A passed deadline comes after one to come, however much later that is."""
    view = view_of(
        running=[stream("s", 0.08)],
        waiting=[
            request("missed", 200, slo=Deadline(2.0), arrival=NOW - 3),
            request("kept", 200, slo=Deadline(3.0), arrival=NOW),
        ],
    )
    granted = tokens(plan_of(view))
    assert "kept" in granted and "missed" not in granted


def test_a_stream_with_more_late_tokens_than_forgiven_counts_as_missed() -> None:
    """One late token of some twenty: it is served, but holds nobody up."""
    late = stream("late", -0.01)
    late.late_tokens = 1
    view = view_of(running=[late], waiting=[request("p", 300, arrival=NOW)])
    assert tokens(plan_of(view)) == {"late": 1, "p": 300}


def test_a_deadline_without_hope_does_not_hold_the_step() -> None:
    """Twenty tokens in 50 ms cannot be had; in 500 ms they bind other work to their pace."""
    prompt = request("p", 300, arrival=NOW)
    hopeless = decoding("d", slo=Deadline(1.0), arrival=NOW - 0.95)
    assert tokens(plan_of(view_of(running=[hopeless], waiting=[prompt])))["p"] == 300
    kept = decoding("d", slo=Deadline(1.0), arrival=NOW - 0.5)
    assert tokens(plan_of(view_of(running=[kept], waiting=[prompt])))["p"] < 20


def test_a_prompt_that_costs_nothing_is_not_cut() -> None:
    """Under a model with steps of one length there is nothing to gain by waiting."""
    flat = LinearLatency((0.01, *[0.0] * 8))
    made = make("giusto", Dependencies(flat, Constant(20)))
    view = view_of(running=[stream("s", 0.005)], waiting=[request("p", 300, arrival=NOW)])
    assert tokens(made.plan(view)) == {"s": 1, "p": 300}


@pytest.mark.parametrize("caps", [Caps(), NO_CAPS])
@pytest.mark.parametrize(
    "slos",
    [
        [Deadline(0.3), Deadline(2.0)],
        [Streaming(0.2, 0.04), Streaming(0.1, 0.001)],
        [Streaming(None, 0.04), Streaming(0.2, None)],
        [BestEffort()],
        [Deadline(2.0), Streaming(0.2, 0.04), BestEffort()],
    ],
)
def test_it_stays_sane_on_literal_views(slos: list[SLO], caps: Caps) -> None:
    """Whatever the promises and progress, the plan keeps its contract and something moves."""
    draw = random.Random(len(slos))
    for _ in range(100):
        running = [
            decoding(f"r{i}", slo=draw.choice(slos), arrival=NOW - draw.uniform(0, 3))
            for i in range(draw.randint(0, 6))
        ]
        running += [
            request("half", 60, computed=20, slo=draw.choice(slos), arrival=NOW - draw.random())
        ]
        waiting = [
            request(f"w{i}", draw.randint(1, 400), slo=draw.choice(slos), arrival=NOW - i / 10)
            for i in range(draw.randint(0, 6), 0, -1)
        ]
        plan = plan_of(view_of(running=running, waiting=waiting, caps=caps))
        assert plan.grants


# Yielding, foretelling


def full_of_missed() -> LiteralView:
    """Both slots are held by missed deadlines; a stream waits that could be in time."""
    missed = [decoding(f"m{i}", slo=Deadline(1.0), arrival=NOW - 9 - i) for i in range(2)]
    fresh = request("fresh", 20, slo=Streaming(0.5, 0.04), arrival=NOW)
    return view_of(running=missed, waiting=[fresh], limits=Limits(512, 2, 4))


def test_a_missed_promise_yields_its_place_to_one_that_can_be_kept() -> None:
    """One of them is preempted, and the stream's prompt is computed at once."""
    plan = plan_of(full_of_missed())
    assert tokens(plan)["fresh"] == 20
    assert len(plan.preempt) == 1


def test_nobody_yields_without_the_rule() -> None:
    """Switched off, it waits for a slot."""
    plan = plan_of(full_of_missed(), policy(yields=False))
    assert "fresh" not in tokens(plan)
    assert plan.preempt == ()


def test_a_promise_that_can_be_kept_yields_to_nobody() -> None:
    """With no missed one among the residents the newcomer waits."""
    kept = [stream(f"s{i}", 0.03) for i in range(2)]
    fresh = request("fresh", 20, slo=Streaming(0.5, 0.04), arrival=NOW)
    plan = plan_of(view_of(running=kept, waiting=[fresh], limits=Limits(512, 2, 4)))
    assert plan.preempt == ()
    assert "fresh" not in tokens(plan)


# Costs


def test_what_fits_into_a_step_is_the_models_to_say() -> None:
    """Under a roofline the first tokens cost less than the slope over many of them tells."""
    roofline = RooflineLatency(memory=0.01, compute=1e-4)
    cost = Cost.of(roofline, [decoding("d")])
    seconds = 0.0102
    fits = cost.prompt_tokens(1, seconds, 512)
    assert cost.step_time(1, fits) <= seconds < cost.step_time(1, fits + 1)
    assert fits * cost.per_prefill > 2 * (seconds - cost.base)
    assert cost.decodes(cost.step_time(7), 100) == 7
    assert cost.decodes(cost.step_time(7), 5) == 5
    assert cost.prompt_tokens(9, 0.001, 512) == 0


# Tenants, giving up


def test_a_tenant_above_its_share_is_the_first_to_lose() -> None:
    """Two alike, and time for one: it is the other tenant's, whatever their names."""
    shares = Shares()
    greedy, modest = (request(name, 50) for name in ("greedy", "modest"))
    greedy.tenant, modest.tenant = "greedy", "modest"
    for each in (greedy, modest):
        shares.observe(Arrived(each, NOW))
    assert shares.favours() == {"greedy": 1.0, "modest": 1.0}
    got = StepOutcome(1, NOW, NOW, BatchShape(), {"greedy": Yield((1,)), "modest": Yield()})
    shares.observe(Stepped(got, NOW))
    assert shares.favours() == {"greedy": pytest.approx(0.5), "modest": 1.0}
    shares.observe(Finished("modest", NOW, FinishReason.STOP))
    assert shares.favours() == {}, "who is alone takes all"


def test_a_missed_promise_is_demoted_once() -> None:
    """Its client is told so; what may still be in time is not."""
    missed = decoding("m", slo=Deadline(1.0), arrival=NOW - 9)
    missed.has_begun = True
    view = view_of(running=[missed, stream("s", 0.1)])
    assert plan_of(view).demote == (Refusal("m", Reason.DEADLINE_PASSED),)
    missed.is_demoted = True
    assert plan_of(view).demote == ()


def test_who_cannot_be_saved_is_refused_if_that_is_asked_for() -> None:
    """Served late otherwise: a late answer may be worth something."""
    late = request("late", 300, slo=Deadline(1.0), arrival=NOW - 0.9)
    view = view_of(waiting=[late])
    assert plan_of(view).reject == ()
    (refusal,) = plan_of(view, policy(sheds=True)).reject
    assert (refusal.request_id, refusal.reason) == ("late", Reason.DEADLINE_UNREACHABLE)


class Foretold(Unforeseen):
    """Sixty more tokens on the way, and three seconds of tools."""

    def outlook(self, request: RequestView) -> Outlook:
        return Outlook(stages=2, calls=4, output_tokens=90, path_tokens=60, tool_time=3.0)


def test_a_calls_share_of_its_programs_time_is_by_what_is_foretold() -> None:
    """Of nine seconds less the tools' three a call of 20 tokens has a quarter before 60 more."""
    call = request("c", 20, slo=Program(9.0), arrival=NOW)
    forecast = Forecast(Constant(20), Foretold(), 0.5)
    assert forecast.call_due(call) == pytest.approx(NOW + 6.0 / 4)
    assert Forecast(Constant(20), Unforeseen(), 0.5).call_due(call) == NOW + 9.0
    cost = Cost(LATENCY, 128, 0.01, 0.0005, 0.001)
    assert forecast.later(call, cost) == pytest.approx(90 * 0.0005)


@pytest.mark.parametrize(
    ("name", "value"),
    [("level", 1.0), ("keep_up", -1), ("window", 0)],
)
def test_other_parameters_are_checked_too(name: str, value: float) -> None:
    """Each names itself."""
    with pytest.raises(Exception, match=name):
        policy(**{name: value})


@pytest.mark.parametrize("name", ["headroom", "spare", "blocking"])
@pytest.mark.parametrize("value", [0.0, 1.5])
def test_parameters_are_checked(name: str, value: float) -> None:
    """Shares lie in (0, 1]."""
    with pytest.raises(Exception, match=name):
        policy(**{name: value})
