"""The program matcher under any events, sensible or not."""

from __future__ import annotations

from dataclasses import astuple
from itertools import pairwise
from math import isfinite

import pytest
from hypothesis import given
from hypothesis import strategies as st

from giusto.core.events import Arrived, Event, Finished, ProgramClosed, Rejected
from giusto.core.request import FinishReason, ProgramRef, Reason, Request, Submission
from giusto.programs.graph import Graph, Stage, new_tokens
from giusto.programs.growing import Call
from giusto.programs.history import History, Past
from giusto.programs.match import (
    MEMORY,
    NEW_WEIGHT,
    OUTPUT_WEIGHT,
    PROMPT_WEIGHT,
    Match,
    kernel,
)
from giusto.programs.matcher import HistoryMatcher

NAMES = ("a", "b", "c")
times = st.floats(-1e9, 1e9) | st.floats(0, 100)
lengths = st.tuples(st.integers(0, 5000), st.integers(1, 3000))
graphs = st.builds(
    Graph,
    st.sampled_from((None, *NAMES)),
    st.lists(
        st.builds(Stage, st.lists(lengths, min_size=1, max_size=3).map(tuple), st.floats(0, 3600)),
        min_size=1,
        max_size=5,
    ),
)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """A call with any place in any of a few programs, or in none."""
    names = st.sampled_from(NAMES)
    ref = ProgramRef(
        draw(names),
        draw(names),
        tuple(draw(st.lists(names, max_size=2))),
        draw(st.none() | st.integers(-3, 3) | st.integers()),
        draw(st.booleans()),
        draw(st.none() | names),
    )
    ask = Submission(
        draw(st.sampled_from([f"r{i}" for i in range(8)])),
        draw(times),
        draw(st.integers(1, 100_000)),
        program=ref if draw(st.integers(0, 9)) else None,
    )
    request = Request.of(ask)
    request.num_output_tokens = draw(st.integers(0, 5000))
    request.first_token = draw(st.none() | times)
    request.last_token = draw(st.none() | times)
    return request


ids = st.sampled_from([f"r{i}" for i in range(8)])
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(Arrived, requests(), times),
    st.builds(Finished, ids, times, st.sampled_from(FinishReason)),
    st.builds(Rejected, ids, times, st.just(Reason.QUEUE_FULL)),
    st.builds(
        ProgramClosed, st.sampled_from(NAMES), times, times, st.none(), st.none(), st.integers(0, 9)
    ),
)


@given(st.lists(graphs, max_size=6), st.lists(events, max_size=40))
def test_any_events_leave_a_sane_outlook(past: list[Graph], told: list[Event]) -> None:
    """Nothing raises; amounts are finite and not below 0, shares above 0 and at most 1; bounded."""
    matcher = HistoryMatcher((Past(graph) for graph in past), capacity=4, max_open=2)
    seen: list[Request] = []
    for event in told:
        matcher.observe(event)
        if isinstance(event, Arrived):
            assert isinstance(event.request, Request)
            seen.append(event.request)
        for request in seen:
            *amounts, share = astuple(matcher.outlook(request))
            assert all(isfinite(amount) and amount >= 0 for amount in amounts)
            assert 0 < share <= 1
        for name in NAMES:
            ahead = matcher.ahead(name)
            assert ahead is None or all(value >= 0 for value in astuple(ahead))
        assert len(matcher.history) <= 4


@given(
    st.lists(graphs, min_size=1, max_size=8),
    st.lists(st.lists(lengths, min_size=1, max_size=3), min_size=1, max_size=5),
)
def test_likeness_is_kept_up_as_if_counted_anew(
    past: list[Graph], calls: list[list[tuple[int, int]]]
) -> None:
    """Call by call it equals the mean of kernels over all calls so far; shorter ones go."""
    match = Match(past)
    for stage, beside in enumerate(calls):
        for number, (prompt, output) in enumerate(beside):
            new = new_tokens(prompt, calls[stage - 1] if stage else ())
            call = Call(stage, number, new, is_last=False)
            match.arrive(call, prompt)
            match.answer(call, output)
        found = match.likeness()
        assert [graph for graph, _ in found] == [g for g in past if g.num_stages > stage]
        mine = Graph(None, [Stage(tuple(each)) for each in calls[: stage + 1]])
        for graph, likeness in found:
            assert likeness == pytest.approx(slow_likeness(mine, graph), abs=1e-9)


def slow_likeness(mine: Graph, other: Graph) -> float:
    """The weighted mean of kernels, a stage counting a little less with each that followed."""
    total = most = 0.0
    for stage in range(mine.num_stages):
        remembered = MEMORY ** (mine.num_stages - 1 - stage)
        ours, theirs = mine.first[stage], other.first[stage]
        width = len(mine.stages[stage].calls)
        most += remembered * width
        for number in range(min(width, len(other.stages[stage].calls))):
            i, j = ours + number, theirs + number
            for weight, one, another in (
                (PROMPT_WEIGHT, mine.log_prompts, other.log_prompts),
                (NEW_WEIGHT, mine.log_news, other.log_news),
                (OUTPUT_WEIGHT, mine.log_outputs, other.log_outputs),
            ):
                total += remembered * weight * kernel(one[i] - another[j])
    return total / most


@given(st.lists(graphs, max_size=30), st.integers(1, 5), st.lists(st.floats(0, 1e7), max_size=30))
def test_history_keeps_the_newest_and_its_bound(
    past: list[Graph], capacity: int, when: list[float]
) -> None:
    """Whatever the order of times; medoids are among what is kept."""
    history = History(capacity=capacity)
    for graph, now in zip(past, when, strict=False):
        history.add(graph, now)
        kept = history.candidates(None)
        assert len(kept) == len(history) <= capacity
        assert graph in kept
        for app in (None, *NAMES):
            assert set(history.medoids(app)) <= set(kept)


@given(graphs, st.floats(1e-4, 1.0))
def test_shares_of_a_graph_rise_to_one(graph: Graph, token_time: float) -> None:
    """The present stage is included, so that none has no time at all."""
    shares = [graph.share(stage, token_time) for stage in range(graph.num_stages)]
    assert all(0 < share <= 1 + 1e-9 for share in shares)
    assert shares[-1] == pytest.approx(1.0)
    assert all(b >= a - 1e-9 for a, b in pairwise(shares))


@given(st.lists(events, max_size=30), st.integers(1, 5000))
def test_no_length_is_known_before_its_end(told: list[Event], other: int) -> None:
    """While a call is under way its tokens, emitted or hidden, change nothing that is foretold."""
    past = [Graph("a", [Stage(((100, 10 * i),))] * 3) for i in range(1, 5)]
    one, two = (HistoryMatcher(Past(graph) for graph in past) for _ in range(2))
    for event in told:
        one.observe(event)
        two.observe(event)
    ref = ProgramRef("p", "x", app="a")
    seen = []
    for matcher, emitted in ((one, 0), (two, other)):
        request = Request.of(Submission("x", 0.0, 100, program=ref))
        matcher.observe(Arrived(request, 0.0))
        request.num_output_tokens = emitted
        beside = Request.of(Submission("y", 0.0, 100, program=ref))
        matcher.observe(Arrived(beside, 0.0))
        seen.append((matcher.outlook(request), matcher.outlook(beside), matcher.ahead("p")))
    assert seen[0] == seen[1]
