"""`pack`, rule by rule, on literal views with blocks of four tokens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from giusto.core.pack import Budget, PreemptFor, pack
from giusto.core.plan import Grant, Limits, Pin, Plan, Preempt, Refusal, Spec, Want, check
from giusto.core.request import Reason
from strategies import Hit, LiteralView, decoding, request


def wants(*names: str) -> list[Want]:
    return [Want(name) for name in names]


def grants(plan: Plan) -> list[tuple[str, int]]:
    return [(grant.request_id, grant.num_tokens) for grant in plan.grants]


def test_grants_follow_the_order() -> None:
    """Each request gets all it can use, in the policy's order."""
    view = LiteralView([decoding("a"), request("b", 20, computed=8)], [request("c", 6)])
    plan = pack(wants("b", "c", "a"), view)
    assert grants(plan) == [("b", 12), ("c", 6), ("a", 1)]
    check(plan, view)


def test_a_long_prompt_is_cut_to_the_budget() -> None:
    """What is left of the step goes to the first part of the prompt."""
    view = LiteralView([decoding("a")], [request("b", 100)])
    assert grants(pack(wants("a", "b"), view)) == [("a", 1), ("b", 63)]


def test_a_policy_may_spend_less() -> None:
    """`max_tokens` of the budget bounds the step, that of a want bounds one request."""
    view = LiteralView([decoding("a")], [request("b", 100)])
    plan = pack([Want("b", 5), Want("a")], view, budget=Budget(max_tokens=6))
    assert grants(plan) == [("b", 5), ("a", 1)]


def test_prompts_have_a_budget_of_their_own() -> None:
    """Decodes behind a prompt that used up the prompt budget are still served."""
    view = LiteralView([decoding("a")], [request("b", 30), request("c", 30)])
    plan = pack(wants("b", "c", "a"), view, budget=Budget(max_prefill_tokens=32))
    assert grants(plan) == [("b", 30), ("c", 2), ("a", 1)]


def test_one_token_of_a_prompt_is_prompt_too() -> None:
    """A budget of one prompt token admits one prompt, however many wait."""
    view = LiteralView([decoding("a")], [request("b", 30), request("c", 30)])
    plan = pack(wants("b", "c", "a"), view, budget=Budget(max_prefill_tokens=1))
    assert grants(plan) == [("b", 1), ("a", 1)]


def test_without_chunks_a_prompt_waits_until_it_fits_whole() -> None:
    """An uncut prompt that the rest of the step cannot hold is left for the next one."""
    view = LiteralView([decoding("a")], [request("b", 64)])
    assert grants(pack(wants("a", "b"), view, budget=Budget(chunk=False))) == [("a", 1)]
    assert grants(pack(wants("b", "a"), view, budget=Budget(chunk=False))) == [("b", 64)]


def test_without_chunks_a_prompt_beyond_the_budget_is_cut_all_the_same() -> None:
    """A prompt longer than any step takes the whole of an empty one."""
    view = LiteralView([], [request("b", 100)])
    assert grants(pack(wants("b"), view, budget=Budget(chunk=False))) == [("b", 64)]


def test_a_prefix_hit_is_not_granted_again() -> None:
    """A waiting request is granted the tokens behind its cached prefix."""
    view = LiteralView([], [request("a", 20)], free_blocks=5, hits={"a": Hit(3, 3)})
    plan = pack(wants("a"), view)
    assert grants(plan) == [("a", 8)]
    check(plan, view)


def test_a_revived_hit_costs_a_free_block() -> None:
    """Cached blocks that nobody holds are free no longer once they are used."""
    view = LiteralView([], [request("a", 20)], free_blocks=4, hits={"a": Hit(3, 3)})
    view.running = [decoding("z")]
    assert grants(pack(wants("a", "z"), view)) == [("z", 1)]


def test_the_first_that_does_not_fit_ends_admission() -> None:
    """A small request does not pass a large one that waits for room."""
    view = LiteralView([decoding("a")], [request("big", 40), request("small", 4)], 3)
    assert grants(pack(wants("a", "big", "small"), view)) == [("a", 1)]
    assert grants(pack(wants("a", "small", "big"), view)) == [("a", 1), ("small", 4)]


