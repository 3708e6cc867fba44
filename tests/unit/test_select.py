"""Which candidates are verified: needs first, then what pays; against brute force."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from giusto.core.latency import BatchShape, LinearLatency, terms
from giusto.core.plan import Grant, Plan, Spec
from giusto.spec.select import by_value, everything
from giusto.spec.tree import ROOT, TokenTree

FREE = LinearLatency(terms(constant=0.01))
SHAPE = BatchShape(decode_seqs=2, kv_tokens=200)


def tree_of(*paths: tuple[tuple[int, ...], float]) -> TokenTree:
    """A tree of (tokens of the path, chance of the whole path)."""
    tree = TokenTree()
    for tokens, chance in paths:
        node = ROOT
        for token in tokens[:-1]:
            node = tree.child(node, token)
        node = tree.add(node, tokens[-1])
        tree.chances[node] = chance
    return tree


#: The candidates of AdaServe's Fig. 5 (adaserve.md 1.4).
R0 = tree_of(
    ((1,), 0.7), ((2,), 0.2), ((1, 1), 0.42), ((1, 2), 0.21), ((1, 1, 1), 0.294), ((1, 1, 2), 0.126)
)
R1 = tree_of(
    ((1,), 0.5), ((2,), 0.4), ((1, 1), 0.35), ((1, 2), 0.24), ((1, 1, 1), 0.14), ((1, 1, 2), 0.14)
)


def plan_of(budget: int, **specs: Spec) -> Plan:
    return Plan(0, tuple(Grant(name, 1, spec) for name, spec in specs.items()), node_budget=budget)


def chances(tree: TokenTree, nodes: list[int]) -> list[float]:
    return sorted((tree.chances[node] for node in nodes), reverse=True)


@st.composite
def forests(draw) -> dict[str, TokenTree]:
    """Two or three small trees, no node as likely as another."""
    made = {}
    for name in "abc"[: draw(st.integers(2, 3))]:
        tree = TokenTree()
        for _ in range(draw(st.integers(0, 5))):
            parent = draw(st.integers(ROOT, len(tree) - 1))
            tree.add(parent, len(tree), draw(st.floats(0.05, 0.95)))
        made[name] = tree
    return made


def assert_sound(trees, plan, chosen) -> None:
    """Within budget and ceilings, no node without its parent, none twice."""
    assert sum(map(len, chosen.values())) <= plan.node_budget
    ceilings = {grant.request_id: grant.spec.max_nodes for grant in plan.grants if grant.spec}
    for name, nodes in chosen.items():
        assert len(set(nodes)) == len(nodes) <= ceilings[name]
        trees[name].take(nodes)


def test_fig_5_needs_come_first_then_the_likeliest():
    """Needs of 1.6 and 1.8 take {.7} and {.5, .4}; with room for three more: .42, .35, .294."""
    spec = Spec(max_nodes=6, depth=3)
    plan = plan_of(6, r0=replace(spec, need=1.6), r1=replace(spec, need=1.8))
    chosen = by_value({"r0": R0, "r1": R1}, plan, SHAPE, FREE)
    assert chances(R0, chosen["r0"]) == pytest.approx([0.7, 0.42, 0.294])
    assert chances(R1, chosen["r1"]) == pytest.approx([0.5, 0.4, 0.35])


def test_a_need_beyond_reach_takes_nothing_from_others():
    """Who cannot be saved does not use up the nodes of who can."""
    spec = Spec(max_nodes=6, depth=3)
    plan = plan_of(2, r0=replace(spec, need=4.0), r1=replace(spec, need=1.8))
    chosen = by_value({"r0": R0, "r1": R1}, plan, SHAPE, FREE)
    assert chances(R1, chosen["r1"]) == pytest.approx([0.5, 0.4])
    assert "r0" not in chosen


def test_a_node_that_does_not_pay_is_not_verified():
    """Where each node costs as much as a step, nothing but needs is verified."""
    dear = LinearLatency(terms(constant=0.01, nodes=0.01))
    spec = Spec(max_nodes=6, depth=3)
    assert by_value({"r0": R0, "r1": R1}, plan_of(12, r0=spec, r1=spec), SHAPE, dear) == {}
    owed = plan_of(12, r0=replace(spec, need=1.6), r1=spec)
    assert by_value({"r0": R0, "r1": R1}, owed, SHAPE, dear) == {"r0": [0]}


def test_prompts_in_the_step_raise_the_price():
    """Beside a prompt whose tokens count too, an unlikely candidate no longer pays."""
    latency = LinearLatency(terms(constant=0.01, nodes=0.0004, prefill_tokens=0.0004))
    spec = Spec(max_nodes=6, depth=3)
    plan = plan_of(12, r0=spec, r1=spec)
    alone = by_value({"r0": R0, "r1": R1}, plan, SHAPE, latency)
    beside = by_value({"r0": R0, "r1": R1}, plan, replace(SHAPE, prefill_tokens=200), latency)
    assert sum(map(len, beside.values())) < sum(map(len, alone.values()))


def test_a_flat_stretch_of_the_price_is_used_up():
    """A node that costs something may open the way to others that cost nothing more."""

    class Stairs:
        def step_time(self, shape: BatchShape) -> float:
            return 0.010 + 0.004 * -(-shape.nodes // 4)

        def learn(self, shape: BatchShape, seconds: float) -> None:
            raise AssertionError

    tree = tree_of(((1,), 0.3), ((2,), 0.29), ((3,), 0.28), ((4,), 0.27))
    plan = plan_of(8, a=Spec(max_nodes=8, depth=1))
    shape = BatchShape(decode_seqs=1, kv_tokens=9)
    assert by_value({"a": tree}, plan, shape, Stairs()) == {"a": [0, 1, 2, 3]}


@given(forests(), st.integers(0, 8), st.floats(0, 0.004))
def test_no_set_of_nodes_has_more_worth_per_second(trees, budget: int, price: float):
    """Without needs the choice is the best of all connected sets within the budget."""
    latency = LinearLatency(terms(constant=0.01, nodes=price))
    plan = plan_of(budget, **dict.fromkeys(trees, Spec(max_nodes=5, depth=5)))
    shape = BatchShape(decode_seqs=len(trees), kv_tokens=100)
    chosen = by_value(trees, plan, shape, latency)
    assert_sound(trees, plan, chosen)

    def rate(nodes: list[tuple[str, int]]) -> float:
        worth = len(trees) + sum(trees[name].chances[node] for name, node in nodes)
        return worth / latency.step_time(replace(shape, nodes=len(nodes)))

    every = [(name, node) for name, tree in trees.items() for node in range(len(tree))]
    best = max(
        rate(list(some))
        for count in range(min(budget, len(every)) + 1)
        for some in combinations(every, count)
        if all(trees[n].parents[v] == ROOT or (n, trees[n].parents[v]) in some for n, v in some)
    )
    assert rate([(n, v) for n, nodes in chosen.items() for v in nodes]) == pytest.approx(best)


@given(forests(), st.integers(0, 8), st.data())
def test_choices_are_sound(trees, budget: int, data):
    """Whatever is needed, weighed and priced: within budget and ceilings, parents included."""
    numbers = st.floats(0.0, 5.0)
    specs = {
        name: Spec(
            need=data.draw(numbers),
            max_nodes=data.draw(st.integers(0, 5)),
            depth=5,
            weight=data.draw(st.floats(0.1, 3)),
        )
        for name in trees
    }
    plan = plan_of(budget, **specs)
    latency = LinearLatency(terms(constant=0.01, nodes=data.draw(st.floats(0, 0.01))))
    for select in (by_value, everything):
        assert_sound(trees, plan, select(trees, plan, SHAPE, latency))


@given(forests(), st.integers(0, 8))
def test_needs_are_met_for_as_many_as_can_be(trees, budget: int):
    """The cheapest needs come first: no other choice of whom to serve serves more."""
    plan = plan_of(budget, **dict.fromkeys(trees, Spec(need=1.5, max_nodes=5, depth=5)))
    dear = LinearLatency(terms(constant=1e-9, nodes=1.0))
    chosen = by_value(trees, plan, SHAPE, dear)
    served = [n for n, v in chosen.items() if 1 + sum(trees[n].chances[i] for i in v) >= 1.5]
    costs = []
    for tree in trees.values():
        total, count = 1.0, 0
        for chance in sorted(tree.chances, reverse=True):
            if total >= 1.5:
                break
            total, count = total + chance, count + 1
        if total >= 1.5:
            costs.append(count)
    costs.sort()
    most = max(k for k in range(len(costs) + 1) if sum(costs[:k]) <= budget)
    assert len(served) == most


def test_fixed_shapes_verify_all_in_service_order():
    """Everything is verified as far as the budget goes, who is served first in front."""
    spec = Spec(max_nodes=6, depth=3)
    plan = plan_of(8, r1=spec, r0=spec)
    chosen = everything({"r0": R0, "r1": R1}, plan, SHAPE, FREE)
    assert chosen == {"r1": [0, 1, 2, 3, 4, 5], "r0": [0, 1]}
