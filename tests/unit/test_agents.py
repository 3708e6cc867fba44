"""Programs of agents: order, sharing, shapes, and their critical path."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from giusto.workload.agents import (
    AGENTS,
    SYSTEM_TOKENS,
    TOOL_SYSTEM_TOKENS,
    answer,
    chain,
    critical_path,
    deep_research,
    map_reduce,
    reflection,
    said,
    tree_of_thought,
)
from giusto.workload.lengths import Fixed
from giusto.workload.records import Entry, Step, read, write

programs = st.builds(
    lambda name, seed: AGENTS[name]("p", 2.5, random.Random(seed)),
    st.sampled_from(list(AGENTS)),
    st.integers(0, 2**32 - 1),
)


def step(entry: Entry) -> Step:
    assert entry.step is not None
    return entry.step


def stages(calls: list[Entry]) -> list[int | None]:
    return [step(call).stage for call in calls]


def rng() -> random.Random:
    return random.Random(1)


@given(programs)
def test_calls_come_after_those_they_wait_for(calls: list[Entry]) -> None:
    """Ids and calls are unique, and a call's stage is one above its latest parent's."""
    stage: dict[str, int] = {}
    for call in calls:
        at = step(call)
        assert at.stage == 1 + max((stage[parent] for parent in at.parents), default=-1)
        stage[at.call] = at.stage
    assert len(stage) == len({call.id for call in calls}) == len(calls)
    assert {(step(call).program, call.arrival) for call in calls} == {("p", 2.5)}


@given(programs)
def test_the_last_call_alone_is_final_and_waits_for_all(calls: list[Entry]) -> None:
    """When it has ended, nothing of the program is under way."""
    behind = {step(calls[-1]).call}
    for call in reversed(calls):
        assert step(call).call in behind
        behind |= set(step(call).parents)
    assert [step(call).is_final for call in calls] == [False] * (len(calls) - 1) + [True]


@given(programs)
def test_prompts_are_made_of_named_pieces(calls: list[Entry]) -> None:
    """Pieces fill the prompt; quoted answers are whole and of calls that were waited for."""
    known = {call.id: call for call in calls}
    ancestors: dict[str, set[str]] = {}
    for call in calls:
        at = step(call)
        above = set(at.parents).union(*(ancestors[parent] for parent in at.parents))
        ancestors[at.call] = above
        assert sum(piece.tokens for piece in call.pieces) == call.prompt_tokens
        for piece in call.pieces:
            if piece.source in known:
                quoted = known[piece.source]
                assert piece == answer(quoted)
                assert step(quoted).call in above


@given(programs)
def test_answers_are_under_their_cap(calls: list[Entry]) -> None:
    """The recorded length is at least one token and never above the cap."""
    assert all(1 <= (call.output_tokens or 0) <= call.max_tokens for call in calls)


@pytest.mark.parametrize("name", AGENTS)
def test_programs_of_an_app_share_its_system_prompt(name: str) -> None:
    """The first piece of every prompt is the app's; what follows is the program's own."""
    one, two = (AGENTS[name](program, 0.0, random.Random(program)) for program in "ab")
    shared = {piece.source for call in one for piece in call.pieces} & {
        piece.source for call in two for piece in call.pieces
    }
    assert shared == {f"{name}/system"}
    (system,) = {call.pieces[0] for call in (*one, *two)}
    assert system.tokens in (SYSTEM_TOKENS, TOOL_SYSTEM_TOKENS)


@pytest.mark.parametrize("name", AGENTS)
def test_a_seed_fixes_a_program(name: str) -> None:
    """Equal generators give equal programs; others do not."""
    first, same, other = (AGENTS[name]("p", 0.0, random.Random(seed)) for seed in (1, 1, 2))
    assert first == same
    assert first != other


def test_a_chain_sees_all_that_went_before() -> None:
    """Each prompt begins with the one before it and its answer, after a tool's time."""
    calls = chain("p", 0.0, rng(), calls=Fixed(4))
    assert stages(calls) == [0, 1, 2, 3]
    assert [len(call.pieces) for call in calls] == [2, 4, 6, 8]
    for before, call in pairwise(calls):
        assert call.pieces[:-1] == said(before)
        assert step(call).tool_time > 0
    assert step(calls[0]).tool_time == 0


def test_map_reduce_spreads_and_gathers() -> None:
    """All maps share the plan's words; the last call quotes all of them."""
    calls = map_reduce("p", 0.0, rng(), parts=Fixed(3))
    plan, *maps, reduce = calls
    assert stages(calls) == [0, 1, 1, 1, 2]
    assert {call.pieces[:-1] for call in maps} == {said(plan)}
    assert step(reduce).parents == ("map-0", "map-1", "map-2")
    assert reduce.pieces[:-1] == (*said(plan), *map(answer, maps))