def test_slots_bound_the_residents() -> None:
    """With all slots taken nobody is admitted, though memory is free, nor is a prefix looked up."""
    view = LiteralView([decoding("a")], [request("b")], limits=Limits(64, 1, 4))
    assert grants(pack(wants("b", "a"), view)) == [("a", 1)]
    assert "b" not in view.asked


def test_a_resident_without_room_takes_it_from_the_last_wanted() -> None:
    """The least wanted resident goes, and nobody is admitted in that step."""
    view = LiteralView(
        [decoding("a"), decoding("b"), decoding("c", 9)], [request("d", 1)], free_blocks=0
    )
    plan = pack(wants("a", "b", "c", "d"), view)
    assert grants(plan) == [("a", 1), ("b", 1)]
    assert plan.preempt == (Preempt("c"),)
    check(plan, view)


def test_the_unwanted_lose_their_blocks_first_and_the_youngest_of_them() -> None:
    """A resident that is not in the order goes before the tail of the order."""
    view = LiteralView([decoding(name) for name in "abcd"], free_blocks=0)
    assert pack(wants("a", "b"), view).preempt == (Preempt("d"),)


def test_preemption_is_all_or_nothing() -> None:
    """Nobody is evicted when even all victims together would not make enough room."""
    view = LiteralView([request("a", 60, computed=4), decoding("b"), decoding("c")], free_blocks=1)
    plan = pack(wants("a", "b", "c"), view)
    assert not plan.preempt
    assert grants(plan) == [("b", 1)]


def test_the_pin_is_never_preempted() -> None:
    """The oldest resident keeps its blocks even as the least wanted."""
    view = LiteralView([decoding("a"), decoding("b"), decoding("c")], free_blocks=0)
    view.pin = Pin("a", is_overdue=False)
    assert pack(wants("b", "c", "a"), view).preempt == (Preempt("c"),)
    assert pack(wants("b", "c"), view).preempt == (Preempt("c"),)


def test_a_resident_in_flight_is_not_preempted() -> None:
    """Its blocks are being written."""
    view = LiteralView([decoding("a"), request("b", 8, computed=4, in_flight=4)], free_blocks=0)
    assert not pack(wants("a", "b"), view).preempt


def test_an_overdue_pin_goes_first() -> None:
    """It is served before the order, whatever the order says and whatever prompts may spend."""
    view = LiteralView([request("a", 60, computed=4), decoding("b")])
    view.pin = Pin("a", is_overdue=True)
    assert grants(pack(wants("b", "a"), view)) == [("a", 56), ("b", 1)]
    assert grants(pack(wants("b"), view)) == [("a", 4), ("b", 1)]
    plan = pack(wants("b", "a"), view, budget=Budget(max_prefill_tokens=0))
    assert grants(plan) == [("a", 4), ("b", 1)]


def test_a_want_of_nothing_skips_the_step() -> None:
    """The resident gets no token and keeps its blocks."""
    view = LiteralView([decoding("a"), decoding("b")])
    plan = pack([Want("a", 0), Want("b")], view)
    assert grants(plan) == [("b", 1)]
    assert plan.preempt == ()


def test_a_want_of_nothing_is_not_the_first_to_lose_its_blocks() -> None:
    """Who is not wanted at all loses them before it."""
    view = LiteralView(
        [decoding("grows", 8), decoding("skips", 8), decoding("unwanted", 8)], free_blocks=0
    )
    plan = pack([Want("grows"), Want("skips", 0)], view)
    assert grants(plan) == [("grows", 1)]
    assert plan.preempt == (Preempt("unwanted"),)


def test_an_overdue_pin_is_served_though_it_was_to_get_nothing() -> None:
    """Otherwise a policy that pauses it for ever would stop it for ever."""
    view = LiteralView([decoding("a"), decoding("b")])
    view.pin = Pin("a", is_overdue=True)
    assert grants(pack([Want("b"), Want("a", 0)], view)) == [("a", 1), ("b", 1)]


