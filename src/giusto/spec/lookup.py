"""Drafting by look-up: what followed the last tokens before, in this request and in earlier ones.

No second model: it costs microseconds and proposes much where an answer quotes its prompt, repeats
itself or others, nothing where it does not.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

from giusto.spec.acceptance import Acceptance
from giusto.spec.contexts import Contexts, Recollection
from giusto.spec.drafter import Ask
from giusto.spec.tree import ROOT, TokenTree

#: Runs of so many tokens are looked up, and so many of them kept of what other requests were told.
LONGEST = 4
SHARED_RUNS = 200_000
#: A path less likely than this is not proposed.
LEAST_CHANCE = 0.02
#: A follower seen less often than this after its run is not looked at.
_LEAST_SHARE = 0.1
#: Shares of a follower among all, and how often a run was seen, are told apart at these bounds.
_SHARES = (0.2, 0.4, 0.6, 0.8, 0.999)
_COUNTS = (1, 3, 10)


class Candidate(NamedTuple):
    """A token that may follow: how likely, and by what it was proposed."""

    token: int
    chance: float
    kind: Hashable


class LookupDrafter:
    """A tree of what followed before, the likeliest paths first, chances calibrated as they are
    verified.

    What was answered to one request is proposed to others, unless it is private: never shown,
    only verified, so that at most its speed tells anything of others.
    """

    def __init__(self, longest: int = LONGEST) -> None:
        self.longest = longest
        self.acceptance = Acceptance()
        self._memory = Recollection(longest, SHARED_RUNS)

    def draft(self, asks: Sequence[Ask]) -> list[TokenTree]:
        return [self._grow(ask) for ask in asks]

    def learn(self, request_id: str, tree: TokenTree, drawn: Sequence[int]) -> None:
        self.acceptance.learn(tree, drawn)

    def forget(self, request_id: str) -> None:
        self._memory.forget(request_id)

    def sources(self, ask: Ask) -> list[tuple[str, Contexts]]:
        """Where this request may look things up; learns the tokens that are new."""
        return self._memory.sources(ask)

    def _grow(self, ask: Ask) -> TokenTree:
        """Best first: the node added next is always the likeliest that is left."""
        sources = self.sources(ask)
        tree = TokenTree()
        depth, width, most = ask.depth, ask.spec.width, ask.spec.max_nodes
        least = max(LEAST_CHANCE, ask.spec.least)
        if depth < 1 or most < 1:
            return tree
        longest = self.longest
        start = tuple(ask.tokens[-longest:])
        ahead: list[tuple[float, int, int, tuple[int, ...], Candidate]] = []
        order = 0

        def push(parent: int, chance: float, tail: tuple[int, ...]) -> None:
            nonlocal order
            for candidate in self.candidates(sources, tail, width):
                if (joint := chance * candidate.chance) >= least:
                    heappush(ahead, (-joint, order, parent, tail, candidate))
                    order += 1

        push(ROOT, 1.0, start)
        while ahead and len(tree) < most:
            _, _, parent, tail, (token, chance, kind) = heappop(ahead)
            node = tree.add(parent, token, chance, kind)
            if tree.depths[node] < depth:
                push(node, tree.chances[node], (*tail, token)[-longest:])
        return tree

    def candidates(
        self, sources: Sequence[tuple[str, Contexts]], tail: Sequence[int], width: int
    ) -> list[Candidate]:
        """The likeliest tokens after `tail`, at most `width`."""
        best: dict[int, Candidate] = {}
        for source, contexts in sources:
            for candidate in self._followers(source, contexts, tail):
                known = best.get(candidate.token)
                if known is None or known.chance < candidate.chance:
                    best[candidate.token] = candidate
        found = sorted(best.values(), key=lambda candidate: -candidate.chance)[:width]
        return excluding(found)

    def _followers(
        self, source: str, contexts: Contexts, tail: Sequence[int]
    ) -> Iterator[Candidate]:
        length, counts = contexts.after(tail)
        if not length:
            return
        total = sum(counts.values())
        seen = sum(total > bound for bound in _COUNTS)
        latest = next(reversed(counts))
        for token, count in counts.items():
            share = count / total
            if share < _LEAST_SHARE:
                continue
            bin_ = sum(share > bound for bound in _SHARES)
            kind = (source, length, seen, bin_, token == latest)
            yield Candidate(token, self.acceptance.chance(kind, _prior(length, share)), kind)


def excluding(found: list[Candidate]) -> list[Candidate]:
    """The same, as siblings that exclude each other: together no likelier than certain."""
    total = sum(candidate.chance for candidate in found)
    if total <= 1:
        return found
    return [Candidate(token, chance / total, kind) for token, chance, kind in found]


def _prior(length: int, share: float) -> float:
    """Before anything was verified: longer runs and clearer followers are right more often."""
    return share * (0.2 + 0.15 * min(length, 4))
