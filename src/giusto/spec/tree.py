"""Candidates for the tokens to come, as a tree over the last known token."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field

#: The last known token of a request: the parent of the first candidates, and no node itself.
ROOT = -1


@dataclass(slots=True, eq=False)
class TokenTree:
    """Nodes from 0, parents before children.

    `chances[i]` is how likely the target's own answer follows the whole path to node i; it never
    rises along a path. `depths[i]` counts from 1. `kinds[i]` says what proposed the node, so that
    chances can be learned per kind.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    kinds: list[Hashable] = field(default_factory=list)
    _nodes: dict[tuple[int, int], int] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, parent: int, token: int, chance: float = 1.0, kind: Hashable = None) -> int:
        """Add a candidate after `parent` and return its number.

        `chance` is that of this token once the parent is right. Raises ValueError for a token that
        the parent has already, or for a parent that is not there.
        """
        if not ROOT <= parent < len(self.tokens):
            raise ValueError(f"no node {parent} in a tree of {len(self.tokens)}")
        if (parent, token) in self._nodes:
            raise ValueError(f"node {parent} has token {token} already")
        node = len(self.tokens)
        self.tokens.append(token)
        self.parents.append(parent)
        self.depths.append(1 if parent == ROOT else self.depths[parent] + 1)
        self.chances.append(chance if parent == ROOT else chance * self.chances[parent])
        self.kinds.append(kind)
        self._nodes[parent, token] = node
        return node

    def child(self, parent: int, token: int) -> int | None:
        """The node that carries `token` after `parent`, if there is one."""
        return self._nodes.get((parent, token))

    def take(self, nodes: Collection[int]) -> TokenTree:
        """The part of the tree that has these nodes alone, depth first, likelier branches first.

        So the likeliest path lies in one piece: what is accepted of it need not be moved. Raises
        ValueError when a node comes without its parent.
        """
        children: dict[int, list[int]] = {}
        for node in sorted(nodes, key=lambda node: self.chances[node]):
            children.setdefault(self.parents[node], []).append(node)
        taken = TokenTree()
        pending = [(node, ROOT) for node in children.pop(ROOT, ())]
        while pending:
            node, parent = pending.pop()
            place = taken.add(parent, self.tokens[node], kind=self.kinds[node])
            taken.chances[place] = self.chances[node]
            pending += [(child, place) for child in children.pop(node, ())]
        if children:
            raise ValueError(f"nodes {sorted(children)} are missing, and their children are not")
        return taken

    def visibility(self) -> list[list[bool]]:
        """Who sees whom, the root first: [1 + nodes, 1 + nodes]; each sees its path and itself."""
        size = 1 + len(self.tokens)
        rows = [[False] * size for _ in range(size)]
        rows[0][0] = True
        for node, parent in enumerate(self.parents):
            rows[node + 1] = list(rows[parent + 1])
            rows[node + 1][node + 1] = True
        return rows

    def verdicts(self, drawn: Sequence[int]) -> Iterator[tuple[int, bool]]:
        """Judge nodes by what the target drew: (node, whether it was the target's token).

        Only children of nodes that were right are judged; of the others nothing is known.
        """
        siblings: dict[int, list[int]] = {}
        for child, parent in enumerate(self.parents):
            siblings.setdefault(parent, []).append(child)
        node = ROOT
        for token in drawn:
            for child in siblings.get(node, ()):
                yield child, self.tokens[child] == token
            found = self.child(node, token)
            if found is None:
                return
            node = found