def test_a_pin_that_is_not_overdue_has_no_right_of_way() -> None:
    """It may be paused like anybody else."""
    view = LiteralView([decoding("a"), decoding("b")])
    view.pin = Pin("a", is_overdue=False)
    assert grants(pack(wants("b"), view)) == [("b", 1)]


def test_an_empty_order_serves_the_pin_rather_than_nothing() -> None:
    """A policy that wants nobody and no pause does not stall the machine."""
    view = LiteralView([decoding("a")], [request("b")])
    view.pin = Pin("a", is_overdue=False)
    assert grants(pack([], view))[0] == ("a", 1)


def test_an_empty_order_admits_the_first_in_line_rather_than_nothing() -> None:
    """Where nobody is resident the earliest arrival is served, a block's worth."""
    view = LiteralView([], [request("a", 20), request("b")])
    assert grants(pack([], view)) == [("a", 4)]


def test_budgets_that_leave_nothing_do_not_stall() -> None:
    """A prompt alone is served even when prompts may spend nothing."""
    view = LiteralView([], [request("a", 20)])
    assert grants(pack(wants("a"), view, budget=Budget(max_prefill_tokens=0))) == [("a", 4)]
    assert grants(pack(wants("a"), view, budget=Budget(node_budget=64))) == [("a", 4)]


def test_a_pause_is_kept() -> None:
    """With `wake_at` an empty order grants nothing."""
    view = LiteralView([decoding("a")])
    view.pin = Pin("a", is_overdue=False)
    plan = pack([], view, wake_at=11.0)
    assert (plan.grants, plan.wake_at) == ((), 11.0)
    check(plan, view)


def test_wake_at_is_dropped_when_something_is_granted() -> None:
    """A step that runs needs no alarm."""
    view = LiteralView([decoding("a")])
    assert pack(wants("a"), view, wake_at=11.0).wake_at is None


def test_nothing_is_forced_while_a_step_is_in_flight() -> None:
    """With work out uncommitted, an empty order is no stall."""
    view = LiteralView([request("a", 8, in_flight=8), decoding("b")])
    view.pin = Pin("b", is_overdue=False)
    assert not pack([], view).grants


def test_a_waiting_request_evicts_only_when_anybody_may() -> None:
    """By default only residents evict; under ANYBODY the head of the order does, with a slot."""
    view = LiteralView([decoding("a"), decoding("b")], [request("c", 8)], free_blocks=0)
    view.limits = Limits(64, 2, 4)
    view.pin = Pin("a", is_overdue=False)
    assert not pack(wants("c"), view, wake_at=11.0).grants
    plan = pack(wants("c", "a", "b"), view, preempt_for=PreemptFor.ANYBODY)
    assert plan.preempt == (Preempt("b"),)
    assert grants(plan) == [("c", 8)]
    check(plan, view)


def test_nobody_evicts_when_nobody_may() -> None:
    """A resident without room waits under NOBODY."""
    view = LiteralView([decoding("a"), decoding("b", 9)], free_blocks=0)
    plan = pack(wants("a", "b"), view, preempt_for=PreemptFor.NOBODY)
    assert (grants(plan), plan.preempt) == ([("b", 1)], ())


def test_a_stall_is_worse_than_an_eviction() -> None:
    """When no resident has room to go on, the pin takes it, even where nobody may evict."""
    view = LiteralView([decoding("a"), decoding("b")], free_blocks=0)
    view.pin = Pin("a", is_overdue=False)
    plan = pack(wants("b", "a"), view, preempt_for=PreemptFor.NOBODY)
    assert (grants(plan), plan.preempt) == ([("a", 1)], (Preempt("b"),))


