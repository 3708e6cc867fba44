"""Drafting with a model: trees of what it holds likely, beside what look-up finds.

The model itself is behind `Guesser`; this is the pure side: where it is asked, whether asking pays,
and what its guesses are worth. Called by `speculator` as any drafter; `engine.speculate` has the
model.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import NamedTuple, Protocol, runtime_checkable

from giusto.spec.drafter import Ask
from giusto.spec.lookup import LEAST_CHANCE, Candidate, LookupDrafter, excluding
from giusto.spec.tree import ROOT, TokenTree

#: A token that may follow, and how likely the draft model holds it.
Guess = tuple[int, float]

#: Bins of stated confidence, and levels, within which the calibrated chance is one.
_BINS, _DEEPEST = 12, 3
#: Bins where look-up and model propose the same token, of each one's chance.
_COMMON_BINS = 5
#: What a level brings of what it could at most, before any was grown; weight of the newest.
_UNKNOWN, _LEARNING = 0.4, 0.05
#: Drafts without the model after which it is asked whatever it costs, so that a change shows.
_PROBE = 50


@dataclass(frozen=True, slots=True)
class Tips:
    """Ends of paths in a request's tree after which guesses are wanted.

    ROOT stands for the request's last known token.
    """

    ask: Ask
    tree: TokenTree
    nodes: Sequence[int]


class Guesser(Protocol):
    """A draft model. Holds what it computed of each request until it is told to forget."""

    def follow(self, asked: Sequence[Tips], width: int) -> list[list[list[Guess]]]:
        """For each entry and each of its nodes the likeliest tokens, the likeliest first.

        At most `width` each; none for an entry that it has no room for.
        """
        ...

    def take_work(self) -> tuple[int, int]:
        """Passes, and tokens in them, since this was asked last."""
        ...

    def forget(self, request_id: str) -> None: ...


@runtime_checkable
class Computing(Protocol):
    """A drafter that computes, so that its drafts have a price."""

    def take_work(self) -> tuple[int, int]:
        """Passes of a model, and tokens in them, since this was asked last."""
        ...


class _Found(NamedTuple):
    """A candidate that may be added after `tip`; `joint` is the chance of its whole path.

    `is_new`: only the model proposes it.
    """

    joint: float
    tip: int
    candidate: Candidate
    is_new: bool


class ModelDrafter:
    """Trees level by level: look-up first, the model where look-up leaves something open.

    With a `look_up`, chances are what verification found of each kind, look-up's and the model's on
    one scale; without one they are the model's own, and the model is asked at every level. With
    `branching`, the nodes of each level have that many children instead of a beam's.

    A level is computed for all requests at once, and only while it promises more tokens than its
    time would be worth otherwise (`Spec.toll`).
    """

    def __init__(
        self,
        guesser: Guesser,
        *,
        look_up: LookupDrafter | None = None,
        branching: tuple[int, ...] = (),
    ) -> None:
        self.guesser = guesser
        self._look_up = look_up
        self._branching = branching
        self._acceptance = look_up.acceptance if look_up is not None else None
        self._share = [_UNKNOWN] * (_DEEPEST + 1)
        self._num_idle = 0

    def draft(self, asks: Sequence[Ask]) -> list[TokenTree]:
        growing = [_Growing(ask, self._look_up) for ask in asks]
        has_asked = False
        for level in range(max((ask.depth for ask in asks), default=0)):
            going = [each for each in growing if each.tips and level < each.ask.depth]
            if not going:
                break
            width = self._width(level, going)
            for each in going:
                each.look_up(width)
            asked = [(each, each.open_tips(width)) for each in going]
            asked = [(each, tips) for each, tips in asked if tips]
            if asked and self._pays(asked, level):
                has_asked = True
                self._guess(asked, level, width)
            for each in going:
                each.take(None if self._branching else width)
        self._num_idle = 0 if has_asked else self._num_idle + 1
        return [each.finished() for each in growing]

    def learn(self, request_id: str, tree: TokenTree, drawn: Sequence[int]) -> None:
        if self._acceptance is not None:
            self._acceptance.learn(tree, drawn)

    def forget(self, request_id: str) -> None:
        self.guesser.forget(request_id)
        if self._look_up is not None:
            self._look_up.forget(request_id)

    def take_work(self) -> tuple[int, int]:
        return self.guesser.take_work()

    def _width(self, level: int, going: Sequence[_Growing]) -> int:
        if self._branching:
            return self._branching[min(level, len(self._branching) - 1)]
        return max(each.ask.spec.width for each in going)

    def _pays(self, asked: Sequence[tuple[_Growing, list[int]]], level: int) -> bool:
        """Whether one more pass of the model is expected to bring more than it costs."""
        toll = sum(each.ask.spec.toll * each.expected for each, _ in asked)
        if toll <= 0 or (level == 0 and self._num_idle >= _PROBE):
            return True
        most = sum(each.left_open(tip) for each, tips in asked for tip in tips)
        return most * self._share[min(level, _DEEPEST)] >= toll

    def _guess(self, asked: Sequence[tuple[_Growing, list[int]]], level: int, width: int) -> None:
        wanted = [Tips(each.ask, each.tree, tips) for each, tips in asked]
        most = brought = 0.0
        for (each, tips), answers in zip(asked, self.guesser.follow(wanted, width), strict=True):
            for tip, guesses in zip(tips, answers, strict=False):
                most += each.left_open(tip)
                brought += each.guess(tip, list(self._priced(guesses, level)), width)
        if most > 0:
            place = min(level, _DEEPEST)
            self._share[place] += _LEARNING * (brought / most - self._share[place])

    def _priced(self, guesses: Sequence[Guess], level: int) -> Iterator[Candidate]:
        """Guesses as candidates, with the chance that such guesses had lately."""
        for token, belief in guesses:
            kind = ("model", min(level, _DEEPEST), int(belief * _BINS))
            known = self._acceptance
            yield Candidate(token, known.chance(kind, belief) if known else belief, kind)


class _Growing:
    """The tree of one ask while it grows: `tips` are the ends that may still be followed."""

    def __init__(self, ask: Ask, look_up: LookupDrafter | None) -> None:
        self.ask = ask
        self.tree = TokenTree()
        self.tips: list[int] = [ROOT] if ask.spec.max_nodes > 0 else []
        self.expected = 1.0
        self._drafter = look_up
        self._sources = look_up.sources(ask) if look_up is not None else []
        self._longest = look_up.longest if look_up is not None else 0
        self._tails = {ROOT: tuple(ask.tokens[len(ask.tokens) - self._longest :])}
        self._least = ask.spec.least if look_up is None else max(LEAST_CHANCE, ask.spec.least)
        self._found: dict[int, list[_Found]] = {}

    def look_up(self, width: int) -> None:
        """What look-up knows after each tip."""
        self._found = {tip: [] for tip in self.tips}
        drafter = self._drafter
        if drafter is None:
            return
        for tip in self.tips:
            candidates = drafter.candidates(self._sources, self._tails[tip], width)
            self._found[tip] = [
                _Found(self.chance(tip) * each.chance, tip, each, False) for each in candidates
            ]

    def open_tips(self, width: int) -> list[int]:
        """Tips that the model is asked about: where the most is left open; all in fixed shapes."""
        if self._drafter is None:
            return list(self.tips)
        likely = [tip for tip in self.tips if self.left_open(tip) > self._least]
        return sorted(nlargest(width, likely, key=self.left_open))

    def left_open(self, tip: int) -> float:
        """How likely the answer goes by this tip, and on with what look-up does not propose."""
        return max(0.0, self.chance(tip) - sum(each.joint for each in self._found[tip]))

    def chance(self, tip: int) -> float:
        return 1.0 if tip == ROOT else self.tree.chances[tip]

    def guess(self, tip: int, guesses: Sequence[Candidate], width: int) -> float:
        """Put a model's candidates beside those of look-up; returns how much likelier an answer
        goes on along the tree with them."""
        found, base = self._found[tip], self.chance(tip)
        known = {each.candidate.token: each.candidate for each in found}
        merged = {token: self._common(each, guesses) for token, each in known.items()}
        merged |= {each.token: each for each in guesses if each.token not in merged}
        best = excluding(nlargest(width, merged.values(), key=lambda each: each.chance))
        self._found[tip] = [
            _Found(base * each.chance, tip, each, each.token not in known) for each in best
        ]
        fresh = (each.joint for each in self._found[tip] if each.is_new)
        return sum(joint for joint in fresh if joint >= self._least)

    def _common(self, known: Candidate, guesses: Sequence[Candidate]) -> Candidate:
        """What look-up proposes, surer where the model proposes it too."""
        same = next((each for each in guesses if each.token == known.token), None)
        if same is None or self._drafter is None:
            return known
        bins = int(known.chance * _COMMON_BINS), int(same.chance * _COMMON_BINS)
        kind: Hashable = ("both", *bins)
        prior = max(known.chance, same.chance)
        return Candidate(known.token, self._drafter.acceptance.chance(kind, prior), kind)

    def take(self, most: int | None) -> None:
        """Add the level's candidates, at most so many where look-up has no part; go on there."""
        every = [
            each for found in self._found.values() for each in found if each.joint >= self._least
        ]
        if self._drafter is not None:
            chosen = nlargest(self.ask.spec.max_nodes, every, key=lambda each: each.joint)
        else:
            chosen = every if most is None else nlargest(most, every, key=lambda each: each.joint)
            chosen = chosen[: self.ask.spec.max_nodes - len(self.tree)]
        self.tips = [self._add(each) for each in chosen]
        self._prune()

    def _add(self, found: _Found) -> int:
        token, chance, kind = found.candidate
        node = self.tree.add(found.tip, token, chance, kind)
        if self._longest:
            self._tails[node] = (*self._tails[found.tip], token)[-self._longest :]
        self.expected += self.tree.chances[node]
        return node

    def _prune(self) -> None:
        """Follow no tip that more than the allowed number of nodes are likelier than."""
        most = self.ask.spec.max_nodes
        if len(self.tree) > most:
            floor = nlargest(most, self.tree.chances)[-1]
            self.tips = [tip for tip in self.tips if self.tree.chances[tip] >= floor]
        elif len(self.tree) == most and self._drafter is None:
            self.tips = []

    def finished(self) -> TokenTree:
        """The tree, or its likeliest nodes where it grew larger than allowed."""
        most, chances = self.ask.spec.max_nodes, self.tree.chances
        if len(self.tree) <= most:
            return self.tree
        # Stable: of equals the parent comes first.
        likely = sorted(range(len(self.tree)), key=lambda node: -chances[node])
        return self.tree.take(likely[:most])
