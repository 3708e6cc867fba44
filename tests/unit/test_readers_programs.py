"""Readers of programs: coding sessions, agent runs, dialogues and call graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from giusto.core.errors import ConfigError
from giusto.workload import records
from giusto.workload.readers import Options, Trace, read
from giusto.workload.readers.lmcache import TOKEN_TIME
from giusto.workload.records import Entry, Piece, Step

Row = dict[str, Any]


def load(reader: str, folder: Path, *rows: Row) -> Trace:
    path = folder / "file.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trace = read(f"{reader}:{path}", Options(max_tokens=64))
    records.write(folder / "again.jsonl", trace.entries)
    assert records.read(folder / "again.jsonl") == trace.entries
    assert not trace.is_timed
    return trace


def steps(entries: list[Entry]) -> dict[str, Step]:
    return {entry.step.call: entry.step for entry in entries if entry.step}


# Claude Code


def call(t: float, runs: list[list[int]], **more: object) -> Row:
    tokens = sum(count for _, count in runs) * 64 + 9
    return {"kind": "call", "t": t, "in": tokens, "out": 7, "hash_runs": runs, **more}


def agent(t: float, duration: float | None, *calls: Row) -> Row:
    ms = None if duration is None else duration * 1000
    return {"kind": "subagent", "t": t, "duration_ms": ms, "calls": list(calls)}


def session(*calls: Row, name: str = "s") -> Row:
    return {"id": name, "block_size": 64, "calls": list(calls)}


def test_a_session_is_a_chain_of_calls(tmp_path: Path) -> None:
    """Each call waits for the one before it, for as long as its client thought."""
    first = call(0.0, [[1, 2]], api_time=5.0, think_time=0.0)
    second = call(9.0, [[1, 2], [7, 1]], think_time=3.5)
    third = call(20.0, [[1, 2], [7, 1]])
    entries = load("claude-code", tmp_path, session(first, second, third)).entries
    assert steps(entries) == {
        "0": Step("s", "0", stage=0, app="claude-code"),
        "1": Step("s", "1", ("0",), 3.5, stage=1, app="claude-code"),
        "2": Step("s", "2", ("1",), 11.0, stage=2, is_final=True, app="claude-code"),
    }
    assert entries[0].pieces == (Piece("s/blocks", 64, 128),)
    assert entries[1].pieces == (Piece("s/blocks", 64, 128), Piece("s/blocks", 7 * 64, 64))
    assert {(entry.service_class, entry.max_tokens) for entry in entries} == {("agent", 64)}


def test_sub_agents_fan_out_and_in(tmp_path: Path) -> None:
    """They start after the call before them; the call after them waits for the last of each."""
    entries = load(
        "claude-code",
        tmp_path,
        session(
            call(0.0, [[1, 2]], api_time=5.0),
            agent(30.0, 24.0, call(0.0, [[50, 1]]), call(3.0, [[50, 2]], think_time=1.0)),
            agent(40.0, 33.0, call(0.0, [[50, 1]])),
            call(50.0, [[1, 3]], think_time=44.0),
        ),
    ).entries
    by_call = steps(entries)
    assert [entry.id for entry in entries] == ["s/0", "s/1.0", "s/1.1", "s/2.0", "s/3"]
    assert (by_call["1.0"].parents, by_call["1.0"].tool_time) == (("0",), 1.0)
    assert (by_call["1.1"].parents, by_call["1.1"].tool_time) == (("1.0",), 1.0)
    assert (by_call["2.0"].parents, by_call["2.0"].tool_time) == (("0",), 2.0)
    assert (by_call["3"].parents, by_call["3"].tool_time) == (("0", "1.1", "2.0"), 10.0)
    assert [by_call[name].stage for name in ("0", "1.0", "1.1", "2.0", "3")] == [0, 1, 2, 1, 3]
    assert [step.call for step in by_call.values() if step.is_final] == ["3"]


def test_nobody_waits_for_the_background(tmp_path: Path) -> None:
    """An agent without a duration starts when it was launched and leaves an open end."""
    entries = load(
        "claude-code",
        tmp_path,
        session(
            call(0.0, [[1, 2]], api_time=5.0),
            agent(6.0, None, call(0.0, [[50, 1]])),
            call(8.0, [[1, 3]], think_time=3.0),
        ),
    ).entries
    by_call = steps(entries)
    assert (by_call["1.0"].parents, by_call["1.0"].tool_time) == (("0",), 1.0)
    assert (by_call["2"].parents, by_call["2"].tool_time) == (("0",), 3.0)
    assert not any(step.is_final for step in by_call.values())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "s", "calls": []}, r"line 1, column block_size: is missing"),
        (session({"kind": "song", "t": 0}), r"calls\[0\].kind: expected call or subagent, got 's"),
        (session({"kind": "call", "t": 0, "in": 5, "out": 5}), r"column calls\[0\].hash_runs: "),
        (session({"kind": "call"}), r"column calls\[0\].t: is missing"),
        (session(), r"has no requests"),
        ({"block_size": 64}, r"column id: is missing"),
    ],
)
def test_a_malformed_session_is_refused(row: Row, message: str, tmp_path: Path) -> None:
    """The column is named with its place in the call list."""
    with pytest.raises(ConfigError, match=message):
        load("claude-code", tmp_path, row)


def test_programs_have_names_of_their_own(tmp_path: Path) -> None:
    """An id that comes twice is refused."""
    one = session(call(0.0, [[1, 1]]))
    with pytest.raises(ConfigError, match=r"file.jsonl line 2, column id: 's' is there twice"):
        load("claude-code", tmp_path, one, one)


# Agent runs


def turn(t: float, tokens: int, out: int, of: int = -1, shared: int = 0) -> Row:
    return {"t": t, "in": tokens, "out": out, "prefix_of": of, "prefix_tokens": shared}


@pytest.mark.parametrize("reader", ["mini-swe", "magentic"])
def test_a_run_grows_its_prompt(reader: str, tmp_path: Path) -> None:
    """A prompt begins as the one it names, for as long as that says."""
    run = [turn(0, 100, 50), turn(3, 130, 9, 0, 100), turn(4, 90, 5, 1, 80), turn(9, 80, 5, 2, 80)]
    entries = load(reader, tmp_path, {"id": "r", "calls": run}).entries
    assert [entry.pieces for entry in entries] == [
        (Piece("r/0/prompt", 0, 100),),
        (Piece("r/0/prompt", 0, 100), Piece("r/1/prompt", 100, 30)),
        (Piece("r/0/prompt", 0, 80), Piece("r/2/prompt", 80, 10)),
        (Piece("r/0/prompt", 0, 80),),
    ]
    by_call = steps(entries)
    assert [step.parents for step in by_call.values()] == [(), ("0",), ("1",), ("2",)]
    assert by_call["1"].tool_time == pytest.approx(3 - 50 * TOKEN_TIME)
    assert [step.is_final for step in by_call.values()] == [False, False, False, True]


def test_a_tool_takes_no_less_than_nothing(tmp_path: Path) -> None:
    """A gap shorter than the answer before it leaves nothing; a prompt not logged has one token."""
    run = [turn(0, 100, 5000), turn(3, 0, 9)]
    _, second = load("magentic", tmp_path, {"id": "r", "calls": run}).entries
    assert second.step is not None
    assert (second.step.tool_time, second.prompt_tokens) == (0.0, 1)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (turn(1, 9, 9, 1), r"column calls\[1\].prefix_of: expected an earlier call or -1, got 1"),
        (turn(1, 9, 9, 0, 101), r"column calls\[1\].prefix_tokens: 101 are more"),
        (turn(1, 9, 9, 0, 10), r"column calls\[1\].prefix_tokens: 10 are more"),
        (turn(1, 9, 9, -1, 5), r"column calls\[1\].prefix_tokens: 5 are more"),
    ],
)
def test_an_impossible_prefix_is_refused(second: Row, message: str, tmp_path: Path) -> None:
    """It must be of an earlier prompt and no longer than both."""
    with pytest.raises(ConfigError, match=message):
        load("mini-swe", tmp_path, {"id": "r", "calls": [turn(0, 100, 1), second]})


# Dialogues


def said(role: str, content: str | None, tokens: int) -> Row:
    return {"role": role, "content": content, "tokens": tokens}


def test_a_dialogue_is_one_growing_history(tmp_path: Path) -> None:
    """Prompts share what was said before, answers included; the system prompt is everyone's."""
    talk = [
        said("system", "policy", 1338),
        said("user", "hi", 3),
        said("assistant", "hello", 4),
        said("user", "book", 5),
        said("assistant", None, 6),
        said("tool", "{}", 2),
    ]
    entries = load(
        "tau", tmp_path, {"id": "a", "messages": talk}, {"id": "b", "messages": talk[:3]}
    ).entries
    first, second, other = entries
    assert (first.prompt_tokens, second.prompt_tokens) == (1341, 1350)
    assert second.pieces[:2] == first.pieces == other.pieces
    assert second.pieces[2] == Piece("a/0", 0, 4) == Piece(first.id, 0, first.output_tokens or 0)
    assert second.step == Step("a", "1", ("0",), stage=1, is_final=True, app="tau-bench")


