"""Turn a plan into the tensors of one step: the only index arithmetic of the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from giusto.core.latency import BatchShape
from giusto.core.plan import Plan
from giusto.core.request import Request
from giusto.core.shape import shape_of
from giusto.engine.tensors import BatchTensors
from giusto.spec.tree import TokenTree

NO_TREES: Mapping[str, TokenTree] = {}
NO_TREE = TokenTree()


@dataclass(frozen=True, slots=True)
class Head:
    """A request that gets tokens: `row` of the logits is its own, those behind it its nodes'."""

    request: Request
    row: int
    tree: TokenTree = NO_TREE


@dataclass(frozen=True, slots=True)
class Batch:
    """A step's tensors and shape, and who gets tokens."""

    tensors: BatchTensors
    shape: BatchShape
    heads: tuple[Head, ...]


def build(
    plan: Plan,
    requests: Mapping[str, Request],
    block_size: int,
    device: torch.device | str,
    trees: Mapping[str, TokenTree] = NO_TREES,
) -> Batch:
    """Lay the granted tokens side by side.

    Per request, with `start` tokens computed and `n` granted:

        token_ids  | computed (start) | granted (n) | known later |
        positions                      start .. start + n - 1
        slots                          blocks[position // size] * size + position % size

    A request whose grant reaches its last known token yields a row of logits. Where it has a tree,
    the nodes follow that token: each in a slot of its own, in the tree's order, at the position
    that its depth says, and with a row of logits each.
    """
    rows = _Rows(block_size)
    for grant in plan.grants:
        request = requests[grant.request_id]
        rows.add(request, grant.num_tokens, trees.get(grant.request_id, NO_TREE))
    widest = max(len(table) for table in rows.tables)
    tables = [table + [0] * (widest - len(table)) for table in rows.tables]
    tensors = BatchTensors(
        token_ids=torch.tensor(rows.token_ids, device=device),
        positions=torch.tensor(rows.positions, device=device),
        slot_mapping=torch.tensor(rows.slots, device=device),
        query_lens=rows.query_lens,
        context_lens=rows.context_lens,
        block_tables=torch.tensor(tables, device=device),
        logits_indices=torch.tensor(rows.logits, dtype=torch.int64, device=device),
        trees=rows.trees,
    )
    shape = shape_of(plan, requests.__getitem__)
    num_nodes = sum(len(head.tree) for head in rows.heads)
    return Batch(tensors, replace(shape, nodes=num_nodes), tuple(rows.heads))


def slot(request: Request, position: int, block_size: int) -> int:
    """Where a token of a request lies in the cache."""
    return request.blocks[position // block_size] * block_size + position % block_size


class _Rows:
    """The columns of a batch while it is put together, as plain lists."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.token_ids: list[int] = []
        self.positions: list[int] = []
        self.slots: list[int] = []
        self.query_lens: list[int] = []
        self.context_lens: list[int] = []
        self.tables: list[list[int]] = []
        self.logits: list[int] = []
        self.heads: list[Head] = []
        self.trees: dict[int, Tensor] = {}

    def add(self, request: Request, num_tokens: int, tree: TokenTree) -> None:
        size, num_nodes = self.block_size, len(tree)
        start = request.num_computed_tokens
        end = start + num_tokens
        last = end + num_nodes
        self.token_ids += request.token_ids[start:end]
        self.positions += range(start, end)
        if num_nodes:
            self.token_ids += tree.tokens
            self.positions += [end - 1 + depth for depth in tree.depths]
            self.trees[len(self.query_lens)] = torch.tensor(tree.visibility())
        self.slots += [slot(request, place, size) for place in range(start, last)]
        self.query_lens.append(num_tokens + num_nodes)
        self.context_lens.append(last)
        self.tables.append(request.blocks[: -(-last // size)])
        if end == request.num_tokens:
            self.heads.append(Head(request, len(self.logits), tree))
            self.logits += range(len(self.token_ids) - 1 - num_nodes, len(self.token_ids))
