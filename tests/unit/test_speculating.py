"""Speculation beside a policy: with what its plan leaves, and never at its cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from giusto.core.errors import ConfigError
from giusto.core.latency import LinearLatency, terms
from giusto.core.pack import pack, speculate
from giusto.core.plan import Caps, Grant, Limits, Plan, Spec, Want, check
from giusto.core.slo import BestEffort, Deadline, Progress, Streaming, owed
from giusto.policies.speculating import Speculating
from giusto.spec import modes
from strategies import LiteralView, decoding, literal_views, orders, request

SPEC = Spec(max_nodes=6, depth=3, width=2)
TREES = Caps(token_trees=True)


def specs(*names: str, spec: Spec = SPEC) -> list[tuple[str, Spec]]:
    return [(name, spec) for name in names]


def seeing(view: LiteralView) -> LiteralView:
    view.caps = TREES
    return view


def plan_of(view: LiteralView, *names: str) -> Plan:
    return pack([Want(name) for name in names], view)


# speculate


def test_nodes_take_what_the_plan_leaves():
    """Tokens that no certain work wants become nodes, in the order that is given."""
    view = seeing(LiteralView([decoding("a"), decoding("b")], limits=Limits(10, 8, 4)))
    plan = speculate(plan_of(view, "a", "b"), view, specs("b", "a"))
    assert {g.request_id: g.spec.max_nodes for g in plan.grants} == {"a": 2, "b": 6}
    assert (plan.num_tokens, plan.node_budget) == (2, 8)
    check(plan, view)


def test_certain_work_is_never_displaced():
    """A step that prompts fill leaves no nodes, and stays as it is."""
    view = seeing(LiteralView([decoding("a")], [request("b", 100)]))
    plan = plan_of(view, "a", "b")
    assert speculate(plan, view, specs("a")) == plan


def test_who_finds_no_block_for_nodes_decodes_without():
    """Nodes need blocks of their own; where none is free, the next request may still fit."""
    view = seeing(LiteralView([decoding("a", 8), decoding("b", 9)], free_blocks=1))
    asked = [("a", Spec(max_nodes=4)), ("b", Spec(max_nodes=2))]
    plan = speculate(plan_of(view, "a", "b"), view, asked)
    assert [g.spec.max_nodes if g.spec else 0 for g in plan.grants] == [0, 2]
    check(plan, view)


def test_a_plan_that_takes_blocks_does_not_speculate():
    """Whoever preempts is short of memory: nothing is reserved for guesses."""
    view = seeing(LiteralView([decoding("a"), decoding("b", 8)], free_blocks=0))
    plan = plan_of(view, "b", "a")
    assert plan.preempt
    assert speculate(plan, view, specs("b")) == plan


@given(st.data())
def test_a_plan_with_nodes_keeps_the_contract(data):
    """Whatever is asked for, tokens, blocks and slots still suffice; grants stay what they were."""
    view = seeing(data.draw(literal_views()))
    plan = pack(data.draw(orders(view)), view, wake_at=view.now + 1)
    decodes = [g.request_id for g in plan.grants if g.num_tokens == 1]
    counts = st.integers(0, 9)
    asked = [(name, Spec(max_nodes=data.draw(counts), depth=3)) for name in decodes]
    made = speculate(plan, view, asked)
    check(made, view)
    assert [g[:2] for g in made.grants] == [g[:2] for g in plan.grants]
    assert made.node_budget <= sum(g.spec.max_nodes for g in made.grants if g.spec)


# The policy beside which it happens


class Fixed:
    """A policy that wants everybody, and remembers what it was told."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def plan(self, view) -> Plan:
        return pack((Want(r.id) for r in (*view.running, *view.waiting)), view)

    def observe(self, event: object) -> None:
        self.seen.append(event)

    def explain(self, view, request_id: str) -> dict[str, str]:
        return {"about": request_id}


def speculating(nodes: int = 64) -> Speculating:
    latency = LinearLatency(terms(constant=0.05))
    return Speculating(Fixed(), Spec(max_nodes=8, depth=4), nodes, latency)


def asked(view: LiteralView, nodes: int = 64) -> dict[str, Spec | None]:
    return {g.request_id: g.spec for g in speculating(nodes).plan(seeing(view)).grants}


def test_only_decodes_speculate():
    """Prompts do not, nor does a last prompt token: what follows it is not known to be output."""
    view = LiteralView([decoding("a"), request("b", 9, computed=8)], [request("c", 5)])
    found = asked(view)
    assert found["a"] is not None and found["a"].depth == 4
    assert found["b"] is None and found["c"] is None


def test_many_share_what_few_have_alone():
    """The more decode together, the fewer candidates each may have; one at the least."""
    names = [f"r{i}" for i in range(12)]
    few = asked(LiteralView([decoding("a"), decoding("b")]), nodes=8)
    many = asked(LiteralView([decoding(name) for name in names], free_blocks=99), nodes=8)
    assert {spec.max_nodes for spec in few.values()} == {4}
    assert {spec.max_nodes for spec in many.values()} == {1}


def test_a_stream_that_falls_behind_needs_more_than_one_token():
    """Needs are what falls due before the next step could bring it; missed promises need no more."""
    tight = request("tight", computed=11, output=4, arrival=10.0, slo=Streaming(tpot=0.02))
    easy = request("easy", computed=11, output=4, arrival=10.0, slo=Streaming(tpot=1.0))
    view = LiteralView([tight, easy], free_blocks=9)
    view.now = 10.085
    found = asked(view)
    # Two steps of 50 ms: tokens 4 to 9 are due until then.
    assert found["tight"].need == 6
    assert found["easy"].need == 1
    tight.is_demoted = True
    assert asked(view)["tight"].need == 1


def test_what_the_policy_says_is_passed_on():
    """Events reach the policy, and its explanations come through."""
    made = speculating()
    made.observe("news")
    assert made.policy.seen == ["news"]
    assert made.explain(None, "a") == {"about": "a"}


# What is owed


def test_tokens_owed_are_those_due_until_then():
    """Token k of a stream is due at its pace; only those not yet there are counted."""
    slo = Streaming(ttft=1.0, tpot=0.1)
    assert owed(slo, Progress(0.0), 0.9) == 0
    assert owed(slo, Progress(0.0), 5.0) == 1
    begun = Progress(0.0, first_token=0.5, num_output_tokens=3)
    assert [owed(slo, begun, by) for by in (1.25, 1.35, 1.45, 2.05)] == [0, 1, 2, 8]
    for other in (Deadline(1.0), BestEffort(), Streaming(ttft=1.0)):
        assert owed(other, begun, 0.9) == 0


# Modes


def test_modes_have_names_and_lengths():
    """A name gives a mode, `name:length` one with longer proposals, `off` none."""
    assert modes.mode("off") is None
    assert modes.mode("ngram").spec.depth == 4
    assert modes.mode("ngram:7").spec.max_nodes == 7


@pytest.mark.parametrize("name", ["", "ngrm", "ngram:", "ngram:0", "ngram:x", "giusto:65", "off:2"])
def test_what_is_no_mode_is_told(name: str):
    with pytest.raises(ConfigError, match=r"speculation '.*'"):
        modes.mode(name)


def test_a_grant_without_a_node_has_no_budget():
    """Nothing asked for leaves the plan as it is."""
    view = seeing(LiteralView([decoding("a")]))
    plan = Plan(view.step, (Grant("a", 1),))
    assert speculate(plan, view, []) == plan
