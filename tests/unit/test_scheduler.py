"""The scheduler, one promise at a time: doors, siblings, aborts, hits, what is in flight."""

from __future__ import annotations

import pytest

from giusto.core import events as ev
from giusto.core.errors import PlanError
from giusto.core.kv import BlockPool
from giusto.core.latency import BatchShape
from giusto.core.pack import pack
from giusto.core.plan import (
    Caps,
    Grant,
    Limits,
    Plan,
    Preempt,
    PreemptHow,
    Refusal,
    Spec,
    StepOutcome,
    View,
    Want,
    Yield,
)
from giusto.core.queue import QueueLimits
from giusto.core.request import FinishReason, Reason, SamplingParams, Submission
from giusto.core.scheduler import Scheduler
from giusto.core.view import SchedulerView
from giusto.policies.base import Stateless
from harness import Drive, policy_named
from strategies import BLOCK


class Scripted(Stateless):
    """Carries out the next plan that the test wrote down, or serves all in order."""

    def __init__(self) -> None:
        self.next: Plan | None = None
        self.seen: list[object] = []

    def plan(self, view: View) -> Plan:
        plan, self.next = self.next, None
        order = (Want(r.id) for r in (*view.running, *view.waiting))
        return plan or pack(order, view, wake_at=view.now + 1)

    def observe(self, event: object) -> None:
        self.seen.append(event)


def make(
    num_blocks: int = 16,
    *,
    lookahead: int = 0,
    queue: QueueLimits | None = None,
    seqs: int = 8,
    trees: bool = False,
) -> Scheduler:
    return Scheduler(
        Scripted(),
        BlockPool(num_blocks, BLOCK),
        Limits(64, seqs, BLOCK),
        caps=Caps(lookahead=lookahead, token_trees=trees),
        queue_limits=queue or QueueLimits(),
        is_checking=True,
    )


def ask(name: str, prompt: int = 8, *, output: int = 8, n: int = 1, at: float = 0.0) -> Submission:
    """Distinct token ids per name, so that only equal names share a prefix."""
    first = 100 * ord(name[0])
    return Submission(
        name,
        at,
        prompt,
        prompt_ids=tuple(range(first, first + prompt)),
        sampling=SamplingParams(max_tokens=output),
        n=n,
    )


def commit(
    made: Scheduler,
    plan: Plan,
    *,
    ends: tuple[str, ...] = (),
    mid: tuple[str, ...] = (),
    at: float = 1.0,
) -> list[ev.Event]:
    """Land a plan: all grants but those of `mid` yield a token, those of `ends` the last one."""
    yields = {
        g.request_id: Yield()
        if g.request_id in mid
        else Yield((1,), finish=FinishReason.STOP if g.request_id in ends else None)
        for g in plan.grants
    }
    outcome = StepOutcome(plan.step, at - 0.1, at, BatchShape(), yields)
    events = made.commit(plan.step, outcome, at)
    made.check()
    return events


def ends_of(events: list[ev.Event]) -> list[tuple[str, str]]:
    return [(e.request_id, e.reason) for e in events if isinstance(e, ev.Finished | ev.Rejected)]


# Doors


def test_pool_and_limits_agree_on_blocks() -> None:
    """A scheduler over a pool of another block size cannot be built."""
    with pytest.raises(ValueError, match="disagree on the block size"):
        Scheduler(Scripted(), BlockPool(4, 8), Limits(64, 8, 16))


def test_an_id_in_use_is_an_error() -> None:
    """The second submission of an id changes nothing."""
    made = make()
    made.add(ask("a"), 0.0)
    with pytest.raises(ValueError, match="in use"):
        made.add(ask("a"), 1.0)
    assert made.num_waiting == 1


