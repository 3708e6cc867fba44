"""SuffixDecoding: trees of what followed the longest match, in this request and in earlier ones.

Source: SuffixDecoding (arXiv 2411.04975): candidates are scored by how often they followed, path by
path, and a tree is as large as its match is long, for a long match is right more often. Differs:
matches are at most `LONGEST` tokens long, and live in dictionaries instead of suffix trees.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

from giusto.spec.contexts import Contexts, Recollection
from giusto.spec.drafter import Ask
from giusto.spec.tree import ROOT, TokenTree

LONGEST = 12
SHARED_RUNS = 200_000
#: Nodes of a tree per token of its match (the paper's alpha).
NODES_PER_MATCHED = 2
#: A path that followed less often is not proposed.
LEAST_SHARE = 0.1


class SuffixDrafter:
    """Trees by frequency; all of their nodes are to be verified."""

    def __init__(self) -> None:
        self._memory = Recollection(LONGEST, SHARED_RUNS)

    def draft(self, asks: Sequence[Ask]) -> list[TokenTree]:
        return [self._best(ask) for ask in asks]

    def learn(self, request_id: str, tree: TokenTree, drawn: Sequence[int]) -> None:
        """Nothing to learn: the next ask brings the tokens."""

    def forget(self, request_id: str) -> None:
        self._memory.forget(request_id)

    def _best(self, ask: Ask) -> TokenTree:
        """Of the trees from own and shared memory the one that promises more tokens."""
        grown = (_grow(contexts, ask) for _, contexts in self._memory.sources(ask))
        return max(grown, key=lambda tree: sum(tree.chances))


def _grow(contexts: Contexts, ask: Ask) -> TokenTree:
    tree = TokenTree()
    tail = tuple(ask.tokens[-LONGEST:])
    matched, _ = contexts.after(tail)
    most = min(ask.spec.max_nodes, NODES_PER_MATCHED * matched)
    ahead: list[tuple[float, int, int, tuple[int, ...], int, float]] = []

    def push(parent: int, chance: float, tail: tuple[int, ...]) -> None:
        _, counts = contexts.after(tail)
        total = sum(counts.values())
        likely = sorted(counts, key=lambda token: -counts[token])[: ask.spec.width]
        for token in likely:
            share = counts[token] / total
            if chance * share >= LEAST_SHARE:
                heappush(ahead, (-chance * share, len(tree), parent, tail, token, share))

    if ask.depth > 0:
        push(ROOT, 1.0, tail)
    while ahead and len(tree) < most:
        _, _, parent, tail, token, share = heappop(ahead)
        node = tree.add(parent, token, share)
        if tree.depths[node] < ask.depth:
            push(node, tree.chances[node], (*tail, token)[-LONGEST:])
    return tree