def test_a_lent_hit_is_paid_for_when_its_holder_may_go() -> None:
    """Blocks shared with a victim are not freed by evicting it, so they are not counted."""
    running = [decoding("a", 12), decoding("v", 8)]
    view = LiteralView(running, [request("w", 10)], free_blocks=1)
    view.hits = {"w": Hit(2, unheld=0, sole=2)}
    plan = pack(wants("w", "a", "v"), view)
    check(plan, view)
    assert (grants(plan), plan.preempt) == ([("w", 2)], ())
    view.running = [decoding("a", 12), decoding("v", 9)]
    plan = pack(wants("w", "a", "v"), view)
    check(plan, view)
    assert (grants(plan), plan.preempt) == ([("w", 2), ("a", 1)], (Preempt("v"),))


def test_refused_residents_make_room_and_are_not_granted() -> None:
    """Shedding a resident that sent nothing frees its blocks for this very step."""
    view = LiteralView([request("a", 20, computed=16)], [request("b", 16)], free_blocks=0)
    refusal = Refusal("a", Reason.DEADLINE_UNREACHABLE)
    plan = pack(wants("a", "b"), view, reject=[refusal])
    assert (grants(plan), plan.reject) == ([("b", 16)], (refusal,))
    check(plan, view)


def test_refused_waiting_requests_do_not_block_the_line() -> None:
    """Who is shed does not end admission."""
    view = LiteralView([], [request("a", 40), request("b", 4)], free_blocks=1)
    plan = pack(wants("a", "b"), view, reject=[Refusal("a", Reason.DEADLINE_PASSED)])
    assert grants(plan) == [("b", 4)]


def test_nodes_share_one_budget_with_tokens() -> None:
    """Σ tokens + nodes stay within the step; ceilings are capped in sum by the node budget."""
    spec = Spec(max_nodes=6, depth=3)
    view = LiteralView([decoding("a"), decoding("b")], [request("c", 100)])
    order = [Want("a", spec=spec), Want("b", spec=spec), Want("c")]
    plan = pack(order, view, budget=Budget(node_budget=8))
    assert plan.grants == (Grant("a", 1, spec), Grant("b", 1, spec), Grant("c", 54))
    assert plan.node_budget == 8
    check(plan, view)


def test_only_wanted_nodes_are_budgeted() -> None:
    """A node budget that nobody can use is handed back."""
    view = LiteralView([decoding("a")])
    plan = pack([Want("a", spec=Spec(max_nodes=2))], view, budget=Budget(node_budget=8))
    assert plan.node_budget == 2


def test_blocks_are_reserved_for_nodes() -> None:
    """A request without room for its draft tree is not granted."""
    view = LiteralView([decoding("a")], free_blocks=1)
    order = [Want("a", spec=Spec(max_nodes=8))]
    assert not pack(order, view, budget=Budget(node_budget=8), wake_at=11.0).grants
    assert pack(order, view, budget=Budget(node_budget=3)).grants


def test_the_order_is_read_no_further_than_needed() -> None:
    """Once the tokens are spent, or admission has ended and all residents are served, it stops."""
    read: list[str] = []

    def order(*names: str) -> Iterator[Want]:
        for name in names:
            read.append(name)
            yield Want(name)

    waiting = [request(name, 40) for name in "wxyz"]
    pack(order("a", "w", "x", "y", "z"), LiteralView([decoding("a")], waiting, 3))
    assert read == ["a", "w"]
    read.clear()
    pack(order("w", "x", "y", "z"), LiteralView([], waiting))
    assert read == ["w", "x"]


def test_a_request_wanted_twice_is_granted_once() -> None:
    """The first mention counts."""
    view = LiteralView([decoding("a"), decoding("b")], free_blocks=2)
    assert grants(pack(wants("a", "a", "b"), view)) == [("a", 1), ("b", 1)]


def test_who_has_nothing_to_compute_is_passed_over() -> None:
    """A resident whose next token is in flight gets no grant."""
    done = request("a", 8, computed=8, output=1, max_tokens=1)
    view = LiteralView([done, decoding("b")], [])
    assert grants(pack(wants("a", "b"), view)) == [("b", 1)]


def test_an_unknown_want_is_an_error() -> None:
    """A policy that wants a request that is not there has a bug."""
    with pytest.raises(KeyError):
        pack(wants("ghost"), LiteralView([decoding("a")]))
