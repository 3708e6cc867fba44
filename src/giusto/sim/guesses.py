"""What a draft model would guess, and whether the target agrees: the hidden world of speculation.

For each request and output position there is one hidden fact: how easy the next token is, that is,
how likely the draft's first choice is the target's, and which of its choices it really is. All is
a function of (seed, request, position), so that every mode of a comparison meets the same tree
whatever it drafts. What the drafter believes is a noisy, over-confident view of how easy it is.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from hashlib import blake2b
from heapq import nlargest
from statistics import NormalDist

from giusto.profiles.profile import DraftQuality
from giusto.spec.acceptance import Acceptance
from giusto.spec.drafter import Ask
from giusto.spec.tree import ROOT, TokenTree

#: Of what a choice leaves, the part that the next choice has.
_SIBLING = 0.5
#: Choices of the draft that may be the target's; beyond them it is none.
_MOST_CHOICES = 8
#: Log-odds that the drafter believes, per log-odds that are true, and the noise around them.
_OVERCONFIDENCE, _NOISE = 1.25, 0.5
#: Bins of stated confidence, and levels, within which the calibrated chance is one.
_BINS, _DEEPEST = 12, 7

_MASK = 2**64 - 1
_SCALE = 2.0**-64
_inverse = NormalDist().inv_cdf
#: Kept away from 0 and 1, where the inverse is infinite.
_EDGE = 1e-9


def _mix(number: int) -> int:
    """Scramble 64 bits (splitmix64): neighbours become unrelated."""
    number = (number + 0x9E3779B97F4A7C15) & _MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _MASK
    return number ^ (number >> 31)


def _normal(key: int) -> float:
    return _inverse(min(max(_mix(key) * _SCALE, _EDGE), 1 - _EDGE))


def _sigmoid(odds: float) -> float:
    return 1 / (1 + math.exp(-odds))


class Guesses:
    """The hidden facts of all requests. `qualities` are by service class, `default` for others."""

    def __init__(self, qualities: Mapping[str, DraftQuality], seed: int) -> None:
        self._qualities = qualities
        self._seed = seed
        self._keys: dict[str, int] = {}

    def quality(self, service_class: str) -> DraftQuality:
        found = self._qualities.get(service_class)
        return self._qualities["default"] if found is None else found

    def key(self, request_id: str, position: int) -> int:
        """What stands for a request's true text up to a position."""
        base = self._keys.get(request_id)
        if base is None:
            digest = blake2b(f"{self._seed} {request_id}".encode(), digest_size=8).digest()
            base = self._keys[request_id] = int.from_bytes(digest, "big")
        return _mix(base + position)

    def odds(self, key: int, quality: DraftQuality) -> float:
        """Log-odds that the draft's first choice after a text is the target's."""
        return quality.log_odds + quality.spread * _normal(key)

    def belief(self, key: int, quality: DraftQuality) -> float:
        """How likely the drafter holds its own first choice to be."""
        odds = _OVERCONFIDENCE * self.odds(key, quality) + _NOISE * _normal(key ^ 0x5DEECE66D)
        return _sigmoid(odds)

    def choice(self, request_id: str, position: int, service_class: str) -> int:
        """Which of the draft's choices is the target's token at a position, from 1; 0 for none."""
        key = self.key(request_id, position)
        easy = _sigmoid(self.odds(key, self.quality(service_class)))
        left = _mix(key ^ 0x2545F4914F6CDD1D) * _SCALE
        share = easy
        for rank in range(1, _MOST_CHOICES + 1):
            if left < share:
                return rank
            left -= share
            share = (1 - easy) * _SIBLING * (1 - _SIBLING) ** (rank - 1)
        return 0

    def forget(self, request_id: str) -> None:
        self._keys.pop(request_id, None)


#: A node whose children may be drafted: its chance, number, key of its text, and its position on
#: the true path, None once it left that.
Tip = tuple[float, int, int, int | None]
#: Chance of its path, its own, its rank, its kind, and what it would follow.
_Candidate = tuple[float, float, int, Hashable, Tip]


class GuessDrafter:
    """Beam search over hidden guesses: what a draft model would propose. Tokens are ranks.

    With `branching`, the children of each level are that many instead of a beam's. With
    `calibrates`, chances are how often such a belief was right, not the belief.
    """

    def __init__(
        self, guesses: Guesses, *, branching: tuple[int, ...] = (), calibrates: bool = False
    ) -> None:
        self._guesses = guesses
        self._branching = branching
        self._acceptance = Acceptance() if calibrates else None

    def draft(self, asks: Sequence[Ask]) -> list[TokenTree]:
        return [self._beam(ask) for ask in asks]

    def learn(self, request_id: str, tree: TokenTree, drawn: Sequence[int]) -> None:
        if self._acceptance is not None:
            self._acceptance.learn(tree, drawn)

    def forget(self, request_id: str) -> None:
        self._guesses.forget(request_id)

    def _beam(self, ask: Ask) -> TokenTree:
        guesses, spec = self._guesses, ask.spec
        quality = guesses.quality(ask.service_class)
        tree = TokenTree()
        tips: list[Tip] = [(1.0, ROOT, guesses.key(ask.request_id, ask.position), ask.position)]
        for level in range(ask.depth):
            width = self._branching[level] if self._branching else spec.width
            found: list[_Candidate] = []
            for tip in tips:
                belief = guesses.belief(tip[2], quality)
                for rank in range(1, width + 1):
                    own = belief if rank == 1 else (1 - belief) * _SIBLING ** (rank - 1)
                    kind: Hashable = (min(level, _DEEPEST), int(own * _BINS))
                    if self._acceptance is not None:
                        own = self._acceptance.chance(kind, own)
                    if (joint := tip[0] * own) >= spec.least:
                        found.append((joint, own, rank, kind, tip))
            best = found if self._branching else nlargest(width, found, key=lambda each: each[0])
            room = spec.max_nodes - len(tree)
            tips = [self._add(tree, ask, candidate) for candidate in best[:room]]
            if not tips:
                break
        return tree

    def _add(self, tree: TokenTree, ask: Ask, candidate: _Candidate) -> Tip:
        joint, own, rank, kind, (_, parent, key, position) = candidate
        node = tree.add(parent, rank, own, kind)
        guesses = self._guesses
        name = ask.request_id
        if position is None or guesses.choice(name, position, ask.service_class) != rank:
            return joint, node, _mix(key + rank), None
        return joint, node, guesses.key(name, position + 1), position + 1
