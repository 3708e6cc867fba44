"""Programs: when they open, close and are missed, and by what their calls are judged."""

from __future__ import annotations

import pytest

from giusto.core.events import Event, ProgramClosed, ProgramOpened
from giusto.core.kv import BlockPool
from giusto.core.plan import Limits
from giusto.core.programs import ProgramTable
from giusto.core.queue import QueueLimits
from giusto.core.request import FinishReason, ProgramRef, Request, SamplingParams, Submission
from giusto.core.scheduler import Scheduler
from giusto.core.slo import SLO, BestEffort, Deadline, Program
from harness import Drive, policy_named
from strategies import request

CLASS_SLO = Deadline(7.0)


def call(
    name: str,
    at: float,
    *,
    deadline: float | None = 60.0,
    program: str = "p",
    own: SLO | None = None,
    final: bool = False,
    n: int = 1,
    prompt: int = 16,
) -> Submission:
    """A call of a program; without `own` it has its class's SLO."""
    return Submission(
        name,
        at,
        prompt,
        slo=own or CLASS_SLO,
        has_own_slo=own is not None,
        program=ProgramRef(program, name, final=final, deadline=deadline, app="app"),
        sampling=SamplingParams(max_tokens=4),
        n=n,
    )


def scheduler() -> Scheduler:
    policy, _ = policy_named("fcfs")
    return Scheduler(policy, BlockPool(64, 16), Limits(64, 8, 16), is_checking=True)


def drive() -> Drive:
    return Drive.of(policy_named("fcfs")[0], {})


def added(made: Scheduler, ask: Submission, now: float | None = None) -> Request:
    made.add(ask, ask.arrival if now is None else now)
    return made.requests[ask.id]


def closings(events: list[Event]) -> list[ProgramClosed]:
    return [event for event in events if isinstance(event, ProgramClosed)]


def test_a_program_opens_with_its_first_calls_arrival() -> None:
    """Its clock starts at the arrival, not when the scheduler heard of it; one event tells."""
    made = scheduler()
    added(made, call("a", 10.0), now=10.5)
    added(made, call("b", 11.0))
    opened = [event for event in made.take_events() if isinstance(event, ProgramOpened)]
    assert opened == [ProgramOpened("p", 10.5, 60.0)]
    program = made.programs.get("p")
    assert program is not None
    assert (program.opened, program.app, program.num_active_calls) == (10.0, "app", 2)


def test_a_call_is_judged_with_its_program() -> None:
    """Without an SLO of its own it takes the program's, counted from the opening."""
    made = scheduler()
    added(made, call("a", 10.0))
    late = added(made, call("b", 30.0))
    assert (late.slo, late.origin) == (Program(60.0), 10.0)


def test_all_samples_of_a_call_are_judged_alike() -> None:
    """Siblings share the resolved SLO and origin, and count as one call."""
    made = scheduler()
    added(made, call("a", 10.0))
    added(made, call("b", 30.0, n=2))
    assert (made.requests["b#1"].slo, made.requests["b#1"].origin) == (Program(60.0), 10.0)
    assert made.programs.get("p").num_active_calls == 2


def test_a_call_with_its_own_slo_keeps_it() -> None:
    """Its verdict is its own, even when its program is missed."""
    made = scheduler()
    added(made, call("a", 10.0))
    own = added(made, call("b", 30.0, own=Deadline(2.0)))
    assert (own.slo, own.origin) == (Deadline(2.0), 30.0)
    late = added(made, call("c", 100.0, own=Deadline(2.0)))
    assert late.slo == Deadline(2.0)


def test_a_session_without_a_deadline_promises_nothing() -> None:
    """Its calls are judged alone, by their class."""
    made = scheduler()
    alone = added(made, call("a", 10.0, deadline=None))
    assert (alone.slo, alone.origin) == (CLASS_SLO, 10.0)


