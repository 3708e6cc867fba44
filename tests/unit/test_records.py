"""Events into records, and records into verdicts."""

from __future__ import annotations

import math

import pytest

from giusto.core.events import (
    Admitted,
    Arrived,
    Demoted,
    Estimated,
    Event,
    Finished,
    Preempted,
    ProgramClosed,
    ProgramOpened,
    Rejected,
    Resumed,
    Stepped,
)
from giusto.core.latency import BatchShape
from giusto.core.plan import StepOutcome, Yield
from giusto.core.request import FinishReason, ProgramRef, Reason, Request, Submission
from giusto.core.slo import SLO, BestEffort, Deadline, Program, Streaming
from giusto.metrics.records import ProgramCall, Record, Recorder, by_group
from giusto.metrics.verdict import Verdict, judge, verdicts

CHAT = Streaming(ttft=1.0, tpot=1.0)


def arrived(request_id: str, at: float = 0.0, slo: SLO = CHAT, **fields: object) -> Arrived:
    ask = Submission(request_id, at, num_prompt_tokens=10, slo=slo, **fields)  # type: ignore[arg-type]
    return Arrived(Request.of(ask), at)


def called(request_id: str, program: str, at: float, opened: float, deadline: float) -> Arrived:
    event = arrived(request_id, at, Program(deadline), program=ProgramRef(program, request_id))
    assert isinstance(event.request, Request)
    event.request.origin = opened
    return event


def stepped(ended: float, *request_ids: str, tokens: int = 1) -> Stepped:
    yields = {request_id: Yield((7,) * tokens) for request_id in request_ids}
    return Stepped(StepOutcome(0, ended - 0.1, ended, BatchShape(), yields), ended + 0.001)


def finished(request_id: str, at: float, reason: FinishReason = FinishReason.STOP) -> Finished:
    return Finished(request_id, at, reason)


def observe(*events: Event) -> list[Record]:
    recorder = Recorder()
    for event in events:
        recorder.observe(event)
    assert not recorder.open
    return recorder.records


def length_of(record: Record) -> tuple[float, bool]:
    """Unfinished answers would have had 8 tokens, as an estimate."""
    return 8.0, True


def judged(*events: Event) -> list[Verdict]:
    return verdicts(observe(*events), length_of)


# Events into records


def test_a_record_has_what_the_events_said() -> None:
    """One request from arrival to end, with everything on the way."""
    (record,) = observe(
        arrived("a", 1.0, service_class="chat", tenant="t", weight=2.0, cap=99),
        Admitted("a", 1.5, cached_tokens=4),
        Estimated("a", (50.0,), 1.5),
        stepped(2.0, "a"),
        Preempted("a", 2.5),
        Resumed("a", 2.7, cached_tokens=9),
        Demoted("a", 2.8, Reason.DEADLINE_UNREACHABLE),
        stepped(3.0, "a", tokens=2),
        Stepped(StepOutcome(0, 3.0, 3.5, BatchShape(), {"a": Yield()}), 3.5),
        finished("a", 3.6),
    )
    assert record == Record(
        id="a",
        group="a",
        service_class="chat",
        slo=CHAT,
        arrival=1.0,
        origin=1.0,
        prompt_tokens=10,
        token_times=(2.0, 3.0, 3.0),
        closed=3.6,
        finish=FinishReason.STOP,
        demoted="deadline_unreachable",
        tenant="t",
        weight=2.0,
        cap=99,
        admitted=1.5,
        cached_tokens=4,
        preemptions=1,
    )
    assert (record.queue_time, record.gaps, record.wait(9.0)) == (0.5, (1.0, 0.0), 1.0)
    assert record.delivery.e2e == 2.0


def test_the_slo_is_that_of_arrival() -> None:
    """A demotion that rewrites the request's SLO does not change what it is judged by."""
    event = arrived("a", slo=Deadline(1.0))
    recorder = Recorder()
    recorder.observe(event)
    assert isinstance(event.request, Request)
    event.request.slo = BestEffort()
    recorder.observe(finished("a", 5.0))
    assert recorder.records[0].slo == Deadline(1.0)


