"""Texts as token counts, with what later calls share of earlier ones."""

from __future__ import annotations

from dataclasses import replace

from giusto.sim.asks import Asks
from giusto.workload.measured import Counts, asked, measured
from giusto.workload.records import Entry, Message, Piece, Step

SYSTEM = Message("system", "You sum up.")
FIRST = Entry("p.a", 0.0, messages=(SYSTEM, Message("user", "Minutes")), step=Step("p", "a"))
SECOND = Entry(
    "p.b",
    0.0,
    messages=(
        *FIRST.messages,
        Message("assistant", answer_of="a"),
        Message("user", "Now a mail"),
    ),
    step=Step("p", "b"),
)
COUNTS = {"p.a": Counts(40, 12), "p.b": Counts(70, 9)}


def test_texts_become_counts() -> None:
    """Prompt and answer have the tokens that were counted, at least one; all else is kept."""
    single = Entry("s", 1.0, prompt="Hello", max_tokens=9, tenant="t", weight=2.0)
    (made,) = measured([single], {"s": Counts(3, 0)})
    assert made == replace(
        single, prompt=None, prompt_tokens=3, output_tokens=1, pieces=(Piece(asked(single), 0, 3),)
    )


def test_what_nobody_counted_is_left_out() -> None:
    """Entries without counts are dropped, and nothing is shared with them."""
    assert measured([FIRST, SECOND], {}) == []
    (made,) = measured([FIRST, SECOND], {"p.b": COUNTS["p.b"]})
    assert made.pieces == (Piece(asked(SECOND), 0, 70),)


def test_a_call_that_goes_on_shares_prompt_and_answer() -> None:
    """Its prompt begins with the parent's prompt, then the parent's answer, then its own."""
    first, second = measured([FIRST, SECOND], COUNTS)
    assert first.pieces == (Piece(asked(FIRST), 0, 40),)
    assert second.pieces == (
        Piece(asked(FIRST), 0, 40),
        Piece("p.a", 0, 12),
        Piece(asked(SECOND), 0, 18),
    )


def test_quoting_is_not_going_on() -> None:
    """An answer that is quoted after other messages than its own shares nothing."""
    quoting = replace(SECOND, messages=SECOND.messages[1:])
    _, made = measured([FIRST, quoting], COUNTS)
    assert made.pieces == (Piece(asked(quoting), 0, 70),)


def test_nothing_is_shared_with_another_program() -> None:
    """The same call name in another program is another call."""
    other = replace(SECOND, id="q.b", step=Step("q", "b"))
    _, made = measured([FIRST, other], {**COUNTS, "q.b": Counts(70, 9)})
    assert made.pieces == (Piece(asked(other), 0, 70),)


def test_counts_that_do_not_fit_share_nothing() -> None:
    """A template that drops part of the history makes a prompt no longer than what it quotes."""
    _, made = measured([FIRST, SECOND], {**COUNTS, "p.b": Counts(52, 9)})
    assert made.pieces == (Piece(asked(SECOND), 0, 52),)


def test_shared_pieces_are_the_same_tokens() -> None:
    """What the simulator asks with begins with the parent's very tokens."""
    first, second = measured([FIRST, SECOND], COUNTS)
    asks = Asks(quoted={first.id})
    parent, child = asks.ask(first, 0.0), asks.ask(second, 0.0)
    assert child.prompt_ids[:40] == parent.prompt_ids
    answer = (parent.sampling.seed or 0) << 32
    assert child.prompt_ids[40:52] == tuple(answer + k for k in range(12))
    assert len(child.prompt_ids) == 70
