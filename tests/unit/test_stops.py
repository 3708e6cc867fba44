"""Stop strings: what is shown is the text up to the first one, however the text is cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from giusto.engine.stops import StopMatcher


def run(pieces: list[str], stops: list[str]) -> tuple[list[str], StopMatcher]:
    matcher = StopMatcher(stops)
    shown = [matcher.feed(piece) for piece in pieces]
    return [*shown, matcher.flush()], matcher


def reference(text: str, stops: list[str]) -> tuple[str, bool]:
    """Read character by character and end as soon as a stop string is complete."""
    for end in range(len(text) + 1):
        starts = [end - len(s) for s in stops if s and text[:end].endswith(s)]
        if starts:
            return text[: min(starts)], True
    return text, False


def test_a_stop_across_pieces_is_found():
    """A stop string that three pieces make up ends the text before its first character."""
    shown, matcher = run(["one E", "N", "D two"], ["END"])
    assert shown == ["one ", "", "", ""]
    assert matcher.is_stopped


def test_a_beginning_of_a_stop_is_held_back_until_it_is_none():
    """What may begin a stop string is shown only once it turned out not to."""
    shown, matcher = run(["a<", "|", "b"], ["<|end|>"])
    assert shown == ["a", "", "<|b", ""]
    assert not matcher.is_stopped


def test_what_is_held_back_at_the_end_is_flushed_once():
    """An answer that ends within the beginning of a stop string shows that beginning."""
    matcher = StopMatcher(["END"])
    assert matcher.feed("the E") == "the "
    assert matcher.flush() == "E"
    assert matcher.flush() == ""


def test_nothing_is_shown_after_a_stop():
    """Text fed after the stop is dropped."""
    shown, _ = run(["a.b", "c", "d"], ["."])
    assert shown == ["a", "", "", ""]


@pytest.mark.parametrize(
    ("stops", "expected"), [(["cd", "b"], "a"), (["bcd", "c"], "a"), (["d", "abc"], "")]
)
def test_the_earliest_match_within_a_piece_wins(stops, expected):
    """Of several stop strings in one piece, the text ends before the one that begins first."""
    shown, _ = run(["abcd"], stops)
    assert "".join(shown) == expected


def test_an_overlapping_restart_is_found():
    """A stop string whose beginning repeats is found at its second attempt."""
    shown, matcher = run(["aa", "a", "ab", "x"], ["aab"])
    assert "".join(shown) == "aa"
    assert matcher.is_stopped


def test_empty_stops_never_match():
    """An empty stop string is ignored."""
    shown, matcher = run(["abc"], ["", ""])
    assert shown == ["abc", ""]
    assert not matcher.is_stopped


TEXT = st.text("abc", max_size=24)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


@st.composite
def split_texts(draw):
    text = draw(TEXT)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    borders = [0, *cuts, len(text)]
    return text, [text[a:b] for a, b in itertools.pairwise(borders)]


@given(split_texts(), STOPS)
def test_the_output_is_the_text_up_to_the_first_stop(split, stops):
    """However a text is cut, no stop string is ever shown and nothing before one is lost."""
    text, pieces = split
    shown, matcher = run(pieces, stops)
    output = "".join(shown)
    assert text.startswith(output)
    assert matcher.is_stopped == any(stop in text for stop in stops)
    assert not any(stop in output for stop in stops)
    if not matcher.is_stopped:
        assert output == text
    else:
        assert any(text[len(output) :].startswith(stop) for stop in stops)


@given(TEXT, STOPS)
def test_single_characters_give_the_text_before_the_stop_that_is_complete_first(text, stops):
    """Fed by characters, the text ends where a slow reader would end it."""
    shown, matcher = run(list(text), stops)
    assert ("".join(shown), matcher.is_stopped) == reference(text, stops)


@given(split_texts(), st.text("abc", min_size=1, max_size=4))
def test_one_stop_gives_the_same_output_for_every_split(split, stop):
    """With one stop string the output does not depend on where the text is cut."""
    text, pieces = split
    shown, _ = run(pieces, [stop])
    assert "".join(shown) == text.split(stop)[0]