def test_an_answer_needs_a_question(tmp_path: Path) -> None:
    """A dialogue cannot open with the assistant."""
    with pytest.raises(ConfigError, match=r"column messages\[0\].role: an assistant's message"):
        load("tau", tmp_path, {"id": "a", "messages": [said("assistant", "hi", 1)]})


# Call graphs


def span(name: str, start: float, end: float, **more: object) -> Row:
    row: Row = {"id": name, "parent": None, "start_s": start, "end_s": end, "in": 40, "out": 10}
    return row | {"max_tokens": 500, "input_messages": "[]", "output_messages": ""} | more


def messages(*texts: str | None) -> str:
    return json.dumps([{"role": "user", "content": text} for text in texts])


def test_a_span_waits_for_what_had_just_ended(tmp_path: Path) -> None:
    """One opens, two run side by side, one waits for both; order in the file does not matter."""
    spans = [
        span("join", 6.0, 8.0),
        span("open", 0.0, 2.0),
        span("left", 2.5, 5.0),
        span("right", 3.0, 5.5),
    ]
    entries = load("otel", tmp_path, {"id": "g", "spans": spans}).entries
    by_call = steps(entries)
    assert [entry.id for entry in entries] == ["g/open", "g/left", "g/right", "g/join"]
    assert (by_call["left"].parents, by_call["left"].tool_time) == (("open",), 0.5)
    assert (by_call["right"].parents, by_call["right"].tool_time) == (("open",), 1.0)
    assert (by_call["join"].parents, by_call["join"].tool_time) == (("left", "right"), 0.5)
    assert (by_call["join"].stage, by_call["join"].is_final) == (2, True)


