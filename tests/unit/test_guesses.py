"""The hidden world of speculation: one truth for all modes, seen through a noisy drafter."""

from __future__ import annotations

from collections import Counter

import pytest

from giusto.core.errors import ConfigError
from giusto.core.plan import Spec
from giusto.profiles.profile import DraftQuality
from giusto.sim.guesses import GuessDrafter, Guesses
from giusto.spec.drafter import Ask
from giusto.spec.tree import ROOT, TokenTree
from simulated import settings

QUALITIES = {"default": DraftQuality(0.7, 1.0), "hard": DraftQuality(0.2, 0.5)}
COUNT = 4000


def guesses(seed: int = 1) -> Guesses:
    return Guesses(QUALITIES, seed)


def ask(name: str = "a", position: int = 5, depth: int = 4, width: int = 2, **more) -> Ask:
    spec = Spec(depth=depth, width=width, max_nodes=more.pop("nodes", 64))
    return Ask(name, (), spec, more.pop("room", 99), position=position, **more)


def walk(world: Guesses, tree: TokenTree, name: str, position: int) -> int:
    """How many nodes of a tree are right."""
    node, count = ROOT, 0
    while True:
        child = tree.child(node, world.choice(name, position + count, "default"))
        if child is None:
            return count
        node, count = child, count + 1


def test_the_truth_is_a_function_of_seed_request_and_position():
    """Asked again, in any order and by another object, each position has the same choice."""
    first = [guesses().choice("a", p, "default") for p in range(50)]
    world = guesses()
    assert [world.choice("a", p, "default") for p in reversed(range(50))] == first[::-1]
    assert [guesses(2).choice("a", p, "default") for p in range(50)] != first
    assert [guesses().choice("b", p, "default") for p in range(50)] != first


def test_first_choices_are_as_often_right_as_the_level_says():
    """A draft of level 0.7 is right in some 67 % of positions, for hard ones weigh more."""
    world = guesses()
    counts = Counter(world.choice("a", p, "default") for p in range(COUNT))
    assert counts[1] / COUNT == pytest.approx(0.67, abs=0.03)
    assert counts[1] > counts[2] > counts[3] > counts[5]
    hard = Counter(world.choice("a", p, "hard") for p in range(COUNT))
    assert hard[1] / COUNT == pytest.approx(0.21, abs=0.03)


def test_every_mode_meets_the_same_tree():
    """What a chain has right, a beam that holds the chain has right too, as deep and no deeper."""
    world = guesses()
    for position in range(200):
        (chain,) = GuessDrafter(world).draft([ask(position=position, width=1)])
        (beam,) = GuessDrafter(world).draft([ask(position=position, width=8)])
        assert len(chain) == 4
        right = walk(world, chain, "a", position)
        for depth in range(right):
            assert world.choice("a", position + depth, "default") == 1
        assert walk(world, beam, "a", position) >= min(right, 1)


def test_beliefs_are_overconfident_and_calibration_mends_it():
    """Stated chances exceed what comes true where they are high; learned ones do not."""
    world = guesses()
    gaps = {}
    for calibrates in (False, True):
        drafter = GuessDrafter(world, calibrates=calibrates)
        stated = came = 0.0
        for position in range(2 * COUNT):
            (tree,) = drafter.draft([ask(position=position, depth=1, width=1)])
            choice = world.choice("a", position, "default")
            drafter.learn("a", tree, [choice])
            if position >= COUNT and tree.chances[0] > 0.8:
                stated += tree.chances[0]
                came += choice == 1
        gaps[calibrates] = stated / came - 1
    assert gaps[False] > 0.03
    assert abs(gaps[True]) < 0.02


def test_a_beam_keeps_the_likeliest_of_each_level():
    """Each level after the first holds as many nodes as the beam is wide, within the ceiling."""
    (tree,) = GuessDrafter(guesses()).draft([ask(depth=5, width=3)])
    assert Counter(tree.depths) == {1: 3, 2: 3, 3: 3, 4: 3, 5: 3}
    (tree,) = GuessDrafter(guesses()).draft([ask(depth=5, width=3, nodes=7)])
    assert len(tree) == 7
    (tree,) = GuessDrafter(guesses()).draft([ask(depth=5, width=3, room=2)])
    assert max(tree.depths) == 2


def test_a_static_tree_branches_as_it_is_told():
    """One, one, three, then each on its own."""
    drafter = GuessDrafter(guesses(), branching=(1, 1, 3, 1))
    (tree,) = drafter.draft([ask(depth=4, width=3)])
    assert Counter(tree.depths) == {1: 1, 2: 1, 3: 3, 4: 3}


def test_a_profile_without_a_draft_does_not_speculate():
    with pytest.raises(ConfigError, match="has no draft model"):
        settings(speculation="chain")
