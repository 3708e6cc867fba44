"""Speculation beside a policy: with what its plan leaves, and never at its cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from giusto.core.errors import ConfigError
from giusto.core.events import Stepped
from giusto.core.latency import BatchShape, LinearLatency, terms
from giusto.core.pack import pack, speculate
from giusto.core.plan import (
    Caps,
    Grant,
    Limits,
    Plan,
    Spec,
    StepOutcome,
    Want,
    Yield,
    check,
)
from giusto.core.slo import BestEffort, Deadline, Progress, Streaming, behind, owed
from giusto.policies import make
from giusto.policies.base import Dependencies
from giusto.policies.speculating import Speculating
from giusto.predict.base import Constant
from giusto.spec import modes
from giusto.spec.wishes import Adaptive, Control, Fixed, Valued
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
    plan = speculate(plan_of(view, "a", "b"), view, specs("b", "a"), max_nodes=99)
    assert {g.request_id: g.spec.max_nodes for g in plan.grants} == {"a": 6, "b": 6}
    assert (plan.num_tokens, plan.node_budget) == (2, 8)
    check(plan, view)


def test_all_together_have_no_more_than_is_asked():
    """Ceilings are each request's own, the budget is everybody's."""
    view = seeing(LiteralView([decoding("a"), decoding("b")]))
    plan = speculate(plan_of(view, "a", "b"), view, specs("a", "b"), max_nodes=4)
    assert {g.spec.max_nodes for g in plan.grants} == {4}
    assert plan.node_budget == 4
    check(plan, view)


def test_certain_work_is_never_displaced():
    """A step that prompts fill leaves no nodes, and stays as it is."""
    view = seeing(LiteralView([decoding("a")], [request("b", 100)]))
    plan = plan_of(view, "a", "b")
    assert speculate(plan, view, specs("a"), max_nodes=99) == plan


def test_who_finds_no_block_for_nodes_decodes_without():
    """Nodes need blocks of their own; where none is free, the next request may still fit."""
    view = seeing(LiteralView([decoding("a", 8), decoding("b", 9)], free_blocks=1))
    asked = [("a", Spec(max_nodes=4)), ("b", Spec(max_nodes=2))]
    plan = speculate(plan_of(view, "a", "b"), view, asked, max_nodes=99)
    assert [g.spec.max_nodes if g.spec else 0 for g in plan.grants] == [0, 2]
    check(plan, view)


def test_a_plan_that_takes_blocks_does_not_speculate():
    """Whoever preempts is short of memory: nothing is reserved for guesses."""
    view = seeing(LiteralView([decoding("a"), decoding("b", 8)], free_blocks=0))
    plan = plan_of(view, "b", "a")
    assert plan.preempt
    assert speculate(plan, view, specs("b"), max_nodes=99) == plan


@given(st.data())
def test_a_plan_with_nodes_keeps_the_contract(data):
    """Whatever is asked for, tokens, blocks and slots still suffice; grants stay what they were."""
    view = seeing(data.draw(literal_views()))
    plan = pack(data.draw(orders(view)), view, wake_at=view.now + 1)
    decodes = [g.request_id for g in plan.grants if g.num_tokens == 1]
    counts = st.integers(0, 9)
    asked = [(name, Spec(max_nodes=data.draw(counts), depth=3)) for name in decodes]
    made = speculate(plan, view, asked, max_nodes=data.draw(st.integers(0, 20)))
    check(made, view)
    assert [g[:2] for g in made.grants] == [g[:2] for g in plan.grants]
    assert made.node_budget <= sum(g.spec.max_nodes for g in made.grants if g.spec)


# The policy beside which it happens


class Everybody:
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
    return Speculating(Everybody(), Valued(Spec(max_nodes=8, depth=4), nodes, latency))


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
    """Needs are what falls due before the next step brings it; missed promises need no more."""
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


def test_a_fixed_wish_is_the_same_whatever_the_load():
    """Chains ask for as many nodes as there are requests, times their length."""
    made = Fixed(SPEC)
    some = [decoding(name) for name in "abc"]
    assert made.specs(some, 0.0, BatchShape(decode_seqs=3)) == (18, [SPEC] * 3)


def test_adaserve_drafts_less_the_more_there_are():
    """Equations 8 and 9 with the artifact's constants (adaserve.md 1.6)."""
    llama, qwen = Control(), Control(256, 80, 5, 3, 3)
    assert [llama.depth(n) for n in (1, 56, 57, 64, 65, 85, 86, 400)] == [8, 8, 7, 7, 6, 5, 4, 4]
    assert [llama.width(n) for n in (1, 32, 33, 48, 49, 400)] == [3, 3, 2, 2, 1, 1]
    assert [qwen.depth(n) for n in (42, 43, 51, 52)] == [5, 4, 4, 3]
    assert [qwen.width(n) for n in (26, 27, 40, 41)] == [3, 2, 2, 1]
    with pytest.raises(ValueError, match="min_depth"):
        Control(max_depth=2, min_depth=3)


