"""Which candidates a step verifies: pure functions, called by the engine and the simulator alike
between drafting and verification.

All have one signature: trees by request, the plan with its grants and node budget, the shape of the
step without nodes, and the latency model as the price list; they return the chosen nodes of each
tree, parents among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from giusto.core.latency import BatchShape, LatencyModel
from giusto.core.plan import Plan, Spec
from giusto.spec.tree import TokenTree

Trees = Mapping[str, TokenTree]
Chosen = dict[str, list[int]]
Select = Callable[[Trees, Plan, BatchShape, LatencyModel], Chosen]

#: What a prompt's token is worth beside an output token: the defaults of the service gain.
PROMPT_VALUE = 0.5
#: Up to so many nodes every count is priced, beyond them every so manieth.
_DENSE, _STRIDE = 16, 8

#: Of the mean share of nodes, what AdaServe's first phase may give to one request.
SLO_SHARE = 1.2

#: A candidate as it is ranked: worth, request, node.
Ranked = tuple[float, str, int]


def everything(trees: Trees, plan: Plan, shape: BatchShape, latency: LatencyModel) -> Chosen:
    """All candidates, in service order, as far as the budget goes: what fixed shapes do."""
    left = plan.node_budget
    chosen: Chosen = {}
    for grant in plan.grants:
        tree = trees.get(grant.request_id)
        if tree is not None and left > 0 and len(tree):
            taken = min(len(tree), _ceiling(grant.spec), left)
            chosen[grant.request_id] = list(range(taken))  # parents come before children
            left -= taken
    return chosen


def by_value(trees: Trees, plan: Plan, shape: BatchShape, latency: LatencyModel) -> Chosen:
    """First what each promise needs, then candidates as long as they pay for themselves.

    A step is worth its expected tokens; nodes are added, the likeliest first, to where worth per
    second is highest. Since sorted marginals fall, that is the best count (AdaServe fills a fixed
    budget instead; adaserve.md 6.2.1). Needs that the candidates can meet come before those that
    they cannot: the cheapest first, so that most requests are served (6.2.3).
    """
    specs = {grant.request_id: grant.spec or Spec() for grant in plan.grants}
    chosen, worth = _needs(trees, specs, plan.node_budget)
    taken = sum(map(len, chosen.values()))
    rest = _ranked(trees, specs, chosen)
    base = worth_of(shape) + worth
    count = _best_count([r[0] for r in rest], base, (plan.node_budget, taken), shape, latency)
    for _, request_id, node in rest[:count]:
        chosen.setdefault(request_id, []).append(node)
    return chosen


def worth_of(shape: BatchShape) -> float:
    """Tokens that a step is worth without candidates: one per decode, a share per prompt token."""
    return shape.decode_seqs + PROMPT_VALUE * shape.prefill_tokens


def adaserve(trees: Trees, plan: Plan, shape: BatchShape, latency: LatencyModel) -> Chosen:
    """AdaServe's two phases: needs, the most behind first, then the likeliest until none is left.

    Source: AdaServe (arXiv 2501.12162), section 4.3 and Algorithm 2, as adaserve.md 5 resolves it:
    path probabilities, a root counts 1, `SLO_SHARE` bounds what one request takes in the first
    phase. Differs: the budget is what the plan has reserved, beside prompts.
    """
    specs = {g.request_id: g.spec for g in plan.grants if g.spec and g.request_id in trees}
    left = plan.node_budget
    most = int(SLO_SHARE * (left + shape.decode_seqs) / max(1, shape.decode_seqs))
    chosen: Chosen = {}
    for request_id, spec in sorted(specs.items(), key=lambda item: -item[1].need):
        tree = trees[request_id]
        expected, nodes = 1.0, []
        for node in _order(tree)[: min(most, spec.max_nodes, left)]:
            if expected >= spec.need:
                break
            nodes.append(node)
            expected += tree.chances[node]
        left -= len(nodes)
        chosen[request_id] = nodes
    for _, request_id, node in _ranked(trees, specs, chosen)[:left]:
        chosen[request_id].append(node)
    return chosen


def _needs(trees: Trees, specs: Mapping[str, Spec], budget: int) -> tuple[Chosen, float]:
    """Nodes that make up what requests are owed, and the tokens expected of them."""
    wanted: list[tuple[int, float, str, list[int]]] = []
    for request_id, tree in trees.items():
        spec = specs[request_id]
        expected, nodes = 1.0, []
        for node in _order(tree)[: spec.max_nodes]:
            if expected >= spec.need:
                break
            nodes.append(node)
            expected += tree.chances[node]
        if nodes and expected >= spec.need:
            wanted.append((len(nodes), expected - 1, request_id, nodes))
    chosen: Chosen = {}
    worth = 0.0
    for count, gained, request_id, nodes in sorted(wanted):
        if count > budget:
            break
        budget -= count
        chosen[request_id] = nodes
        worth += specs[request_id].weight * gained
    return chosen, worth


def _order(tree: TokenTree) -> list[int]:
    """Nodes by falling chance; parents first where a child is as likely."""
    return sorted(range(len(tree)), key=lambda node: -tree.chances[node])


def _ranked(trees: Trees, specs: Mapping[str, Spec], chosen: Chosen) -> list[Ranked]:
    """Candidates that are not chosen yet and that their ceilings leave, the best first."""
    ranked: list[Ranked] = []
    for request_id, tree in trees.items():
        taken = chosen.get(request_id, ())
        spec = specs[request_id]
        for node in _order(tree)[len(taken) : spec.max_nodes]:
            ranked.append((spec.weight * tree.chances[node], request_id, node))
    ranked.sort(key=lambda candidate: -candidate[0])  # stable: parents stay before children
    return ranked


def _best_count(
    worths: list[float],
    base: float,
    budget: tuple[int, int],
    shape: BatchShape,
    latency: LatencyModel,
) -> int:
    """How many more nodes give the most worth per second; `budget` is (all, already taken)."""
    most, taken = budget
    best, best_rate = 0, base / latency.step_time(replace(shape, nodes=taken))
    total = base
    last = min(len(worths), most - taken)
    for count, worth in enumerate(worths[:last], 1):
        total += worth
        if count > _DENSE and count % _STRIDE and count != last:
            continue
        rate = total / latency.step_time(replace(shape, nodes=taken + count))
        if rate > best_rate:
            best, best_rate = count, rate
    return best


def _ceiling(spec: Spec | None) -> int:
    return spec.max_nodes if spec else 0