def test_an_id_stays_in_use_until_its_last_step_commits() -> None:
    """A request aborted in flight cannot be replaced by another before it is gone."""
    made = make()
    made.add(ask("a"), 0.0)
    plan = made.schedule(0.0)
    assert made.abort("a", 0.5)
    with pytest.raises(ValueError, match="in use"):
        made.add(ask("a"), 0.6)
    commit(made, plan)
    made.add(ask("a"), 2.0)
    assert made.num_waiting == 1


def test_a_full_line_refuses() -> None:
    """All samples of a submission are refused together, with a reason and a time to come back."""
    made = make(queue=QueueLimits(max_num_queued_reqs=2))
    made.add(ask("a"), 0.0)
    made.take_events()
    made.add(ask("b", n=2), 0.0)
    refused = [e for e in made.take_events() if isinstance(e, ev.Rejected)]
    assert {(e.request_id, e.reason) for e in refused} == {
        ("b", Reason.QUEUE_FULL),
        ("b#1", Reason.QUEUE_FULL),
    }
    assert all(e.retry_after for e in refused)
    assert list(made.requests) == ["a"]


def test_too_many_queued_tokens_refuse() -> None:
    """The line is bounded in prompt tokens too."""
    made = make(queue=QueueLimits(max_num_queued_tokens=10))
    made.add(ask("a"), 0.0)
    made.add(ask("b"), 0.0)
    assert ends_of(made.take_events()) == [("b", Reason.QUEUE_TOKENS_FULL)]
    assert made.num_queued_tokens == 8


def test_a_draining_scheduler_refuses_newcomers_and_finishes_the_rest() -> None:
    """SIGTERM lets in nobody and ends nobody."""
    made = make()
    made.add(ask("a"), 0.0)
    made.is_draining = True
    made.add(ask("b"), 0.0)
    assert ends_of(made.take_events()) == [("b", Reason.DRAINING)]
    assert ends_of(commit(made, made.schedule(0.0), ends=("a",))) == [("a", FinishReason.STOP)]
    assert not made.has_work


def test_what_cannot_fit_alone_is_refused() -> None:
    """A request whose longest possible run exceeds the pool never waits."""
    made = make(num_blocks=4)
    made.add(ask("a", 8, output=9), 0.0)
    made.add(ask("b", 8, output=8), 0.0)
    assert ends_of(made.take_events()) == [("a", Reason.TOO_LARGE)]
    assert list(made.requests) == ["b"]


def test_the_preempted_do_not_count_against_newcomers() -> None:
    """A line of one place is free for a newcomer while a preempted request waits."""
    made = make(queue=QueueLimits(max_num_queued_reqs=1))
    made.add(ask("a"), 0.0)
    commit(made, made.schedule(0.0))
    made.add(ask("b"), 0.0)
    commit(made, made.schedule(0.0))
    made.policy.next = Plan(2, (Grant("a", 1),), preempt=(Preempt("b"),))
    commit(made, made.schedule(0.0))
    made.add(ask("c"), 1.0)
    assert not ends_of(made.take_events())


# Steps


def test_one_request_from_arrival_to_end() -> None:
    """Events come in order, to the policy at once and to the driver when it asks."""
    made = make()
    made.add(ask("a", output=2), 0.0)
    first = commit(made, made.schedule(0.0), at=1.0)
    last = commit(made, made.schedule(1.0), at=2.0)
    names = [type(event).__name__ for event in first + last]
    assert names == ["Arrived", "Admitted", "Stepped", "Stepped", "Finished"]
    assert first + last == made.policy.seen
    assert ends_of(last) == [("a", FinishReason.LENGTH)]
    assert (made.has_work, made.pool.num_free) == (False, 16)


def test_plans_beyond_the_lookahead_are_refused() -> None:
    """A driver without lookahead has one plan out at a time; with one it has two."""
    for lookahead in (0, 1):
        made = make(lookahead=lookahead)
        made.add(ask("a"), 0.0)
        for _ in range(lookahead + 1):
            assert made.schedule(0.0).grants
        with pytest.raises(PlanError, match="in flight already"):
            made.schedule(0.0)