def test_a_named_parent_is_enough(tmp_path: Path) -> None:
    """A span waits for its parent alone if that had ended, and by time if it had not."""
    spans = [
        span("a", 0.0, 1.0),
        span("b", 0.0, 2.0),
        span("c", 3.0, 4.0, parent="a"),
        span("d", 4.5, 6.0, parent="e"),
        span("e", 4.4, 9.0),
    ]
    by_call = steps(load("otel", tmp_path, {"id": "g", "spans": spans}).entries)
    assert (by_call["c"].parents, by_call["c"].tool_time) == (("a",), 2.0)
    assert by_call["d"].parents == ("c",)
    assert not any(step.is_final for step in by_call.values())


def test_calls_that_open_together_keep_their_distance(tmp_path: Path) -> None:
    """A call that waits for none arrives as long after the first as it did."""
    spans = [span("a", 1.0, 3.0), span("b", 2.5, 3.5)]
    entries = load("otel", tmp_path, {"id": "g", "spans": spans}).entries
    assert [(entry.arrival, entry.waits_for) for entry in entries] == [(0.0, ()), (1.5, ())]


def test_text_stands_in_for_counts(tmp_path: Path) -> None:
    """Four characters are a token; an earlier answer is its entry's, be it plain or a message."""
    answer = "twelve chars"
    unknown = {"in": None, "out": None, "max_tokens": None}
    spans = [
        span("a", 0.0, 1.0, input_messages=messages("eight ch"), output_messages=answer, **unknown),
        span(
            "b",
            2.0,
            3.0,
            input_messages=messages("eight ch", answer, None, "more"),
            output_messages=messages("x" * 41),
            **unknown | {"max_tokens": 9},
        ),
        span("c", 4.0, 5.0, input_messages=messages("x" * 41, "long" * 50)),
    ]
    first, second, third = load("otel", tmp_path, {"id": "g", "spans": spans}).entries
    assert (first.prompt_tokens, first.output_tokens, first.max_tokens) == (2, 3, 64)
    assert (second.prompt_tokens, second.output_tokens, second.max_tokens) == (6, 9, 9)
    assert second.pieces[0] == first.pieces[0]
    assert second.pieces[1] == Piece("g/a", 0, 3)
    assert third.prompt_tokens == 40
    assert [piece.tokens for piece in third.pieces] == [9, 31]


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([span("a", 0, 1), span("a", 2, 3)], r"column spans\[1\].id: 'a' is there twice"),
        ([span("a", 0, 1, parent="b")], r"column spans\[0\].parent: there is no span 'b'"),
        ([span("a", 2, 1)], r"column spans\[0\].end_s: must be at least 2"),
        ([span("a", 0, 1, input_messages="hi")], r"input_messages: expected a JSON list"),
        ([span("a", 0, 1, input_messages="[5]")], r"input_messages: expected a JSON list"),
        (
            [span("a", 0, 1, input_messages='[{"content": 5}]')],
            r"input_messages: expected a JSON list",
        ),
        ([span("a", 0, 1, max_tokens=0)], r"max_tokens: must be at least 1"),
    ],
)
def test_a_malformed_graph_is_refused(spans: list[Row], message: str, tmp_path: Path) -> None:
    """Ids, parents, times and messages must make sense."""
    with pytest.raises(ConfigError, match=message):
        load("otel", tmp_path, {"id": "g", "spans": spans})
