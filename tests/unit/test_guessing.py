"""Drafting with a model, without one: where it is asked, and what its guesses are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from giusto.core.plan import Spec
from giusto.spec import modes
from giusto.spec.drafter import Ask
from giusto.spec.guessing import Computing, Guess, ModelDrafter, Tips
from giusto.spec.lookup import LookupDrafter
from giusto.spec.ngram import NgramDrafter
from giusto.spec.tree import ROOT, TokenTree

SPEC = Spec(depth=3, max_nodes=8, width=2)
#: Nothing in it repeats.
FRESH = [1, 2, 3, 4]
#: Its end was there before: 5 follows.
REPEATS = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4]


class Scripted:
    """A model whose guesses are a function of the path; remembers what it was asked."""

    def __init__(self, guesses: Callable[[list[int]], list[Guess]], room: int = 99) -> None:
        self.guesses = guesses
        self.room = room
        self.asked: list[list[tuple[str, tuple[int, ...]]]] = []
        self.forgotten: list[str] = []
        self._work = 0, 0

    def follow(self, asked: Sequence[Tips], width: int) -> list[list[list[Guess]]]:
        self.asked.append([(tips.ask.request_id, tuple(tips.nodes)) for tips in asked])
        self._work = self._work[0] + 1, self._work[1] + sum(len(tips.nodes) for tips in asked)
        return [
            [self.guesses(path_to(tips, node))[:width] for node in tips.nodes]
            if place < self.room
            else []
            for place, tips in enumerate(asked)
        ]

    def take_work(self) -> tuple[int, int]:
        work, self._work = self._work, (0, 0)
        return work

    def forget(self, request_id: str) -> None:
        self.forgotten.append(request_id)


def path_to(tips: Tips, node: int) -> list[int]:
    path: list[int] = []
    while node != ROOT:
        path.insert(0, tips.tree.tokens[node])
        node = tips.tree.parents[node]
    return path


def counting(path: list[int]) -> list[Guess]:
    """After a path of n tokens: 100 + 10 n, and the numbers after it, less and less likely."""
    first = 100 + 10 * len(path)
    return [(first + rank, chance) for rank, chance in enumerate((0.6, 0.25, 0.1))]


def ask(tokens: list[int] = FRESH, name: str = "a", spec: Spec = SPEC, room: int = 99) -> Ask:
    return Ask(name, tokens, spec, room)


def both(model: Scripted) -> ModelDrafter:
    return ModelDrafter(model, look_up=LookupDrafter())


# The model alone


def test_a_chain_is_the_first_choice_of_each_level():
    """As deep as asked, a pass each, with the model's own belief in the whole path."""
    model = Scripted(counting)
    (tree,) = ModelDrafter(model).draft([ask(spec=Spec(depth=4, max_nodes=4))])
    assert tree.tokens == [100, 110, 120, 130]
    assert tree.chances == pytest.approx([0.6, 0.36, 0.216, 0.1296])
    assert [nodes for [(_, nodes)] in model.asked] == [(ROOT,), (0,), (1,), (2,)]


def test_a_beam_keeps_the_likeliest_of_each_level():
    """Two a level: the second of the next is a child of the first, where that is likelier."""
    model = Scripted(counting)
    (tree,) = ModelDrafter(model).draft([ask(spec=Spec(depth=2, max_nodes=8, width=2))])
    assert list(zip(tree.tokens, tree.parents, strict=True)) == [
        (100, ROOT),
        (101, ROOT),
        (110, 0),
        (111, 0),
    ]


def test_a_static_tree_has_its_shape():
    """SpecInfer's tree with 23 tokens, root and all: one, one, three, then three chains."""
    mode = modes.mode("static")
    wish = mode.wish(None)
    model = Scripted(counting)
    (tree,) = mode.drafting(model).draft([ask(spec=wish.spec)])
    assert [tree.depths.count(depth) for depth in range(1, 10)] == [1, 1, 3, 3, 3, 3, 3, 3, 3]


