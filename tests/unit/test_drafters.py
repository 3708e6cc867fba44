"""Model-free drafters: what followed before is proposed, and nothing else."""

from __future__ import annotations

import pytest

from giusto.core.plan import Spec
from giusto.spec.contexts import Contexts
from giusto.spec.drafter import Ask
from giusto.spec.lookup import LookupDrafter
from giusto.spec.ngram import NgramDrafter
from giusto.spec.suffix import SuffixDrafter
from giusto.spec.tree import ROOT, TokenTree

SPEC = Spec(depth=4, max_nodes=8, width=2)
DRAFTERS = (LookupDrafter, NgramDrafter, SuffixDrafter)


def ask(tokens: list[int], name: str = "a", spec: Spec = SPEC, room: int = 99, **more) -> Ask:
    return Ask(name, tokens, spec, room, **more)


def chain(tree: TokenTree) -> list[int]:
    """Tokens along the likeliest path."""
    tokens, node = [], ROOT
    while True:
        below = [n for n, parent in enumerate(tree.parents) if parent == node]
        if not below:
            return tokens
        node = max(below, key=lambda n: tree.chances[n])
        tokens.append(tree.tokens[node])


def test_contexts_find_the_longest_run():
    """A longer run tells more: it is preferred to a shorter one that was seen more often."""
    contexts = Contexts(3)
    contexts.learn([1, 2, 3, 9, 2, 3, 8, 2, 3, 8], 0)
    assert contexts.after([1, 2, 3]) == (3, {9: 1})
    assert contexts.after([7, 2, 3]) == (2, {9: 1, 8: 2})
    assert contexts.after([6]) == (0, {})


def test_contexts_may_be_taught_bit_by_bit():
    """Tokens told in pieces leave the same memory as told at once."""
    tokens = [1, 2, 1, 2, 3, 1, 2, 3, 3]
    whole, pieces = Contexts(3), Contexts(3)
    whole.learn(tokens, 0)
    for end in range(1, len(tokens) + 1):
        pieces.learn(tokens[:end], end - 1)
    for tail in ([1], [1, 2], [2, 3], [1, 2, 3], [3, 3]):
        assert whole.after(tail) == pieces.after(tail)


def test_contexts_forget_what_was_seen_longest_ago():
    """Memory is bounded: the runs that came up last are kept."""
    contexts = Contexts(1, most=2)
    contexts.learn([1, 2, 3, 4], 0)
    assert contexts.after([1]) == (0, {})
    assert contexts.after([3]) == (1, {4: 1})


def test_followers_of_a_run_are_bounded():
    """A run that anything may follow keeps the latest few."""
    contexts = Contexts(1)
    contexts.learn([token for n in range(100) for token in (7, 10 + n)], 0)
    _, counts = contexts.after([7])
    assert len(counts) == 16
    assert 109 in counts


@pytest.mark.parametrize("make", DRAFTERS)
def test_a_repeated_passage_is_continued(make):
    """The end of a text that stood there before is followed by what followed it then."""
    drafter = make()
    text = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4]
    (tree,) = drafter.draft([ask(text)])
    assert chain(tree)[:4] == [5, 6, 7, 8]


@pytest.mark.parametrize("make", DRAFTERS)
def test_nothing_is_proposed_after_new_text(make):
    """A text without repetition, or of one token, has no candidates."""
    drafter = make()
    assert [len(t) for t in drafter.draft([ask([1, 2, 3, 4]), ask([1], "b")])] == [0, 0]


@pytest.mark.parametrize("make", DRAFTERS)
@pytest.mark.parametrize(
    ("spec", "room"),
    [
        (Spec(depth=2, max_nodes=8, width=2), 99),
        (Spec(depth=8, max_nodes=2, width=2), 99),
        (SPEC, 1),
        (SPEC, 0),
        (Spec(), 99),
    ],
)
def test_ceilings_hold(make, spec: Spec, room: int):
    """No deeper than asked or than the answer may still grow, and no more nodes than allowed."""
    (tree,) = make().draft([ask([1, 2, 3, 4, 5, 6] * 4, spec=spec, room=room)])
    assert len(tree) <= spec.max_nodes
    assert max(tree.depths, default=0) <= min(spec.depth, room)


