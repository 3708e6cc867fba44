"""Requests: known and computed tokens, what is in flight, lateness."""

from __future__ import annotations

import pytest

from giusto.core.request import ProgramRef, Request, SamplingParams, Submission
from giusto.core.slo import Deadline, Streaming
from strategies import decoding, request


@pytest.mark.parametrize(
    "bad",
    [
        {"num_prompt_tokens": 0},
        {"num_prompt_tokens": 4, "n": 0},
        {"num_prompt_tokens": 4, "sampling": SamplingParams(max_tokens=0)},
        {"num_prompt_tokens": 4, "prompt_ids": (1, 2)},
    ],
)
def test_a_submission_has_work_to_do(bad: dict[str, object]) -> None:
    """An ask that could never end, or contradicts itself, cannot be made."""
    with pytest.raises(ValueError, match="prompt"):
        Submission("a", 0.0, **bad)


def test_samples_are_named_after_their_group() -> None:
    """The first keeps the id, siblings add their number."""
    ask = Submission("a", 1.0, 4, n=3)
    assert [Request.of(ask, i).id for i in range(3)] == ["a", "a#1", "a#2"]
    assert {Request.of(ask, i).group for i in range(3)} == {"a"}


def test_a_request_shows_its_place_in_a_program() -> None:
    """Program, call, parents, stage and app come from the reference; without one there is none."""
    ref = ProgramRef("p", "c", ("b",), 2, app="research")
    made = Request.of(Submission("a", 0.0, 4, program=ref))
    assert (made.program, made.call, made.parents, made.stage, made.app) == (
        ("p", "c", ("b",), 2, "research")
    )
    bare = request("a")
    assert (bare.program, bare.call, bare.parents, bare.stage, bare.app) == (
        (None, None, (), None, None)
    )


def test_a_prompt_computes_in_chunks_and_then_decodes() -> None:
    """The chunk that reaches the last known token makes another one known."""
    made = request("a", 10)
    made.launch(6)
    assert (made.num_remaining_tokens, made.num_in_flight_outputs) == (4, 0)
    made.land(6, 0)
    made.launch(4)
    assert (made.num_remaining_tokens, made.num_in_flight_outputs) == (1, 1)
    made.land(4, 0)
    made.emit([7], 1.0)
    assert (made.num_computed_tokens, made.num_tokens, made.num_remaining_tokens) == (10, 11, 1)


def test_a_step_may_be_planned_on_a_token_in_flight() -> None:
    """Two decodes out at once land one after the other."""
    made = decoding("a", 10)
    made.launch(1)
    made.launch(1)
    assert (made.num_in_flight_tokens, made.num_in_flight_outputs) == (2, 2)
    made.land(1, 0)
    made.emit([7], 1.0)
    assert (made.num_in_flight_outputs, made.num_remaining_tokens) == (1, 1)
    made.land(1, 0)
    made.emit([8], 2.0)
    assert (made.num_in_flight_tokens, made.num_in_flight_outputs) == (0, 0)
    assert (made.num_computed_tokens, made.num_tokens) == (12, 13)


def test_accepted_draft_tokens_count_as_computed() -> None:
    """A verified tree of which two nodes held yields three tokens, two of them computed."""
    made = decoding("a", 10)
    made.launch(1)
    made.land(1, 2)
    made.emit([7, 8, 9], 1.0)
    assert (made.num_computed_tokens, made.num_tokens, made.num_remaining_tokens) == (13, 14, 1)


def test_nothing_remains_beyond_the_output_limit() -> None:
    """With its last token in flight a request has nothing to be granted."""
    made = decoding("a", 10, max_tokens=2)
    made.launch(1)
    assert made.num_remaining_tokens == 0


def test_who_leaves_has_nothing_left_to_do() -> None:
    """A request that waits for its last commit gets no more grants."""
    made = decoding("a")
    made.is_leaving = True
    assert made.num_remaining_tokens == 0


def test_late_tokens_are_counted_as_they_come() -> None:
    """Token k of a stream is late after T + k * P, not at it."""
    made = request("a", slo=Streaming(1.0, 0.5))
    made.emit([1], 1.0)
    made.emit([2, 3], 1.75)
    assert made.late_tokens == 1
    assert (made.first_token, made.last_token, made.num_output_tokens) == (1.0, 1.75, 3)


def test_only_streams_have_late_tokens() -> None:
    """A deadline has one verdict, not one per token; an empty step changes nothing."""
    made = request("a", slo=Deadline(1.0))
    made.emit([], 3.0)
    assert made.first_token is None
    made.emit([1], 5.0)
    assert made.late_tokens == 0


def test_output_ids_exclude_the_prompt() -> None:
    """Ids are kept where the driver has text."""
    made = Request.of(Submission("a", 0.0, 2, prompt_ids=(5, 6)))
    made.emit([7, 8], 1.0)
    assert (made.token_ids, list(made.output_ids)) == ([5, 6, 7, 8], [7, 8])
    bare = request("b", 2)
    bare.emit([7], 1.0)
    assert (list(bare.output_ids), bare.num_output_tokens) == ([], 1)