def test_a_refused_request_has_a_record() -> None:
    """Refusals carry their reason, no end and no tokens."""
    (record,) = observe(arrived("a"), Rejected("a", 2.0, Reason.QUEUE_FULL))
    assert (record.refused, record.finish, record.closed) == ("queue_full", None, 2.0)
    assert not record.is_answered
    assert record.delivery.e2e == math.inf
    assert (record.queue_time, record.wait(9.0)) == (None, 2.0)


def test_unknown_requests_are_ignored() -> None:
    """Events of a request that never arrived, or has ended, change nothing."""
    assert not observe(
        stepped(1.0, "x"),
        Admitted("x", 1.0, 0),
        Preempted("x", 1.0),
        finished("x", 1.0),
        Rejected("x", 1.0, Reason.DRAINING),
    )
    events = [arrived("a"), finished("a", 1.0), stepped(2.0, "a")]
    assert observe(*events)[0].token_times == ()


def test_samples_come_together() -> None:
    """A sink is given the records of a submission when the last of its samples has ended."""
    ask = Submission("a", 0.0, 10, slo=CHAT, n=2)
    given: list[tuple[Record, ...]] = []
    recorder = Recorder(given.append)
    for sample in range(2):
        recorder.observe(Arrived(Request.of(ask, sample), 0.0))
    recorder.observe(stepped(0.5, "a", "a#1"))
    recorder.observe(finished("a", 0.5))
    assert not given
    assert [r.id for r in recorder.open_records()] == ["a", "a#1"]
    recorder.observe(finished("a#1", 1.5))
    assert [[r.id for r in records] for records in given] == [["a", "a#1"]]
    assert (recorder.records, recorder.open, recorder.open_records()) == ([], {}, [])
    assert list(by_group(given[0])) == ["a"]


def test_open_records_are_those_still_running() -> None:
    """A run that is cut off can be judged as it stands."""
    recorder = Recorder()
    for event in (arrived("a"), stepped(0.5, "a"), arrived("b", 0.6)):
        recorder.observe(event)
    running, waiting = recorder.open_records()
    assert (running.token_times, running.closed, running.finish) == ((0.5,), None, None)
    assert waiting.wait(until=2.6) == 2.0


# Cancels


@pytest.mark.parametrize(
    ("slo", "tokens", "at", "is_cancelled"),
    [
        (CHAT, (), 0.9, True),
        (CHAT, (), 1.1, False),
        (CHAT, (0.5, 1.5), 2.9, True),
        (CHAT, (0.5, 1.5), 3.1, False),
        (CHAT, (0.5, 2.5, 2.6), 2.7, False),
        (Streaming(tpot=1.0), (), 1e6, True),
        (Deadline(5.0), (0.5,), 5.0, True),
        (Deadline(5.0), (0.5,), 5.1, False),
        (BestEffort(), (), 1e6, True),
    ],
)
def test_a_cancel_counts_only_after_something_was_late(
    slo: SLO, tokens: tuple[float, ...], at: float, is_cancelled: bool
) -> None:
    """A request leaves the count if its client left while nothing was late yet."""
    events = [arrived("a", slo=slo), *(stepped(t, "a") for t in tokens)]
    records = observe(*events, finished("a", at, FinishReason.ABORT))
    verdict = judge(records, length_of)
    assert verdict.is_cancelled == is_cancelled
    assert not verdict.is_attained


def test_an_error_is_not_a_cancel() -> None:
    """A request that failed is missed, however early."""
    (verdict,) = judged(arrived("a"), finished("a", 0.1, FinishReason.ERROR))
    assert (verdict.is_cancelled, verdict.is_attained) == (False, False)


# Verdicts