def test_steps_commit_in_order() -> None:
    """An outcome of another step than the oldest in flight is an error."""
    made = make(lookahead=1)
    with pytest.raises(PlanError, match="not the oldest"):
        made.commit(0, StepOutcome(0, 0.0, 1.0, BatchShape()), 1.0)
    made.add(ask("a"), 0.0)
    made.schedule(0.0)
    second = made.schedule(0.0)
    with pytest.raises(PlanError, match="not the oldest"):
        commit(made, second)


def test_a_pause_takes_no_step() -> None:
    """A plan without grants is not in flight and keeps its number."""
    made = make()
    made.add(ask("a"), 0.0)
    made.policy.next = Plan(0, wake_at=1.0)
    assert made.schedule(0.0).wake_at == 1.0
    assert made.schedule(0.0).step == 0


def test_a_second_step_may_run_on_the_token_in_flight() -> None:
    """With lookahead a request decodes in two steps at once; the surplus of its end is dropped."""
    made = make(lookahead=1)
    made.add(ask("a"), 0.0)
    first, second = made.schedule(0.0), made.schedule(0.0)
    assert [plan.grants for plan in (first, second)] == [(Grant("a", 8),), (Grant("a", 1),)]
    assert ends_of(commit(made, first, ends=("a",))) == [("a", FinishReason.STOP)]
    assert made.pool.num_free < 16
    assert not ends_of(commit(made, second))
    assert (made.has_work, made.pool.num_free) == (False, 16)


def test_unaccepted_nodes_give_their_blocks_back() -> None:
    """Blocks reserved for a tree return with the commit, beyond what was accepted."""
    made = make(trees=True)
    made.add(ask("a"), 0.0)
    commit(made, made.schedule(0.0))
    made.policy.next = Plan(1, (Grant("a", 1, Spec(max_nodes=8)),), node_budget=8)
    plan = made.schedule(0.0)
    assert made.pool.num_free == 16 - 5
    yields = {"a": Yield((1, 2, 3), drafted=8, selected=8, accepted=2)}
    made.commit(1, StepOutcome(1, 0.0, 1.0, BatchShape(), yields), 1.0)
    made.check()
    assert plan.node_budget == 8
    assert (made.requests["a"].num_computed_tokens, made.pool.num_free) == (11, 16 - 3)


def test_a_bad_plan_is_caught_under_check() -> None:
    """Each clause of the contract raises PlanError with the request's name."""
    made = make(num_blocks=8)
    made.add(ask("a"), 0.0)
    made.add(ask("b"), 0.0)
    commit(made, made.schedule(0.0))
    made.add(ask("c", 16), 0.0)
    grant = Grant("a", 1)
    bad = {
        "view for step": Plan(7, (grant,)),
        "granted twice": Plan(1, (grant, grant)),
        "exceed the budget": Plan(1, (grant,), node_budget=64),
        "unknown": Plan(1, (Grant("ghost", 1),)),
        "left to compute": Plan(1, (Grant("a", 2),)),
        "not resident": Plan(1, (grant,), preempt=(Preempt("c"),)),
        "pinned": Plan(1, (Grant("b", 1),), preempt=(Preempt("a"),)),
        "cannot refuse": Plan(1, (grant,), demote=(Refusal("ghost", Reason.DRAINING),)),
        "has sent a token": Plan(1, (grant,), reject=(Refusal("b", Reason.DRAINING),)),
        "blocks": Plan(1, (Grant("c", 16), grant, Grant("b", 1))),
        "not later": Plan(1, (), wake_at=0.0),
        "nothing is granted": Plan(1),
    }
    for message, plan in bad.items():
        made.policy.next = plan
        with pytest.raises(PlanError, match=message):
            made.schedule(0.0)
    made.limits = Limits(64, 2, BLOCK)
    made.policy.next = Plan(1, (Grant("c", 1),))
    with pytest.raises(PlanError, match="free slots"):
        made.schedule(0.0)