def test_adaserve_fills_a_measured_machine_until_a_step_takes_twice_as_long():
    """Its budget is published for two machines; elsewhere it follows from the price of a node."""
    small = Control.for_machine(LinearLatency(terms(constant=0.012, nodes=0.0005)))
    assert (small.budget, small.draft_budget) == (24, 4)
    assert (small.depth(1), small.width(1), small.width(4)) == (8, 3, 1)
    large = Control.for_machine(LinearLatency(terms(constant=0.03)))
    assert (large.budget, large.draft_budget) == (512, 96)
    slow = Control.for_machine(LinearLatency(terms(constant=0.01, nodes=0.01)))
    assert slow.budget == 8


def test_a_pass_of_the_draft_has_its_toll():
    """Beside look-up a model is told what its passes must bring, to urgent requests too: a pass
    that does not pay makes them later still."""
    latency = LinearLatency(terms(constant=0.01, draft_steps=0.001, draft_tokens=0.0005))
    wish = Valued(SPEC, 64, latency, tolls=True)
    urgent = request("u", computed=11, output=4, arrival=9.0, slo=Streaming(tpot=0.2))
    some = [decoding("a"), urgent]
    _, (calm, hurried) = wish.specs(some, 10.0, BatchShape(decode_seqs=2))
    # A pass over two takes a fifth of a step that is worth two tokens: each owes a fifth.
    assert calm.toll == pytest.approx(0.2)
    assert calm.depth == SPEC.depth
    assert hurried.need > 1
    assert (hurried.toll, hurried.least) == (calm.toll, 0.0)


def test_adaserve_needs_what_the_mean_pace_lacks():
    """A(r) = 1.05 (l + t) / TPOT - o, between 1 and one more than the beam is deep."""
    wish = Adaptive(Control(), LinearLatency(terms(constant=0.1)))
    tight = request("a", computed=8, output=3, arrival=10.0, slo=Streaming(tpot=0.05))
    lost = request("b", computed=8, output=3, arrival=0.0, slo=Streaming(tpot=0.05))
    calm = request("c", computed=8, output=3, arrival=10.0, slo=Streaming(tpot=1.0))
    budget, found = wish.specs([tight, lost, calm], 10.1, BatchShape(decode_seqs=3))
    assert budget == 512 - 3
    assert [spec.need for spec in found] == pytest.approx([1.05 * 0.2 / 0.05 - 2, 9.0, 1.0])
    assert {(spec.depth, spec.width, spec.max_nodes) for spec in found} == {(8, 3, 24)}


def test_giusto_drafts_as_deep_as_it_pays():
    """Where each draft step takes time, candidates that are rarely right are not drafted for."""
    latency = LinearLatency(terms(constant=0.03, draft_steps=0.005))
    wish = Valued(Spec(max_nodes=16, depth=8), 128, latency)
    some = [decoding("a")]
    shape = BatchShape(decode_seqs=1)

    def depth_after(accepted: int) -> int:
        for _ in range(500):
            made = Yield((1,) * (accepted + 1), selected=8, accepted=accepted)
            wish.observe(Stepped(StepOutcome(0, 0.0, 0.1, shape, {"a": made}), 0.1))
        return wish.specs(some, 0.0, shape)[1][0].depth

    assert depth_after(0) == 0
    assert depth_after(3) == 3
    assert depth_after(8) == 8


