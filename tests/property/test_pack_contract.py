"""Whatever the view and the order, `pack` keeps the contract of a plan."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from giusto.core.pack import PreemptFor, pack
from giusto.core.plan import Plan, Refusal, check
from giusto.core.request import Reason
from strategies import BLOCK, Hit, LiteralView, budgets, literal_views, orders

MANY = settings(max_examples=150)


@st.composite
def packed(draw: st.DrawFn) -> tuple[LiteralView, Plan]:
    """A view and what `pack` makes of a drawn order under drawn budgets."""
    view = draw(literal_views())
    budget = draw(budgets)
    fresh = [r.id for r in (*view.running, *view.waiting) if not r.num_output_tokens]
    shed = draw(st.lists(st.sampled_from(fresh), unique=True, max_size=2)) if fresh else []
    plan = pack(
        draw(orders(view)),
        view,
        budget=budget,
        preempt_for=draw(st.sampled_from(PreemptFor)),
        reject=[Refusal(name, Reason.DEADLINE_UNREACHABLE) for name in shed],
        wake_at=draw(st.none() | st.just(view.now + 1)),
    )
    return view, plan


def remaining(view: LiteralView, request_id: str) -> int:
    """Tokens a request has left to compute, its prefix hit deducted."""
    hit = view.hits.get(request_id, Hit())
    return view.request(request_id).num_remaining_tokens - hit.blocks * BLOCK


@MANY
@given(packed())
def test_a_packed_plan_keeps_its_contract(case: tuple[LiteralView, Plan]) -> None:
    """`check` passes: budgets, blocks, slots, the pin, and who may be granted or refused."""
    view, plan = case
    if plan.grants or plan.wake_at:
        check(plan, view)


@MANY
@given(st.data())
def test_budgets_bound_what_is_granted(data: st.DataObject) -> None:
    """Tokens, prompt tokens and nodes stay within the budget; an overdue pin may add a block."""
    view = data.draw(literal_views())
    budget = data.draw(budgets)
    plan = pack(data.draw(orders(view)), view, budget=budget, wake_at=view.now + 1)
    limit = view.limits.max_num_batched_tokens - budget.node_budget
    assert plan.num_tokens <= max(0, min(limit, budget.max_tokens or limit))
    assert plan.node_budget <= budget.node_budget
    assert plan.node_budget <= sum(g.spec.max_nodes for g in plan.grants if g.spec)
    if budget.max_prefill_tokens is not None:
        prompts = [g for g in plan.grants if remaining(view, g.request_id) > 1]
        prefill = sum(grant.num_tokens for grant in prompts)
        assert prefill <= max(budget.max_prefill_tokens, BLOCK)


@MANY
@given(st.data())
def test_nobody_is_preempted_where_nobody_may(data: st.DataObject) -> None:
    """Under NOBODY no plan preempts; the pin is spared under every rule."""
    view = data.draw(literal_views())
    order = data.draw(orders(view))
    assert not pack(order, view, preempt_for=PreemptFor.NOBODY, wake_at=view.now + 1).preempt
    for rule in PreemptFor:
        plan = pack(order, view, preempt_for=rule)
        assert view.pin is None or view.pin.request_id not in {p.request_id for p in plan.preempt}


@MANY
@given(st.data())
def test_a_preemption_is_for_somebody(data: st.DataObject) -> None:
    """Who preempts is granted, nobody in flight loses its blocks, and each victim frees some."""
    view = data.draw(literal_views())
    plan = pack(data.draw(orders(view)), view, preempt_for=data.draw(st.sampled_from(PreemptFor)))
    assert not plan.preempt or plan.grants
    assert all(view.freeable(p.request_id) > 0 for p in plan.preempt)


@MANY
@given(literal_views(), st.data())
def test_uncut_prompts_are_granted_whole(view: LiteralView, data: st.DataObject) -> None:
    """Without chunking all grants but the first are whole, unless the policy itself cut them."""
    budget = data.draw(budgets.filter(lambda budget: not budget.chunk))
    wants = [want for want in data.draw(orders(view)) if want.max_tokens is None]
    plan = pack(wants, view, budget=budget, wake_at=view.now + 1)
    for grant in plan.grants[1:]:
        assert remaining(view, grant.request_id) == grant.num_tokens


@MANY
@given(st.data())
def test_something_is_always_served(data: st.DataObject) -> None:
    """Without `wake_at`, an idle machine with room serves somebody, whatever the order."""
    view = data.draw(literal_views())
    plan = pack(data.draw(orders(view)), view, budget=data.draw(budgets))
    runnable = any(
        r.num_remaining_tokens
        and (r.resident_since is not None or (not view.running and view.free_slots))
        for r in (*view.running, *view.waiting)
    )
    in_flight = any(r.num_in_flight_tokens for r in view.running)
    if runnable and not in_flight and view.free_blocks > 16 + BLOCK:
        assert plan.grants


@MANY
@given(st.data())
def test_the_order_of_admission_is_the_order_of_wants(data: st.DataObject) -> None:
    """A waiting request is admitted only if all wanted before it were: small ones do not pass."""
    view = data.draw(literal_views())
    wants = data.draw(orders(view))
    plan = pack(wants, view, wake_at=view.now + 1, preempt_for=PreemptFor.NOBODY)
    line = [w.request_id for w in wants if view.request(w.request_id).resident_since is None]
    admitted = [g.request_id for g in plan.grants if g.request_id in line]
    assert line[: len(admitted)] == admitted