# Prefix hits


def test_a_prefix_is_computed_once() -> None:
    """A second request with the same prompt starts behind the shared full blocks."""
    made = make()
    made.add(ask("a", 10), 0.0)
    commit(made, made.schedule(0.0))
    made.add(ask("aa", 10), 1.0)
    plan = made.schedule(1.0)
    assert plan.grants == (Grant("a", 1), Grant("aa", 2))
    admitted = [e for e in commit(made, plan) if isinstance(e, ev.Admitted)]
    assert [e.cached_tokens for e in admitted] == [8]
    assert made.requests["aa"].blocks[:2] == made.requests["a"].blocks[:2]


def test_the_last_token_is_always_computed() -> None:
    """A prompt that is cached whole still computes its last block: a step must yield a token."""
    made = make()
    made.add(ask("a", 8), 0.0)
    commit(made, made.schedule(0.0), ends=("a",))
    made.add(ask("a", 8), 1.0)
    assert made.schedule(1.0).grants == (Grant("a", 4),)


def test_two_hits_on_one_free_prefix_cost_it_once_at_most() -> None:
    """Both are charged the revived block, applying the plan needs it once."""
    made = make(num_blocks=6)
    made.add(ask("a", 5), 0.0)
    commit(made, made.schedule(0.0), ends=("a",))
    for name in ("aa", "ab"):
        made.add(ask(name, 6), 1.0)
    view = made.view(1.0)
    assert [view.cost(name, 2).revived for name in ("aa", "ab")] == [1, 1]
    made.schedule(1.0)
    assert made.pool.num_free == 6 - 3


def test_a_hit_held_by_a_victim_is_not_counted_as_freed() -> None:
    """A plan that preempts the holder of a shared prefix still finds all blocks it needs."""
    made = make(num_blocks=6)
    for name in ("z", "a"):
        made.add(ask(name), 0.0)
    commit(made, made.schedule(0.0))
    made.add(ask("ab", 16), 0.0)
    order = [Want("ab"), Want("z")]
    made.policy.next = pack(order, made.view(0.0))
    plan = made.schedule(0.0)
    made.check()
    assert (plan.grants, plan.preempt) == ((Grant("ab", 8),), ())


# Preemption


def test_a_preempted_request_goes_back_and_comes_again() -> None:
    """It keeps its tokens, loses its blocks, and resumes on what is still cached of them."""
    made = make()
    for name in "ab":
        made.add(ask(name), 0.0)
    commit(made, made.schedule(0.0))
    made.policy.next = Plan(1, (Grant("a", 1),), preempt=(Preempt("b"),))
    events = commit(made, made.schedule(0.0))
    assert [e.request_id for e in events if isinstance(e, ev.Preempted)] == ["b"]
    b = made.requests["b"]
    assert (b.num_tokens, b.num_computed_tokens, b.num_preemptions) == (9, 0, 1)
    plan = made.schedule(1.0)
    assert plan.grants[1] == Grant("b", 1)
    resumed = [e for e in commit(made, plan) if isinstance(e, ev.Resumed)]
    assert [(e.request_id, e.cached_tokens) for e in resumed] == [("b", 8)]


@pytest.mark.parametrize("lookahead", [0, 1])
def test_a_preemption_in_flight_waits_for_the_last_commit(lookahead: int) -> None:
    """Its blocks are being written: it keeps its token, gets no other, and then goes."""
    made = make(lookahead=1)
    for name in "ab":
        made.add(ask(name), 0.0)
    flying = [made.schedule(0.0) for _ in range(lookahead)]
    first = made.schedule(0.0)
    made.policy.next = Plan(lookahead + 1, (Grant("a", 1),), preempt=(Preempt("b"),))
    if lookahead:
        commit(made, flying[0])
    second = made.schedule(0.0)
    b = made.requests["b"]
    assert (b.num_remaining_tokens, b.resident_since) == (0, 0.0)
    events = commit(made, first)
    assert [e.request_id for e in events if isinstance(e, ev.Preempted)] == ["b"]
    assert (b.num_output_tokens, b.resident_since, b.blocks) == (lookahead + 1, None, [])
    commit(made, second)
    assert "b" in [grant.request_id for grant in made.schedule(1.0).grants]