def test_a_demoted_request_may_still_meet_its_slo() -> None:
    """Demoted ones are missed unless they meet what they were promised all the same."""
    demotion = Demoted("a", 0.6, Reason.DEADLINE_UNREACHABLE)
    (met,) = judged(arrived("a"), demotion, stepped(0.5, "a"), finished("a", 0.5))
    (missed,) = judged(arrived("a"), demotion, stepped(1.5, "a"), finished("a", 1.5))
    assert (met.is_attained, missed.is_attained) == (True, False)


def test_gain_by_hand() -> None:
    """10 prompt tokens and 2 tokens, the second at 4 s when it was due at 2 s."""
    (verdict,) = judged(
        arrived("a", weight=3.0), stepped(0.5, "a"), stepped(4.0, "a"), finished("a", 4.0)
    )
    assert verdict.gain == pytest.approx(3 * (10 + 2 * (1 + 0.5)))
    assert verdict.cutoff == pytest.approx(3 * (10 + 2))
    assert verdict.possible == pytest.approx(3 * (10 + 4))
    assert (verdict.estimated, verdict.took, verdict.kind) == (0.0, 4.0, "streaming")


def test_what_an_unfinished_request_would_have_been_worth_is_estimated() -> None:
    """Its length is the expected one, never less than what it had already got."""
    refused = judged(arrived("a", slo=Deadline(1.0)), Rejected("a", 0.0, Reason.QUEUE_FULL))[0]
    assert (refused.gain, refused.possible, refused.estimated) == (0.0, 26.0, 26.0)
    assert refused.took == math.inf
    failed = judged(
        arrived("a"), stepped(0.5, "a", tokens=20), finished("a", 0.6, FinishReason.ERROR)
    )[0]
    assert failed.possible == 10 + 2 * 20


def test_samples_count_once() -> None:
    """n = 2 is one unit: attained if both are, its prompt earns once, both outputs earn."""
    ask = Submission("a", 0.0, 10, slo=Deadline(5.0), n=2)
    events: list[Event] = [Arrived(Request.of(ask, sample), 0.0) for sample in range(2)]
    events += [stepped(1.0, "a", "a#1"), finished("a", 1.0), stepped(5.0, "a#1")]
    (both,) = judged(*events, finished("a#1", 5.0))
    assert both.is_attained
    assert both.gain == both.possible == 10 + 2 * 3
    assert both.output_tokens == 3
    (late,) = judged(*events, stepped(10.0, "a#1"), finished("a#1", 10.0))
    assert not late.is_attained
    assert late.gain == pytest.approx(12 + 2 * 3 * 0.5)
    (left,) = judged(*events, finished("a#1", 5.0, FinishReason.ABORT))
    assert left.is_cancelled


# Programs


def test_a_program_counts_once() -> None:
    """Two calls judged with their program are one unit that ends with the last of them."""
    (verdict,) = judged(
        ProgramOpened("p", 1.0, 10.0),
        called("a", "p", 1.0, 1.0, 10.0),
        stepped(2.0, "a", tokens=5),
        finished("a", 2.0),
        called("b", "p", 4.0, 1.0, 10.0),
        stepped(11.0, "b", tokens=5),
        finished("b", 11.0),
        ProgramClosed("p", 11.0, 11.0, True),
    )
    assert (verdict.kind, verdict.is_attained, verdict.took) == ("program", True, 10.0)
    assert verdict.is_strict
    assert verdict.is_adaserve
    assert verdict.gain == verdict.possible == 2 * (10 + 2 * 5)


def test_a_late_program_earns_less() -> None:
    """Its gain decays with its end, over all of its calls."""
    (verdict,) = judged(
        called("a", "p", 0.0, 0.0, 10.0),
        finished("a", 1.0),
        called("b", "p", 2.0, 0.0, 10.0),
        stepped(20.0, "b"),
        finished("b", 20.0),
    )
    assert not verdict.is_attained
    assert (verdict.gain, verdict.cutoff) == (0.5 * (10 + 10 + 2), 0.0)