def test_giusto_tries_again_what_did_not_pay():
    """After some steps without a draft one is made, so that a better one shows."""
    wish = Valued(SPEC, 128, LinearLatency(terms(constant=0.03, draft_steps=0.02)))
    shape = BatchShape(decode_seqs=1)
    wrong = Yield((1,), selected=3)
    plain = Yield((1,))
    asked = []
    for made in [wrong] * 300 + [plain] * 60:
        wish.observe(Stepped(StepOutcome(0, 0.0, 0.1, shape, {"a": made}), 0.1))
        asked.append(wish.specs([decoding("a")], 0.0, shape))
    assert asked[310] == (0, [replace(SPEC, depth=0)])
    assert asked[-1] == (6, [replace(SPEC, depth=1)])


# A policy that knows of it


def test_speculation_makes_steps_go_further():
    """Where decodes yield three tokens a step, a deadline that was hopeless can be kept."""
    latency = LinearLatency(terms(constant=0.01))
    made = make("giusto", Dependencies(latency, Constant(100)), {})
    tight = decoding("a", slo=Deadline(1.0), arrival=9.6)
    view = LiteralView([tight], [request("b", 40, slo=Deadline(0.5), arrival=10.0)])
    assert made.explain(view, "a")["group"] == "decodes without a promise"
    for nodes, tokens in ((0, 1), (8, 3)):
        for _ in range(300):
            shape = BatchShape(decode_seqs=2, nodes=nodes)
            yields = {"a": Yield((7,) * tokens), "b": Yield()}
            made.observe(Stepped(StepOutcome(0, 10.0, 10.01, shape, yields), 10.0))
        if not nodes:
            assert made.forecast.stride == 1.0
    assert made.forecast.stride == pytest.approx(3.0, abs=0.02)
    assert made.explain(view, "a")["group"] == "decodes to keep in time"


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


def test_the_mean_pace_counts_from_the_first_token():
    """Whoever waited long for it is behind in `owed`, and not in the mean pace."""
    slo = Streaming(ttft=1.0, tpot=0.1)
    begun = Progress(0.0, first_token=5.0, num_output_tokens=3)
    assert behind(slo, begun, 5.4) == pytest.approx(2.0)
    assert behind(slo, begun, 5.1) == pytest.approx(-1.0)
    assert owed(slo, begun, 5.4) > 30
    assert behind(Deadline(1.0), begun, 9.0) == behind(slo, Progress(0.0), 9.0) == float("-inf")


# Modes


def test_modes_have_names_and_lengths():
    """A name gives a mode, `name:length` one with longer proposals, `off` none."""
    assert modes.mode("off") is None

    def asks(name: str) -> Spec:
        wish = modes.mode(name).wish(LinearLatency(terms(constant=0.1)))
        return wish.specs([decoding("a")], 0.0, BatchShape(decode_seqs=1))[1][0]

    assert asks("ngram").depth == 4
    assert asks("ngram:7").max_nodes == 7
    assert asks("static").depth == 9
    assert asks("adaserve").width == 3


def test_modes_that_draft_with_a_model_need_one():
    """Chains and AdaServe's beams have nothing to look up."""
    latency = LinearLatency(terms(constant=0.1))
    for name in ("chain", "static", "adaserve"):
        with pytest.raises(ConfigError, match=f"speculation {name} drafts with a model"):
            modes.mode(name).speculator(latency)
    assert modes.mode("giusto").speculator(latency).select is modes.by_value


@pytest.mark.parametrize("name", ["", "ngrm", "ngram:", "ngram:0", "ngram:x", "giusto:65", "off:2"])
def test_what_is_no_mode_is_told(name: str):
    with pytest.raises(ConfigError, match=r"speculation '.*'"):
        modes.mode(name)


def test_a_grant_without_a_node_has_no_budget():
    """Nothing asked for leaves the plan as it is."""
    view = seeing(LiteralView([decoding("a")]))
    plan = Plan(view.step, (Grant("a", 1),))
    assert speculate(plan, view, [], max_nodes=9) == plan