def test_two_steps_in_flight_hold_back_a_preemption() -> None:
    """The first of them to commit changes nothing."""
    made = make(lookahead=1)
    for name in "ab":
        made.add(ask(name), 0.0)
    commit(made, made.schedule(0.0))
    flying = [made.schedule(0.0), made.schedule(0.0)]
    made._preempt(made.requests["b"], 0.5)
    commit(made, flying[0])
    assert made.requests["b"].resident_since is not None
    events = commit(made, flying[1])
    assert [type(e) for e in events] == [ev.Stepped, ev.Preempted]


@pytest.mark.parametrize("how", ["ends", "aborts"])
def test_an_end_overtakes_a_preemption_in_flight(how: str) -> None:
    """Who ends or is cancelled while it is about to be preempted ends once and frees all."""
    made = make(lookahead=1)
    for name in "ab":
        made.add(ask(name), 0.0)
    flying = made.schedule(0.0)
    made.policy.next = Plan(1, (Grant("a", 1),), preempt=(Preempt("b"),))
    second = made.schedule(0.0)
    if how == "aborts":
        made.abort("b", 0.5)
    events = commit(made, flying, ends=("b",)) + commit(made, second, ends=("a",))
    assert not [e for e in events if isinstance(e, ev.Preempted)]
    assert [name for name, _ in ends_of(events)] == ["b", "a"]
    assert (made.has_work, made.pool.num_free) == (False, 16)


# Aborts


def test_aborting_the_unknown_is_no_error() -> None:
    """A cancel that comes too late says so."""
    made = make()
    assert not made.abort("ghost", 0.0)


def test_an_abort_of_a_waiting_request_ends_it_at_once() -> None:
    """Nothing is held and nothing remains."""
    made = make()
    made.add(ask("a"), 0.0)
    assert made.abort("a", 0.5)
    assert not made.abort("a", 0.6)
    assert ends_of(made.take_events()) == [("a", FinishReason.ABORT)]
    made.check()
    assert not made.has_work


def test_an_abort_between_steps_frees_at_once() -> None:
    """A resident that is not in flight gives its blocks back immediately."""
    made = make()
    made.add(ask("a"), 0.0)
    commit(made, made.schedule(0.0))
    made.abort("a", 1.5)
    made.check()
    assert (made.has_work, made.pool.num_free) == (False, 16)


@pytest.mark.parametrize("lookahead", [0, 1])
def test_an_abort_in_flight_frees_with_the_last_commit(lookahead: int) -> None:
    """The end is told at once, once; the blocks follow when no step in flight writes them."""
    made = make(lookahead=lookahead)
    made.add(ask("a"), 0.0)
    plans = [made.schedule(0.0) for _ in range(lookahead + 1)]
    made.abort("a", 0.5)
    assert ends_of(made.take_events()) == [("a", FinishReason.ABORT)]
    for plan in plans:
        assert made.pool.num_free < 16
        assert not ends_of(commit(made, plan, ends=("a",)))
    assert (made.has_work, made.pool.num_free) == (False, 16)


# Siblings


