"""Who `edf-shed` refuses, whom it demotes, and whom it leaves alone."""

from __future__ import annotations

import pytest

from giusto.core.events import Demoted, Finished, Rejected
from giusto.core.latency import LinearLatency
from giusto.core.plan import Limits, Plan, Refusal, check
from giusto.core.request import FinishReason, Reason, Request
from giusto.core.slo import SLO, BestEffort, Deadline, Program, Streaming, is_attained
from giusto.metrics.records import Record, Recorder
from giusto.policies import make
from giusto.policies.base import Dependencies
from giusto.policies.edf_shed import EdfShed
from giusto.predict.base import Constant
from harness import Drive, policy_named
from strategies import Hit, LiteralView, decoding, mixed_load, request

#: A tenth of a second a step and 10 ms a prompt token; decoding adds nothing.
MACHINE = LinearLatency((0.1, 0.01, 0, 0, 0, 0, 0, 0, 0))
DEPS = Dependencies(MACHINE, Constant(11))


def planned(view: LiteralView) -> Plan:
    """A plan that keeps the contract."""
    plan = make("edf-shed", DEPS).plan(view)
    check(plan, view)
    return plan


def shed(*waiting: Request, **view: object) -> dict[str, Reason]:
    plan = planned(LiteralView([], waiting, **view))
    return {refusal.request_id: refusal.reason for refusal in plan.reject}


# Refusing


def test_no_guess_of_a_length_refuses_a_class_for_ever() -> None:
    """However long answers are believed to be, the first of a class gets its chance."""
    policy = make("edf-shed", Dependencies(MACHINE, Constant(100_000)))
    view = LiteralView([], [request("a", 40, slo=Deadline(12.0))], now=1.0)
    assert [grant.request_id for grant in policy.plan(view).grants] == ["a"]


@pytest.mark.parametrize(
    "slo",
    [Streaming(12.0, 1.0), Deadline(12.0), Program(12.0)],
    ids=["stream", "deadline", "program"],
)
def test_the_lost_are_refused_and_nobody_else(slo: SLO) -> None:
    """A prompt of 40 takes 0.5 s: to start later than that before it is due is too late."""
    asked = request("a", 40, slo=slo)
    assert shed(asked, now=11.49) == {}
    assert shed(asked, now=11.51) == {"a": Reason.DEADLINE_UNREACHABLE}
    assert shed(asked, now=12.01) == {"a": Reason.DEADLINE_PASSED}


@pytest.mark.parametrize("slo", [BestEffort(), Streaming(None, 0.001)])
def test_who_was_promised_no_instant_is_never_refused(slo: SLO) -> None:
    """Best effort waits as long as it must, and so does a stream without a TTFT target."""
    assert shed(request("a", 60, slo=slo), now=1e6) == {}


def test_a_long_prompt_takes_several_steps() -> None:
    """100 tokens in steps of 64 take two constants."""
    asked = request("a", 100, slo=Streaming(12.0))
    assert shed(asked, now=10.79) == {}
    assert shed(asked, now=10.81) == {"a": Reason.DEADLINE_UNREACHABLE}
    assert shed(asked, now=10.81, limits=Limits(128, 8, 4)) == {}


def test_a_cached_prefix_saves_its_time() -> None:
    """Of 40 tokens 20 are computed already: 0.3 s suffice."""
    asked = request("a", 40, slo=Streaming(12.0))
    assert shed(asked, now=11.69, hits={"a": Hit(5)}) == {}
    assert shed(asked, now=11.71, hits={"a": Hit(5)}) == {"a": Reason.DEADLINE_UNREACHABLE}


def test_what_is_cached_meanwhile_saves_who_seemed_lost() -> None:
    """The latest start is looked at again when it has come."""
    policy = make("edf-shed", DEPS)
    asked = request("a", 40, slo=Streaming(12.0))
    assert not policy.plan(LiteralView([], [asked], now=11.0)).reject
    assert not policy.plan(LiteralView([], [asked], now=11.6, hits={"a": Hit(5)})).reject
    assert policy.plan(LiteralView([], [asked], now=11.8)).reject


def test_the_refused_leave_their_place_to_others() -> None:
    """They were due first, but slots go to those that can still make it."""
    lost = [request(f"u{i}", 8, slo=Streaming(9.0)) for i in range(5)]
    view = LiteralView([], [*lost, request("a", slo=Deadline(30.0)), request("b")])
    view.limits = Limits(64, 2, 4)
    plan = planned(view)
    assert [grant.request_id for grant in plan.grants] == ["a", "b"]
    assert len(plan.reject) == 5


