"""Requests out and events in, byte by byte."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from giusto.bench.wire import (
    Delta,
    Dialect,
    SloIn,
    SseParser,
    compose,
    error_text,
    read_event,
    refusal,
    spread,
)
from giusto.core.errors import ConfigError
from giusto.core.slo import Deadline, Streaming
from giusto.workload.records import Entry, Message, Step

HELLO = (Message("user", "hello"),)
CHAT = Entry("a", 0.0, "chat", HELLO, temperature=0.5, seed=3, slo=Streaming(0.5, 0.05))
CALL = Entry(
    "b",
    0.0,
    "agent",
    (Message("assistant", answer_of="first"), *HELLO),
    step=Step("p", "second", ("first",), deadline=9.0, stage=1, is_final=True),
)


def composed(entry: Entry, slo_in: SloIn) -> tuple[dict[str, object], dict[str, str]]:
    ask = compose(entry, {"first": "hi"}, Dialect("m", slo_in, "run-"))
    return ask.body, ask.headers


def test_other_servers_get_openais_fields_only() -> None:
    """Without a place for the SLO the body is plain."""
    body, headers = composed(CHAT, SloIn.NONE)
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 256,
        "temperature": 0.5,
        "seed": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert headers == {}


def test_a_stream_states_its_targets_in_the_body() -> None:
    """Targets are in milliseconds; the class rides in a header that others ignore."""
    body, headers = composed(CHAT, SloIn.BODY)
    assert body["slo"] == {"ttft_ms": 500.0, "tpot_ms": 50.0}
    assert headers == {"x-llm-d-inference-objective": "chat"}
    body, _ = composed(Entry("a", 0.0, messages=HELLO, slo=Deadline(2.0), weight=3.0), SloIn.BODY)
    assert body["slo"] == {"deadline_ms": 2000.0, "weight": 3.0}


def test_best_effort_says_so_in_openais_words() -> None:
    """No targets: the tier `flex`."""
    body, _ = composed(Entry("a", 0.0, messages=HELLO), SloIn.BODY)
    assert "slo" not in body
    assert body["service_tier"] == "flex"


def test_a_program_is_stated_with_its_calls() -> None:
    """Its id is made unique to the run; earlier answers are in the messages."""
    body, _ = composed(CALL, SloIn.BODY)
    assert body["program"] == {
        "id": "run-p",
        "call": "second",
        "parents": ["first"],
        "stage": 1,
        "final": True,
        "deadline_ms": 9000.0,
    }
    assert "slo" not in body
    assert "service_tier" not in body
    messages = body["messages"]
    assert isinstance(messages, list)
    assert messages[0] == {"role": "assistant", "content": "hi"}


def test_headers_carry_the_same() -> None:
    """Gateways and servers that read headers get the conventional names."""
    _, headers = composed(CHAT, SloIn.HEADERS)
    assert headers["x-llm-d-slo-ttft-ms"] == "500"
    assert headers["x-llm-d-slo-tpot-ms"] == "50"
    _, headers = composed(CALL, SloIn.HEADERS)
    assert headers["x-session-id"] == "run-p"
    assert headers["x-giusto-program-deadline-ms"] == "9000"


def test_a_prompt_is_completed_and_token_counts_are_not() -> None:
    """Plain prompts go to /v1/completions; an entry without text cannot be sent."""
    ask = compose(Entry("a", 0.0, prompt="x", top_p=0.9), {}, Dialect("m", SloIn.NONE))
    assert (ask.path, ask.body["prompt"], ask.body["top_p"]) == ("/v1/completions", "x", 0.9)
    with pytest.raises(ConfigError, match="has token counts only"):
        compose(Entry("a", 0.0, prompt_tokens=5), {}, Dialect("m", SloIn.NONE))


@given(st.lists(st.integers(0, 60), max_size=6))
def test_events_may_be_cut_anywhere(cuts: list[int]) -> None:
    """However the bytes come in, the same events come out."""
    stream = b': note\r\ndata: {"a": "\xc3\xa9"}\r\n\r\ndata: 2\n\nevent: x\ndata:3\n\n'
    parser = SseParser()
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    events = [e for a, b in pairwise(edges) for e in parser.feed(stream[a:b])]
    assert events == ['{"a": "é"}', "2", "3"]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"choices": [{"delta": {"role": "assistant", "content": ""}}]}, Delta()),
        ({"choices": [{"delta": {"content": "x"}}]}, Delta("x")),
        ({"choices": [{"delta": {"reasoning_content": "x"}}]}, Delta("x")),
        (
            {"choices": [{"delta": {"tool_calls": [{"function": {"arguments": "{"}}]}}]},
            Delta("{"),
        ),
        ({"choices": [{"text": "x", "finish_reason": "length"}]}, Delta("x", finish="length")),
        ({"choices": [{"delta": {"content": "x"}, "token_ids": [1, 2]}]}, Delta("x", 2)),
        (
            {"choices": [{"delta": {"content": "x"}}], "usage": {"completion_tokens": 3}},
            Delta("x", tokens_so_far=3, total_tokens=3),
        ),
        (
            {
                "choices": [],
                "usage": {
                    "prompt_tokens": 9,
                    "completion_tokens": 4,
                    "prompt_tokens_details": {"cached_tokens": 8},
                },
            },
            Delta(total_tokens=4, prompt_tokens=9, cached_tokens=8),
        ),
        ({"choices": [], "usage": None}, Delta()),
        ({"error": {"message": "out of memory"}}, Delta(error="out of memory")),
        ([], Delta(error="unreadable event '[]'")),
        ({"choices": [5]}, Delta(error="""unreadable event '{"choices": [5]}'""")),
        ({"usage": 5}, Delta(error="""unreadable event '{"usage": 5}'""")),
    ],
)
def test_events_of_many_servers_are_read(event: object, expected: Delta) -> None:
    """Text, token counts, usage, ends and errors are found where servers put them."""
    assert read_event(json.dumps(event)) == expected


def test_what_is_not_json_is_an_error() -> None:
    """It ends the request as failed instead of being skipped."""
    assert read_event("<html>").error == "unreadable event '<html>'"


def test_error_bodies_are_read() -> None:
    """OpenAI's shape, vLLM's older flat one, and plain text."""
    assert error_text({"error": {"message": "m"}}) == "m"
    assert error_text({"message": "m"}) == "m"
    assert error_text({"error": "m"}) == "m"
    assert error_text("m") == "m"


def test_refusals_have_a_reason() -> None:
    """429, 503 and 529 are refusals; the stated reason is kept, else the status."""
    body = {"error": {"code": "queue_full", "type": "rate_limit"}}
    assert refusal(429, {}, body) == "queue_full"
    assert refusal(503, {"x-llm-d-request-dropped-reason": "saturated"}, body) == "saturated"
    assert refusal(529, {}, "text") == "http_529"
    assert refusal(503, {}, {"error": "text"}) == "http_503"
    assert refusal(400, {}, body) is None


def test_tokens_of_one_event_share_its_time() -> None:
    """Counts per event are taken as they are when the final count agrees or is missing."""
    assert spread([(1.0, 1), (2.0, 3)], None) == (1.0, 2.0, 2.0, 2.0)
    assert spread([(1.0, 1), (2.0, 1)], 2) == (1.0, 2.0)
    assert spread([], 5) == ()


def test_the_final_count_wins() -> None:
    """Tokens that were not seen are spread over the events that brought some."""
    assert spread([(1.0, 1), (2.0, 1)], 4) == (1.0, 1.0, 2.0, 2.0)
    assert spread([(1.0, 1), (2.0, 1), (3.0, 1)], 1) == (3.0,)


@given(
    st.lists(st.tuples(st.floats(0, 10), st.integers(1, 4)), min_size=1, max_size=20),
    st.integers(1, 100),
)
def test_spreading_keeps_order_and_last(events: list[tuple[float, int]], total: int) -> None:
    """As many times as tokens, in order; the last is the last event's, the first too if it can."""
    events.sort()
    times = spread(events, total)
    assert len(times) == total
    assert list(times) == sorted(times)
    assert times[-1] == events[-1][0]
    if total >= sum(n for _, n in events):
        assert times[0] == events[0][0]