def test_a_tree_grows_only_what_was_kept() -> None:
    """By default 3, 1, 3 and 1 calls; all later thoughts begin with the one kept."""
    calls = tree_of_thought("p", 0.0, rng())
    assert stages(calls) == [0, 0, 0, 1, 2, 2, 2, 3]
    (path,) = {call.pieces[:-1] for call in calls[4:7]}
    assert path[:-1] == calls[0].pieces[:-1]
    assert path[-1] in map(answer, calls[:3])
    assert {step(call).parents for call in calls[4:7]} == {("vote-0",)}


def test_a_wide_beam_grows_each_kept_thought() -> None:
    """Two kept of two, each grown twice, are four thoughts on the second level."""
    calls = tree_of_thought("p", 0.0, rng(), breadth=2, depth=2, beam=5)
    assert stages(calls) == [0, 0, 1, 2, 2, 2, 2, 3]
    assert len({call.pieces[:-1] for call in calls[3:7]}) == 2
    with pytest.raises(ValueError, match="must be at least 1"):
        tree_of_thought("p", 0.0, rng(), beam=0)


@pytest.mark.parametrize(("again", "turns"), [(0.0, 1), (1.0, 3)])
def test_reflection_ends_when_content_or_tired(again: float, turns: int) -> None:
    """One round at least, `rounds` at most, each a critique and a revision in sequence."""
    calls = reflection("p", 0.0, rng(), again=again, rounds=3)
    assert len(calls) == 1 + 2 * turns
    assert all(call.pieces[:-1] == said(before) for before, call in pairwise(calls))


def test_reflection_loops_vary() -> None:
    """Programs of one seed each differ in their rounds."""
    sizes = {len(reflection("p", 0.0, random.Random(seed))) for seed in range(60)}
    assert sizes == {3, 5, 7, 9}


@pytest.mark.parametrize(
    ("follow_up", "depth", "size"), [(0.0, 2, 2), (1.0, 0, 2), (1.0, 1, 6), (1.0, 2, 14)]
)
def test_research_follows_up_to_its_depth(follow_up: float, depth: int, size: int) -> None:
    """Two searches with 0, 2 or 2 + 4 follow-ups each; the report quotes every reading."""
    calls = deep_research("p", 0.0, rng(), searches=Fixed(2), follow_up=follow_up, depth=depth)
    plan, *readings, report = calls
    assert len(readings) == size
    assert step(report).parents == tuple(step(call).call for call in readings)
    assert report.pieces[:-1] == (*said(plan), *map(answer, readings))
    assert all(step(call).tool_time > 0 for call in readings)


def test_an_answer_needs_a_length() -> None:
    """A call of unknown length cannot be quoted by count."""
    with pytest.raises(ValueError, match="has no recorded length"):
        answer(Entry("a", 0.0, prompt_tokens=3))


# Critical path


def slow_path(calls: list[Entry], last: Entry) -> float:
    """Longest of all paths that end in `last`, each walked on its own."""
    known = {step(call).call: call for call in calls}
    own = float(last.output_tokens or 0)
    if not step(last).parents:
        return own
    return (
        own
        + step(last).tool_time
        + max(slow_path(calls, known[name]) for name in step(last).parents)
    )


@given(programs.filter(lambda calls: len(calls) < 14))
def test_the_critical_path_is_the_longest_of_all(calls: list[Entry]) -> None:
    """Against walking every path."""
    expected = max(slow_path(calls, call) for call in calls)
    assert critical_path(calls, lambda call: float(call.output_tokens or 0)) == pytest.approx(
        expected
    )


def test_the_critical_path_of_a_small_graph() -> None:
    """A fork whose long branch has a slow tool; a root's tool time is nobody's wait."""

    def call(name: str, parents: tuple[str, ...] = (), tool: float = 0.0) -> Entry:
        return Entry(name, 9.0, prompt_tokens=1, step=Step("p", name, parents, tool))

    calls = [
        call("a", tool=50.0),
        call("b", ("a",), tool=4.0),
        call("c", ("a",)),
        call("d", ("c",)),
        call("e", ("b", "d"), tool=0.5),
    ]
    seconds = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 2.5, "e": 1.0}
    assert critical_path(calls, lambda entry: seconds[entry.id]) == 1.0 + 6.0 + 1.5
    with pytest.raises(ValueError, match="is in no program"):
        critical_path([Entry("x", 0.0, prompt_tokens=1)], lambda entry: 1.0)


# The file


@given(calls=programs)
def test_a_program_survives_its_file(
    tmp_path_factory: pytest.TempPathFactory, calls: list[Entry]
) -> None:
    """Written and read back, every call is equal."""
    path: Path = tmp_path_factory.mktemp("agents") / "program.jsonl"
    write(path, calls)
    assert read(path) == calls