def test_residents_are_not_refused() -> None:
    """A prompt under way goes on, after all that can be kept, and is no longer urgent."""
    view = LiteralView(
        [request("a", 40, computed=8, slo=Streaming(9.0))], [request("b", slo=Deadline(30.0))]
    )
    plan = planned(view)
    assert [grant.request_id for grant in plan.grants] == ["b", "a"]
    assert not plan.reject


def test_who_has_begun_is_not_refused() -> None:
    """Neither a preempted request that has sent a token nor a sample whose sibling has."""
    preempted = request("a", 8, output=2, slo=Deadline(5.0))
    sample = request("b", 8, slo=Deadline(5.0))
    sample.has_begun = True
    view = LiteralView([], [preempted, sample])
    plan = planned(view)
    assert not plan.reject
    assert [refusal.request_id for refusal in plan.demote] == ["a", "b"]


def test_the_client_hears_when_to_come_back() -> None:
    """When the prompts that wait are computed, in full steps; in a second at the least."""
    lost = request("a", 8, slo=Deadline(5.0))
    (refusal,) = planned(LiteralView([], [lost])).reject
    assert refusal == Refusal("a", Reason.DEADLINE_PASSED, retry_after=1.0)
    others = [request(f"b{i}", 64) for i in range(10)]
    (refusal,) = planned(LiteralView([], [lost, *others])).reject
    assert refusal.retry_after == pytest.approx(10 * (0.1 + 64 * 0.01))


# Demoting


def test_the_missed_are_demoted_once() -> None:
    """Streams with too many late tokens and deadlines that have passed; nobody twice."""
    late = decoding("a", slo=Streaming(20.0, 1.0))
    late.late_tokens = late.cap
    passed = decoding("b", slo=Deadline(5.0))
    demoted = decoding("c", slo=Deadline(5.0))
    demoted.is_demoted = True
    kept = [decoding("d", slo=Deadline(15.0)), decoding("e", slo=BestEffort())]
    plan = planned(LiteralView([late, passed, demoted, *kept]))
    assert [refusal.request_id for refusal in plan.demote] == ["a", "b"]
    assert {refusal.reason for refusal in plan.demote} == {Reason.DEADLINE_PASSED}
    assert [grant.request_id for grant in plan.grants] == ["d", "b", "c", "a", "e"]


def test_who_is_about_to_end_is_left_alone() -> None:
    """With its last token in flight there is nothing to demote."""
    ending = decoding("a", slo=Deadline(5.0), in_flight=1, max_tokens=2)
    assert not planned(LiteralView([ending, decoding("b")])).demote


def test_without_the_lost_it_is_edf() -> None:
    """On a view where all can be kept both policies plan alike."""
    view = LiteralView(
        [decoding("a", slo=Deadline(30.0)), decoding("b", slo=Streaming(20.0, 1.0))],
        [request("c", slo=Deadline(15.0)), request("d", slo=Streaming(25.0)), request("e")],
    )
    assert planned(view) == make("edf", DEPS).plan(view)


# To the end


def overloaded(name: str) -> Drive:
    """Two seconds of arrivals, each promised something, that take ten to serve."""
    load = mixed_load(120, seed=1, rate=60.0, slos=[Streaming(1.0, 0.2), Deadline(6.0)])
    policy, lengths = policy_named(name)
    drive = Drive.of(policy, load.lengths, num_blocks=400, observers=[lengths.observe])
    drive.run(load.asks)
    return drive


def num_kept(drive: Drive) -> int:
    """Promises that were kept."""
    records: list[Record] = []
    recorder = Recorder(records.extend)
    for event in drive.events:
        recorder.observe(event)
    return sum(is_attained(record.slo, record.delivery, record.origin) for record in records)


def test_what_the_refused_leave_keeps_promises() -> None:
    """Under overload it keeps more promises than `edf`, refused ones counted as missed."""
    shedding, serving = overloaded("edf-shed"), overloaded("edf")
    assert any(isinstance(event, Rejected) for event in shedding.events)
    assert not any(isinstance(event, Rejected) for event in serving.events)
    assert num_kept(shedding) > num_kept(serving)


def test_the_demoted_end_by_themselves_and_nothing_is_kept_of_anyone() -> None:
    """Demoted once, then finished; the policy remembers nobody who has ended."""
    drive = overloaded("edf-shed")
    demoted = [event.request_id for event in drive.events if isinstance(event, Demoted)]
    assert demoted
    assert len(demoted) == len(set(demoted))
    ends = {e.request_id: e.reason for e in drive.events if isinstance(e, Finished)}
    assert {ends[request_id] for request_id in demoted} == {FinishReason.STOP}
    policy = drive.scheduler.policy
    assert isinstance(policy, EdfShed)
    assert policy._shedding._latest == {}