def test_later_calls_inherit_the_deadline() -> None:
    """Only one call needs to state it; the first to do so wins."""
    made = scheduler()
    added(made, call("a", 10.0, deadline=60.0))
    assert added(made, call("b", 20.0, deadline=None)).slo == Program(60.0)
    assert added(made, call("c", 30.0, deadline=5.0)).slo == Program(60.0)


def test_a_deadline_may_come_with_a_later_call() -> None:
    """It counts from the opening all the same."""
    made = scheduler()
    added(made, call("a", 10.0, deadline=None))
    later = added(made, call("b", 20.0, deadline=60.0))
    assert (later.slo, later.origin) == (Program(60.0), 10.0)


def test_calls_after_the_deadline_are_best_effort() -> None:
    """A missed program's calls are served, with nothing left to save."""
    made = scheduler()
    added(made, call("a", 10.0))
    late = added(made, call("b", 70.5))
    assert (late.slo, late.origin, made.programs.get("p").is_missed) == (BestEffort(), 70.5, True)


def test_a_refused_call_makes_the_program_missed() -> None:
    """Further calls are best effort, not refused."""
    made = scheduler()
    made.queue_limits = QueueLimits(max_num_queued_reqs=0)
    made.add(call("a", 10.0), 10.0)
    assert "a" not in made.requests
    made.queue_limits = QueueLimits()
    assert added(made, call("b", 11.0)).slo == BestEffort()
    assert made.programs.get("p").met is False


def test_a_failed_call_makes_the_program_missed() -> None:
    """An error of any of its samples is enough."""
    table = ProgramTable()
    one = Request.of(call("a", 0.0))
    table.enter(one, 0.0)
    table.charge(one, FinishReason.ERROR)
    table.leave(one, 1.0, FinishReason.STOP)
    assert table.get("p").is_missed


def test_a_cancel_does_not_make_it_missed() -> None:
    """The client's own cancel leaves the program as it was, without an end of its own."""
    made = scheduler()
    added(made, call("a", 10.0))
    made.abort("a", 11.0)
    program = made.programs.get("p")
    assert (program.is_missed, program.ended, program.num_finished_calls) == (False, None, 0)
    assert added(made, call("b", 12.0)).slo == Program(60.0)


def test_a_program_closes_with_the_end_of_its_final_call() -> None:
    """Its end is its last call's end, and the event tells whether that was in time."""
    run = drive()
    run.run([call("a", 1.0), call("b", 2.0, final=True)])
    (closed,) = closings(run.events)
    assert (closed.program_id, closed.ended, closed.met) == ("p", run.now, True)


def test_a_final_call_waits_for_its_elders() -> None:
    """A final call that ends first closes nothing while another is active."""
    table = ProgramTable()
    slow, final = Request.of(call("a", 0.0)), Request.of(call("b", 1.0, final=True))
    table.enter(slow, 0.0)
    table.enter(final, 1.0)
    assert table.leave(final, 2.0, FinishReason.STOP) is None
    assert table.leave(slow, 70.0, FinishReason.STOP) is table.get("p")
    assert (table.get("p").ended, table.get("p").met) == (70.0, False)


def test_a_program_without_a_deadline_is_neither_met_nor_missed() -> None:
    """`met` is None in its closing event."""
    run = drive()
    run.run([call("a", 1.0, deadline=None, final=True)])
    assert [closed.met for closed in closings(run.events)] == [None]


def test_a_program_closes_on_its_clients_word() -> None:
    """At once when nothing is active, else with its last call; twice or unknown is no error."""
    made = scheduler()
    added(made, call("a", 1.0))
    made.close_program("p", 2.0)
    assert not closings(made.take_events())
    made.abort("a", 3.0)
    assert closings(made.take_events()) == [ProgramClosed("p", 3.0, 1.0, True, "app")]
    made.close_program("p", 4.0)
    made.close_program("ghost", 4.0)
    assert not made.take_events()