def test_siblings_start_when_the_prompt_is_computed_and_share_it() -> None:
    """The leader computes the prompt once; the others compute no more than its last block."""
    made = make()
    made.add(ask("a", 9, n=3), 0.0)
    plan = made.schedule(0.0)
    assert (plan.grants, made.num_waiting) == ((Grant("a", 9),), 0)
    commit(made, plan)
    plan = made.schedule(1.0)
    assert plan.grants == (Grant("a", 1), Grant("a#1", 1), Grant("a#2", 1))
    blocks = [made.requests[name].blocks for name in ("a", "a#1", "a#2")]
    assert blocks[0][:2] == blocks[1][:2] == blocks[2][:2]
    commit(made, plan, ends=("a", "a#1", "a#2"))
    assert (made.has_work, made.pool.num_free) == (False, 16)


def test_siblings_wait_for_a_chunked_prompt() -> None:
    """A leader in mid-prompt releases nobody."""
    made = make()
    made.limits = Limits(4, 8, BLOCK)
    made.add(ask("a", 8, n=2), 0.0)
    commit(made, made.schedule(0.0), mid=("a",))
    assert made.num_waiting == 0
    commit(made, made.schedule(0.0))
    assert made.num_waiting == 1


def test_one_abort_ends_all_samples() -> None:
    """Whether resident, waiting or held back, each ends once."""
    for steps in (0, 1, 2):
        made = make()
        made.add(ask("a", n=3), 0.0)
        for _ in range(steps):
            commit(made, made.schedule(0.0))
        made.take_events()
        made.abort("a", 5.0)
        assert sorted(ends_of(made.take_events())) == [
            (name, FinishReason.ABORT) for name in ("a", "a#1", "a#2")
        ]
        made.check()
        assert (made.has_work, made.pool.num_free) == (False, 16)


def test_a_leader_that_ends_with_its_first_token_releases_its_siblings() -> None:
    """They are not lost with it."""
    made = make()
    made.add(ask("a", n=2), 0.0)
    commit(made, made.schedule(0.0), ends=("a",))
    plan = made.schedule(1.0)
    assert plan.grants == (Grant("a#1", 4),)
    assert ends_of(commit(made, plan, ends=("a#1",))) == [("a#1", FinishReason.STOP)]
    assert not made.has_work


# Refusing and demoting by plan


def test_a_plan_may_shed_who_has_sent_nothing() -> None:
    """All samples of a waiting or resident submission are refused, with what the client is told."""
    made = make()
    made.add(ask("a", 20, n=2), 0.0)
    made.add(ask("b"), 0.0)
    commit(made, made.schedule(0.0), mid=("a",))
    made.add(ask("c"), 0.0)
    refusals = (
        Refusal("a", Reason.DEADLINE_UNREACHABLE, 2.0),
        Refusal("c", Reason.DEADLINE_PASSED),
    )
    made.policy.next = Plan(1, (Grant("b", 1),), reject=refusals)
    events = commit(made, made.schedule(0.0))
    assert sorted(ends_of(events)) == [
        ("a", Reason.DEADLINE_UNREACHABLE),
        ("a#1", Reason.DEADLINE_UNREACHABLE),
        ("c", Reason.DEADLINE_PASSED),
    ]
    assert {e.retry_after for e in events if isinstance(e, ev.Rejected)} == {2.0, None}
    assert list(made.requests) == ["b"]


def test_a_sample_is_not_shed_once_a_sibling_has_sent_a_token() -> None:
    """The answer has begun for all samples; before that they go together, however often named."""
    made = make()
    made.add(ask("a", n=2), 0.0)
    commit(made, made.schedule(0.0))
    assert made.requests["a#1"].has_begun
    made.policy.next = Plan(1, (Grant("a", 1),), reject=(Refusal("a#1", Reason.DRAINING),))
    with pytest.raises(PlanError, match="demoted, not shed"):
        made.schedule(1.0)
    made = make()
    made.add(ask("b", n=2), 0.0)
    made.is_checking = False
    made.policy.next = Plan(
        0, reject=tuple(Refusal(f"b{end}", Reason.DRAINING) for end in ("", "#1"))
    )
    made.schedule(0.0)
    assert sorted(name for name, _ in ends_of(made.take_events())) == ["b", "b#1"]
    assert not made.has_work