def test_a_refused_call_makes_the_program_missed() -> None:
    """A program with a call that was refused is missed and earns nothing."""
    (verdict,) = judged(
        called("a", "p", 0.0, 0.0, 10.0),
        finished("a", 1.0),
        called("b", "p", 2.0, 0.0, 10.0),
        Rejected("b", 2.0, Reason.QUEUE_FULL),
    )
    assert (verdict.is_attained, verdict.is_cancelled, verdict.gain) == (False, False, 0.0)
    assert verdict.possible == (10 + 0) + (10 + 2 * 8)


def test_a_cancelled_program_leaves_the_count() -> None:
    """A call cancelled in time takes its program out, unless another one failed."""
    early = finished("b", 3.0, FinishReason.ABORT)
    events = [called("a", "p", 0.0, 0.0, 10.0), called("b", "p", 2.0, 0.0, 10.0), early]
    (verdict,) = judged(*events, finished("a", 3.0))
    assert verdict.is_cancelled
    (verdict,) = judged(*events, finished("a", 3.0, FinishReason.ERROR))
    assert not verdict.is_cancelled


def test_a_call_with_its_own_slo_has_its_own_verdict() -> None:
    """It is judged alone, and holds up the end of its program, whose value it does not share."""
    own = arrived("b", 1.0, Deadline(1.0), program=ProgramRef("p", "b"))
    alone, program = judged(
        ProgramOpened("p", 0.5, 10.0),
        called("a", "p", 0.0, 0.0, 10.0),
        finished("a", 1.0),
        own,
        stepped(11.0, "b"),
        finished("b", 11.0),
    )
    assert (alone.kind, alone.is_attained) == ("deadline", False)
    assert (program.is_attained, program.possible) == (False, 10.0)


def test_best_effort_calls_hold_up_no_program() -> None:
    """Calls that a missed or closed program still makes do not move its end."""
    events = [
        ProgramOpened("p", 0.0, 10.0),
        called("a", "p", 0.0, 0.0, 10.0),
        finished("a", 1.0),
    ]
    extra = arrived("b", 2.0, BestEffort(), program=ProgramRef("p", "b"))
    records = observe(*events, extra, finished("b", 90.0))
    assert records[1].program == ProgramCall("p", "b", 0.0)
    alone, program = verdicts(records, length_of)
    assert (alone.kind, program.is_attained) == ("best_effort", True)
    closed = observe(*events, ProgramClosed("p", 1.0, 1.0, True), extra, finished("b", 90.0))
    assert closed[1].program is None


def test_what_a_lost_program_still_calls_counts_with_it() -> None:
    """Its later calls are served as best effort; they neither keep promises nor hide its end."""
    late = judged(
        ProgramOpened("p", 0.0, 10.0),
        called("a", "p", 0.0, 0.0, 10.0),
        finished("a", 12.0),
        arrived("b", 12.5, BestEffort(), program=ProgramRef("p", "b")),
        finished("b", 20.0),
    )
    assert [(v.kind, v.is_attained, v.took) for v in late] == [("program", False, 20.0)]
    failed = judged(
        ProgramOpened("p", 0.0, 10.0),
        called("a", "p", 0.0, 0.0, 10.0),
        Rejected("a", 1.0, Reason.DRAINING),
        arrived("b", 2.0, BestEffort(), program=ProgramRef("p", "b")),
        finished("b", 3.0),
    )
    assert [(v.kind, v.is_attained) for v in failed] == [("program", False)]


def test_a_program_without_a_deadline_only_groups() -> None:
    """Its calls are judged alone and there is no unit for the program."""
    only = judged(
        ProgramOpened("p", 0.0, None),
        arrived("a", 0.0, Deadline(5.0), program=ProgramRef("p", "a")),
        finished("a", 1.0),
    )
    assert [verdict.kind for verdict in only] == ["deadline"]