@pytest.mark.parametrize("make", DRAFTERS)
def test_a_request_is_followed_token_by_token(make):
    """What becomes known between two asks is learned, and forgotten with the request."""
    drafter = make()
    text = [1, 2, 3, 9, 9, 8]
    drafter.draft([ask(text)])
    text += [1, 2]
    drafter.draft([ask(text)])
    text += [3, 9]
    (tree,) = drafter.draft([ask(text)])
    assert chain(tree)[:2] == [9, 8]
    drafter.forget("a")
    drafter.forget("never heard of")
    (tree,) = drafter.draft([ask([3, 9], "a", is_private=True)])
    assert len(tree) == 0


@pytest.mark.parametrize("make", [LookupDrafter, SuffixDrafter])
def test_answers_are_shared_and_prompts_are_not(make):
    """What one request was answered is proposed to others; its prompt is not."""
    drafter = make()
    prompt, answer = [1, 2, 3, 4, 5], [11, 12, 13, 14, 15]
    drafter.draft([ask(prompt)])
    drafter.draft([ask(prompt + answer)])
    other, quotes = drafter.draft([ask([50, 11, 12], "b"), ask([50, 2, 3], "c")])
    assert chain(other)[:2] == [13, 14]
    assert len(quotes) == 0


@pytest.mark.parametrize("make", [LookupDrafter, SuffixDrafter])
def test_private_answers_stay_private(make):
    """A private request neither teaches others nor is told of them."""
    drafter = make()
    for end in (1, 6):
        drafter.draft([ask([1, 11, 12, 13, 14, 15][:end], is_private=True)])
    (tree,) = drafter.draft([ask([50, 11, 12], "b")])
    assert len(tree) == 0
    drafter.draft([ask([50, 11, 12, 13, 14], "b")])
    (tree,) = drafter.draft([ask([7, 12, 13], "c", is_private=True)])
    assert len(tree) == 0


def test_look_up_learns_what_its_guesses_are_worth():
    """Candidates that turn out wrong lose their chance, and are no longer proposed."""
    drafter = LookupDrafter()
    text = [1, 2, 3, 4, 5, 6, 1, 2, 3]
    (before,) = drafter.draft([ask(text)])
    for _ in range(200):
        (tree,) = drafter.draft([ask(text)])
        drafter.learn("a", tree, [99])
    (after,) = drafter.draft([ask(text)])
    assert sum(after.chances) < 0.2 * sum(before.chances)


def test_siblings_are_together_no_likelier_than_certain():
    """Chances of what excludes each other add up to one at most."""
    drafter = LookupDrafter()
    text = [1, 2, 3, 5, 1, 2, 4, 5, 1, 2]
    for _ in range(100):
        (tree,) = drafter.draft([ask(text)])
        drafter.learn("a", tree, [3])
        drafter.learn("a", tree, [4])
    (tree,) = drafter.draft([ask(text)])
    assert sum(tree.chances[n] for n, p in enumerate(tree.parents) if p == ROOT) <= 1 + 1e-9


def test_suffix_trees_are_as_large_as_their_match():
    """A match of two tokens allows four nodes, however many are asked for."""
    drafter = SuffixDrafter()
    spec = Spec(depth=32, max_nodes=32, width=4)
    text = [*range(1, 30), 90, 1, 2]
    (tree,) = drafter.draft([ask(text, spec=spec)])
    assert len(tree) == 4
    (tree,) = drafter.draft([ask([*range(1, 30), 90, *range(1, 9)], "b", spec=spec)])
    assert len(tree) == 16