def test_all_requests_are_computed_in_one_pass():
    """A level is one pass for all; who is satisfied is left out of the next."""
    model = Scripted(counting)
    specs = [Spec(depth=depth, max_nodes=4) for depth in (3, 1, 0)]
    asks = [ask(name=name, spec=spec) for name, spec in zip("abc", specs, strict=True)]
    trees = ModelDrafter(model).draft(asks)
    assert [len(tree) for tree in trees] == [3, 1, 0]
    assert [[name for name, _ in level] for level in model.asked] == [["a", "b"], ["a"], ["a"]]


def test_who_finds_no_room_has_no_candidates():
    """A model that serves fewer requests than ask costs the others nothing."""
    first, second = ModelDrafter(Scripted(counting, room=1)).draft([ask(), ask(name="b")])
    assert len(first) > 0
    assert len(second) == 0


@pytest.mark.parametrize("make", [ModelDrafter, both])
@pytest.mark.parametrize(
    ("spec", "room"),
    [
        (Spec(depth=2, max_nodes=8, width=2), 99),
        (Spec(depth=8, max_nodes=3, width=2), 99),
        (SPEC, 1),
        (SPEC, 0),
        (Spec(), 99),
    ],
)
def test_ceilings_hold(make, spec: Spec, room: int):
    """No deeper than asked or than the answer may still grow, and no more nodes than allowed."""
    (tree,) = make(Scripted(counting)).draft([ask(REPEATS, spec=spec, room=room)])
    assert len(tree) <= spec.max_nodes
    assert max(tree.depths, default=0) <= min(spec.depth, room)


# Beside look-up


def test_the_model_fills_what_look_up_leaves_open():
    """Where nothing is known the model guesses; look-up goes on where its tokens were seen."""
    model = Scripted(lambda path: [(5, 0.7)] if not path else [(100 + len(path), 0.7)])
    (tree,) = both(model).draft([ask([*REPEATS, 50])])
    assert tree.tokens[0] == 5
    assert tree.kinds[0][0] == "model"
    # 6 follows 5 in this text: look-up's, beside the model's own.
    assert {tree.tokens[node] for node in range(len(tree)) if tree.parents[node] == 0} == {6, 101}


def test_what_look_up_knows_for_sure_is_not_guessed():
    """A model is not asked where what is left open would not be drafted anyway."""
    model = Scripted(counting)
    drafter = both(model)
    spec = Spec(depth=1, max_nodes=4, width=2, least=0.3)
    for _ in range(50):
        (tree,) = drafter.draft([ask(REPEATS, spec=spec)])
        drafter.learn("a", tree, [5])
    model.asked.clear()
    (tree,) = drafter.draft([ask(REPEATS, spec=spec)])
    assert tree.tokens == [5]
    assert model.asked == []


def test_what_both_propose_is_a_kind_of_its_own():
    """Two that agree are right more often than either: it is learned."""
    drafter = both(Scripted(lambda path: [(5, 0.6)]))
    spec = Spec(depth=1, max_nodes=4, width=2)
    (before,) = drafter.draft([ask(REPEATS, spec=spec)])
    assert before.kinds[0][0] == "both"
    for _ in range(100):
        (tree,) = drafter.draft([ask(REPEATS, spec=spec)])
        drafter.learn("a", tree, [5])
    (after,) = drafter.draft([ask(REPEATS, spec=spec)])
    assert after.chances[0] > 0.95 > before.chances[0]


def test_beliefs_are_calibrated_beside_look_up():
    """Guesses that turn out wrong lose their chance, whatever the model believes."""
    drafter = both(Scripted(counting))
    (before,) = drafter.draft([ask()])
    for _ in range(200):
        (tree,) = drafter.draft([ask()])
        drafter.learn("a", tree, [9])
    (after,) = drafter.draft([ask()])
    assert sum(after.chances) < 0.2 * sum(before.chances)