def test_calls_after_the_close_are_best_effort_and_change_nothing() -> None:
    """The verdict and the end of a closed program stand."""
    run = drive()
    run.run([call("a", 1.0, final=True)])
    before = run.scheduler.programs.get("p")
    ended, met = before.ended, before.met
    late = call("b", 100.0)
    run.now = 100.0
    run.scheduler.add(late, 100.0)
    assert run.scheduler.requests["b"].slo == BestEffort()
    run.run([])
    after = run.scheduler.programs.get("p")
    assert (after.ended, after.met, after.is_missed) == (ended, met, False)
    assert len(closings(run.events)) == 1


def test_a_program_closes_when_it_was_idle_for_long() -> None:
    """Ten minutes after its last call ended, however that ended; not while one is active."""
    made = scheduler()
    added(made, call("a", 0.0))
    added(made, call("z", 0.0, program="other"))
    made.schedule(700.0)
    assert not closings(made.take_events())
    table = ProgramTable(idle_timeout=600.0)
    one = Request.of(call("a", 0.0))
    table.enter(one, 0.0)
    table.leave(one, 500.0, FinishReason.ABORT)
    assert table.expire(1099.9) == []
    assert [program.id for program in table.expire(1100.0)] == ["p"]
    assert table.expire(5000.0) == []


def test_an_idle_program_is_closed_before_its_next_call_comes_in() -> None:
    """A call that comes too late finds it closed, though no step was planned in between."""
    run = drive()
    run.run([call("a", 0.0, deadline=3600.0)])
    run.scheduler.add(call("b", 1000.0), 1000.0)
    assert run.scheduler.requests["b"].slo == BestEffort()
    assert [event.met for event in closings(run.scheduler.take_events())] == [True]


def test_a_program_counts_what_its_calls_took() -> None:
    """Attained service is the tokens computed for its calls, all samples of them."""
    run = drive()
    run.scheduler.pool.prefix_caching = False
    run.executor.lengths = {"a": 3, "b": 1, "b#1": 1}
    run.run([call("a", 0.0), call("b", 10.0, n=2)])
    program = run.scheduler.programs.get("p")
    assert (program.attained_service, program.num_finished_calls) == (16 + 2 + 16 + 16, 2)


def test_the_table_is_bounded() -> None:
    """Closed programs are forgotten first, then the longest untouched open ones."""
    table = ProgramTable(capacity=2)
    calls = [Request.of(call(f"c{i}", float(i), program=f"p{i}")) for i in range(4)]
    for i in (0, 1):
        table.enter(calls[i], float(i))
    table.leave(calls[1], 1.5, FinishReason.STOP)
    table.close("p1")
    table.enter(calls[2], 2.0)
    assert [table.get(f"p{i}") is not None for i in range(4)] == [True, False, True, False]
    table.enter(calls[3], 3.0)
    assert [table.get(f"p{i}") is not None for i in range(4)] == [False, False, True, True]
    assert table.leave(calls[0], 4.0, FinishReason.STOP) is None
    table.charge(calls[0], FinishReason.STOP)


def test_requests_without_a_program_pass_by() -> None:
    """Nothing is counted in or out."""
    table, bare = ProgramTable(), request("a")
    assert table.enter(bare, 0.0) is None
    table.charge(bare, FinishReason.STOP)
    assert table.leave(bare, 1.0, FinishReason.STOP) is None


@pytest.mark.parametrize("reason", [FinishReason.STOP, FinishReason.LENGTH])
def test_only_answers_count_as_finished_calls(reason: FinishReason) -> None:
    """Natural ends and the output limit both are answers."""
    table = ProgramTable()
    one = Request.of(call("a", 0.0))
    table.enter(one, 0.0)
    table.leave(one, 1.0, reason)
    assert (table.get("p").num_finished_calls, table.get("p").num_active_calls) == (1, 0)
