"""Prompt look-up: a chain of what followed the last occurrence of the same n tokens.

As vLLM's `ngram` speculation, which many use today. Differs: the most recent occurrence is taken,
not the first one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from giusto.spec.drafter import Ask
from giusto.spec.tree import ROOT, TokenTree

#: Runs that are looked for, the longest first.
LONGEST, SHORTEST = 4, 2


@dataclass(slots=True)
class _Places:
    """Where each run of one request ended last; `num_indexed` tokens are in it."""

    ends: dict[tuple[int, ...], int] = field(default_factory=dict)
    num_indexed: int = 0


class NgramDrafter:
    """Chains from the request's own tokens alone, all of them to be verified."""

    def __init__(self) -> None:
        self._places: dict[str, _Places] = {}

    def draft(self, asks: Sequence[Ask]) -> list[TokenTree]:
        return [self._chain(ask) for ask in asks]

    def learn(self, request_id: str, tree: TokenTree, drawn: Sequence[int]) -> None:
        """Nothing to learn: the next ask brings the tokens."""

    def forget(self, request_id: str) -> None:
        self._places.pop(request_id, None)

    def _chain(self, ask: Ask) -> TokenTree:
        tokens = ask.tokens
        ends = self._catch_up(ask)
        tree = TokenTree()
        for length in range(min(LONGEST, len(tokens)), SHORTEST - 1, -1):
            end = ends.get(tuple(tokens[len(tokens) - length :]))
            if end is not None:
                node = ROOT
                for token in tokens[end : end + min(ask.depth, ask.spec.max_nodes)]:
                    node = tree.add(node, token)
                break
        return tree

    def _catch_up(self, ask: Ask) -> dict[tuple[int, ...], int]:
        """Index all runs but those that end with the last token: nothing followed them yet."""
        places = self._places.setdefault(ask.request_id, _Places())
        tokens = ask.tokens
        for end in range(max(places.num_indexed, SHORTEST), len(tokens)):
            for length in range(SHORTEST, min(LONGEST, end) + 1):
                places.ends[tuple(tokens[end - length : end])] = end
        places.num_indexed = max(places.num_indexed, len(tokens))
        return places.ends