def test_siblings_are_together_no_likelier_than_certain():
    """Chances of what excludes each other add up to one at most, whoever proposes."""
    drafter = both(Scripted(lambda path: [(90, 0.9), (91, 0.09)]))
    for drawn in (5, 90) * 60:
        (tree,) = drafter.draft([ask(REPEATS)])
        drafter.learn("a", tree, [drawn])
    (tree,) = drafter.draft([ask(REPEATS)])
    for parent in (ROOT, *range(len(tree))):
        base = 1.0 if parent == ROOT else tree.chances[parent]
        below = [n for n, each in enumerate(tree.parents) if each == parent]
        assert sum(tree.chances[n] for n in below) <= base + 1e-9


def test_a_tree_that_grew_too_large_keeps_its_likeliest_nodes():
    """Of everything found, what fits; no node without its parent."""
    spec = Spec(depth=4, max_nodes=3, width=3)
    (tree,) = both(Scripted(counting)).draft([ask(spec=spec)])
    assert len(tree) == 3
    assert tree.tokens == [100, 110, 101]


# Whether it pays


def test_a_level_that_does_not_pay_is_not_computed():
    """A pass must promise more tokens than it would be worth otherwise; look-up stays."""
    model = Scripted(counting)
    drafter = both(model)
    dear = Spec(depth=3, max_nodes=8, width=2, toll=2.0)
    (tree,) = drafter.draft([ask(REPEATS, spec=dear)])
    assert model.asked == []
    assert tree.tokens[:3] == [5, 6, 7]
    fair = Spec(depth=3, max_nodes=8, width=2, toll=0.12)
    drafter.draft([ask(FRESH, "b", fair)])
    assert 1 <= len(model.asked) < 3


def test_what_did_not_pay_is_tried_again():
    """After some steps without the model one is made with it, so that a change shows."""
    model = Scripted(counting)
    drafter = both(model)
    for _ in range(120):
        drafter.draft([ask(spec=Spec(depth=2, max_nodes=4, toll=2.0))])
    assert 2 <= len(model.asked) <= 4


def test_a_level_is_computed_for_many_where_it_would_not_be_for_one():
    """Requests share the price of a pass: tolls add up, and so does what it brings."""
    model = Scripted(lambda path: [(7, 0.9)])
    drafter = both(model)
    for _ in range(100):
        drafter.draft([ask(spec=Spec(depth=1, max_nodes=4))])
    model.asked.clear()
    drafter.draft([ask(spec=Spec(depth=1, max_nodes=4, toll=1.2))])
    assert model.asked == []
    drafter.draft([ask(name=name, spec=Spec(depth=1, max_nodes=4, toll=0.3)) for name in "abcd"])
    assert len(model.asked) == 1


# As a drafter


def test_a_model_has_a_price_and_look_up_has_none():
    """Passes and tokens are told once; drafters that compute nothing do not tell."""
    drafter = ModelDrafter(Scripted(counting))
    assert isinstance(drafter, Computing)
    assert not isinstance(NgramDrafter(), Computing)
    drafter.draft([ask(spec=Spec(depth=2, max_nodes=8, width=2))])
    assert drafter.take_work() == (2, 3)
    assert drafter.take_work() == (0, 0)


def test_a_request_that_ended_is_forgotten():
    """By the model, and by look-up."""
    model = Scripted(lambda path: [])
    drafter = both(model)
    drafter.draft([ask(REPEATS)])
    drafter.forget("a")
    assert model.forgotten == ["a"]
    (tree,) = drafter.draft([ask([3, 4])])
    assert len(tree) == 0


def test_an_empty_tree_is_no_failure():
    """A model that has nothing to say leaves look-up's candidates."""
    (tree,) = both(Scripted(lambda path: [])).draft([ask(REPEATS)])
    assert isinstance(tree, TokenTree)
    assert tree.tokens[:2] == [5, 6]


def test_modes_know_whether_a_model_is_of_use():
    """Chains, static trees and AdaServe need one, giusto takes one, look-ups do not."""
    needs = {name: modes.mode(name).needs_model for name in modes.NAMES if name != "off"}
    assert {name for name, is_needed in needs.items() if is_needed} == {
        "chain",
        "static",
        "adaserve",
    }
    assert modes.mode("giusto").takes_model
    assert not modes.mode("suffix").takes_model
