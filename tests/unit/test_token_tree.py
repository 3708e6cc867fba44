"""Token trees: numbers, paths, parts, who sees whom, and what a verdict says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from giusto.spec.acceptance import Acceptance
from giusto.spec.tree import ROOT, TokenTree


def bush() -> TokenTree:
    """Two branches: 5-6, 5-7-8 and 9."""
    tree = TokenTree()
    five = tree.add(ROOT, 5, 0.7, "a")
    nine = tree.add(ROOT, 9, 0.2, "b")
    assert (five, nine) == (0, 1)
    tree.add(five, 6, 0.3, "b")
    seven = tree.add(five, 7, 0.6, "a")
    tree.add(seven, 8, 0.5, "a")
    return tree


@st.composite
def trees(draw, most: int = 12) -> TokenTree:
    """Any tree, with chances between 0 and 1."""
    tree = TokenTree()
    for _ in range(draw(st.integers(0, most))):
        parent = draw(st.integers(ROOT, len(tree) - 1))
        token = draw(st.integers(0, 5))
        if tree.child(parent, token) is None:
            tree.add(parent, token, draw(st.floats(0.01, 1.0)), draw(st.sampled_from("ab")))
    return tree


def path(tree: TokenTree, node: int) -> list[int]:
    """Tokens from the root's child down to a node."""
    tokens: list[int] = []
    while node != ROOT:
        tokens.insert(0, tree.tokens[node])
        node = tree.parents[node]
    return tokens


def test_a_tree_knows_depths_and_the_chance_of_whole_paths():
    """A node lies one deeper than its parent, and is as likely as all of its path together."""
    tree = bush()
    assert tree.depths == [1, 1, 2, 2, 3]
    assert tree.chances == pytest.approx([0.7, 0.2, 0.21, 0.42, 0.21])
    assert tree.child(ROOT, 9) == 1
    assert tree.child(0, 7) == 3
    assert tree.child(0, 9) is None


def test_a_token_has_one_node_below_its_parent():
    """Two equal siblings would be one candidate: the second is refused, as is a strange parent."""
    tree = bush()
    with pytest.raises(ValueError, match="has token 6 already"):
        tree.add(0, 6)
    with pytest.raises(ValueError, match="no node 17"):
        tree.add(17, 1)


def test_a_part_is_laid_out_along_the_likeliest_path():
    """Depth first, likelier branches first: what will probably be accepted lies in one piece."""
    part = bush().take([1, 4, 3, 0, 2])
    assert part.tokens == [5, 7, 8, 6, 9]
    assert part.parents == [ROOT, 0, 1, 0, ROOT]
    assert part.chances == pytest.approx([0.7, 0.42, 0.21, 0.21, 0.2])


def test_a_node_is_not_taken_without_its_parent():
    """A candidate whose path is not verified cannot be either."""
    with pytest.raises(ValueError, match="missing"):
        bush().take([0, 4])


@given(trees(), st.data())
def test_parts_keep_paths(tree: TokenTree, data):
    """The part of any set of nodes with all their parents has the same paths and chances."""
    wanted = data.draw(st.sets(st.sampled_from(range(len(tree)))) if len(tree) else st.just(set()))
    closed = set()
    for leaf in wanted:
        node = leaf
        while node != ROOT:
            closed.add(node)
            node = tree.parents[node]
    part = tree.take(closed)
    here = {tuple(path(part, node)): part.chances[node] for node in range(len(part))}
    there = {tuple(path(tree, node)): tree.chances[node] for node in closed}
    assert here == there
    assert all(parent < node for node, parent in enumerate(part.parents))


@given(trees())
def test_a_node_sees_its_path_and_no_other(tree: TokenTree):
    """The root sees itself; a node sees the root, its ancestors and itself."""
    seen = tree.visibility()
    for row, sees in enumerate(seen):
        expected = {0, row}
        node = row - 1
        while node != ROOT:
            expected.add(node + 1)
            node = tree.parents[node]
        assert {column for column, is_seen in enumerate(sees) if is_seen} == expected


def test_verdicts_are_given_along_the_right_path_only():
    """Children of right nodes are judged, whether they were verified or not; others are unknown."""
    assert dict(bush().verdicts([5, 7, 3])) == {0: True, 1: False, 2: False, 3: True, 4: False}
    assert dict(bush().verdicts([9, 1])) == {0: False, 1: True}
    assert dict(bush().verdicts([4])) == {0: False, 1: False}
    assert dict(bush().verdicts([])) == {}


def test_acceptance_moves_from_the_prior_to_what_is_seen():
    """Unknown kinds have their prior; after many verdicts the prior no longer counts."""
    acceptance = Acceptance()
    assert acceptance.chance("a", 0.9) == 0.9
    tree = TokenTree()
    tree.add(ROOT, 1, 0.9, "a")
    for number in range(300):
        acceptance.learn(tree, [1 if number % 4 == 0 else 2])
    assert acceptance.chance("a", 0.9) == pytest.approx(0.25, abs=0.02)
    assert acceptance.chance("b", 0.4) == 0.4


def test_acceptance_follows_a_change():
    """Old verdicts fade: a thousand wrong ones later the kind is known to be wrong."""
    acceptance = Acceptance()
    tree = TokenTree()
    tree.add(ROOT, 1, 0.5, "a")
    for _ in range(1000):
        acceptance.learn(tree, [1])
    for _ in range(1000):
        acceptance.learn(tree, [2])
    assert acceptance.chance("a", 0.5) < 0.15