def test_nothing_of_a_shed_submission_is_granted() -> None:
    """A plan cannot shed one sample and serve another."""
    made = make()
    made.add(ask("a", n=2), 0.0)
    commit(made, made.schedule(0.0), mid=("a",))
    made.policy.next = Plan(1, (Grant("a", 1),), reject=(Refusal("a", Reason.DRAINING),))
    with pytest.raises(PlanError, match="refused"):
        made.schedule(1.0)


def test_a_plan_asks_for_nothing_that_the_driver_lacks() -> None:
    """Swapping and speculating need a driver that can."""
    for asked, plan in {
        "swap": Plan(1, preempt=(Preempt("b", PreemptHow.SWAP),), grants=(Grant("a", 1),)),
        "token trees": Plan(1, (Grant("a", 1, Spec(max_nodes=2)),), node_budget=2),
    }.items():
        made = make()
        for name in "ab":
            made.add(ask(name), 0.0)
        commit(made, made.schedule(0.0))
        made.policy.next = plan
        with pytest.raises(PlanError, match=asked):
            made.schedule(1.0)


def test_a_stream_that_has_sent_a_token_is_demoted_not_shed() -> None:
    """It goes on to a normal end without its promise; shedding it would be a bug."""
    made = make()
    made.add(ask("a"), 0.0)
    commit(made, made.schedule(0.0))
    made.policy.next = Plan(1, (Grant("a", 1),), demote=(Refusal("a", Reason.DEADLINE_PASSED),))
    events = commit(made, made.schedule(1.0), ends=("a",))
    demoted = [e for e in events if isinstance(e, ev.Demoted)]
    assert [(e.request_id, e.reason) for e in demoted] == [("a", Reason.DEADLINE_PASSED)]
    assert ends_of(events) == [("a", FinishReason.STOP)]
    made.add(ask("b"), 2.0)
    commit(made, made.schedule(2.0))
    made.is_checking = False
    made.policy.next = Plan(3, reject=(Refusal("b", Reason.DRAINING),))
    with pytest.raises(PlanError, match="demoted, not shed"):
        made.schedule(3.0)


# Asking


def test_the_view_shows_what_blocks_a_grant_takes() -> None:
    """Held, freeable and cost agree with the pool, for residents and for who waits."""
    made = make()
    made.add(ask("a", 10), 0.0)
    commit(made, made.schedule(0.0))
    made.add(ask("aa", 10), 1.0)
    view = made.view(1.0)
    assert isinstance(view, SchedulerView)
    assert (view.held("a"), view.freeable("a"), view.free_blocks) == (3, 3, 13)
    assert (view.cost("a", 2).total, view.cost("a", 3).total) == (0, 1)
    cost = view.cost("aa", 2)
    assert (cost.fresh, cost.revived, cost.sole, cost.cached_tokens) == (1, 0, 2, 8)
    assert (view.free_slots, view.program("p"), view.request("aa").id) == (7, None, "aa")
    plan = made.schedule(1.0)
    assert made.view(1.0).freeable("a") == 0
    commit(made, plan)
    assert made.view(1.0).freeable("a") == 1


def test_estimates_reach_the_policy() -> None:
    """`inform` is the one event that comes from outside."""
    made = make()
    told = []
    made.subscribe(told.append)
    event = ev.Estimated("a", (12.0,), 1.0)
    made.inform(event)
    assert told == [event] == made.policy.seen


def test_a_run_in_virtual_time_is_repeatable() -> None:
    """The same load gives the same plans twice."""

    def plans() -> list[Plan]:
        asks = [ask(name, 20, at=i / 10) for i, name in enumerate("abcdef")]
        run = Drive.of(policy_named("fcfs")[0], dict.fromkeys("abcdef", 5), num_blocks=20)
        run.run(asks)
        return run.plans

    assert plans() == plans()
