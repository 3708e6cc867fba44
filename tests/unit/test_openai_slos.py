"""The promise of a request: operator's bounds, then body, then headers."""

from __future__ import annotations

import json

import pytest
from starlette.datastructures import Headers

from giusto.config import ApiKey, ServerSettings, ServiceClass
from giusto.core.errors import InvalidRequest
from giusto.core.request import ProgramRef
from giusto.core.slo import BestEffort, Bounds, Deadline, Streaming
from giusto.server.edge import ANYONE
from giusto.server.errors import ApiError
from giusto.server.openai import CHAT_FIELDS, ChatRequest, parse
from giusto.server.slos import arrival, resolve, tenant

CLASSES = {
    "default": ServiceClass("default"),
    "chat": ServiceClass("chat", Streaming(1.0, 0.1), weight=2.0, cap=100),
    "tool": ServiceClass("tool", Deadline(5.0)),
    "batch": ServiceClass("batch", BestEffort(30.0)),
    "agent": ServiceClass("agent", BestEffort(), program_deadline=60.0),
}
TIERS = {"priority": "chat", "default": "default", "flex": "batch"}
SETTINGS = ServerSettings(classes=CLASSES, tiers=TIERS)


def key(name="acme", **changes):
    return ApiKey(name, b"", tenant=name, **changes)


def promise(body=None, headers=None, caller=ANYONE, settings=SETTINGS):
    raw = {"messages": [{"role": "user", "content": "hi"}], **(body or {})}
    wire = parse(ChatRequest, CHAT_FIELDS, json.dumps(raw).encode())
    return resolve(wire, Headers(headers or {}), caller, settings, "call-1")


@pytest.mark.parametrize(
    ("slo", "expected"),
    [
        ({"ttft_ms": 500}, Streaming(ttft=0.5)),
        ({"tpot_ms": 50}, Streaming(tpot=0.05)),
        ({"ttft_ms": 500, "tpot_ms": 50}, Streaming(0.5, 0.05)),
        ({"deadline_ms": 2000}, Deadline(2.0)),
        ({"deadline_ms": 2000, "ttft_ms": None}, Deadline(2.0)),
        ({}, BestEffort()),
        (None, BestEffort()),
        ({"class": "tool"}, Deadline(5.0)),
        ({"class": "chat", "ttft_ms": 200}, Streaming(ttft=0.2)),
    ],
)
def test_the_body_states_the_slo(slo, expected):
    assert promise({"slo": slo}).slo == expected


def test_targets_are_ones_own_and_a_class_is_not():
    assert promise({"slo": {"ttft_ms": 500}}).is_own
    assert not promise({"slo": {"class": "chat"}}).is_own
    assert not promise({"service_tier": "priority"}).is_own


@pytest.mark.parametrize(
    "body",
    [
        {"slo": {"deadline_ms": 1, "ttft_ms": 1}},
        {"slo": {"deadline_ms": 1, "tpot_ms": 1}},
        {"vllm_xargs": {"slo_deadline_ms": 1, "slo_tpot_ms": 1}},
    ],
)
def test_both_kinds_of_targets_are_refused(body):
    with pytest.raises(InvalidRequest) as caught:
        promise(body)
    assert caught.value.code == "conflicting_slo"


def test_both_kinds_in_headers_are_refused():
    with pytest.raises(InvalidRequest):
        promise(headers={"x-giusto-deadline-ms": "5", "x-slo-ttft-ms": "5"})


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-llm-d-slo-ttft-ms": "500"}, Streaming(ttft=0.5)),
        ({"x-slo-ttft-ms": "500", "x-slo-tpot-ms": "50.5"}, Streaming(0.5, 0.0505)),
        ({"x-llm-d-slo-tpot-ms": "50", "x-slo-tpot-ms": "70"}, Streaming(tpot=0.05)),
        ({"x-giusto-deadline-ms": "2000"}, Deadline(2.0)),
        ({"x-llm-d-inference-objective": "tool"}, Deadline(5.0)),
        ({"x-llm-d-inference-objective": "of-the-gateway"}, BestEffort()),
    ],
)
def test_headers_state_the_slo(headers, expected):
    assert promise(headers=headers).slo == expected


def test_the_body_wins_over_headers_whole():
    made = promise({"slo": {"ttft_ms": 500}}, {"x-slo-tpot-ms": "5"})
    assert made.slo == Streaming(ttft=0.5)


def test_xargs_stand_between_body_and_headers():
    xargs = {"slo_ttft_ms": 300, "slo_class": "chat", "mine": [1, 2], "slope": 3}
    made = promise({"vllm_xargs": xargs}, {"x-slo-ttft-ms": "5"})
    assert (made.slo, made.service.name) == (Streaming(ttft=0.3), "chat")
    both = promise({"vllm_xargs": xargs, "slo": {"ttft_ms": 700}})
    assert both.slo == Streaming(ttft=0.7)


@pytest.mark.parametrize("value", ["nan", "inf", "-5", "0", "five", "1e12", "0x10", "5,5"])
@pytest.mark.parametrize("name", ["x-llm-d-slo-ttft-ms", "x-giusto-deadline-ms"])
def test_a_senseless_header_is_named(name, value):
    with pytest.raises(InvalidRequest) as caught:
        promise(headers={name: value})
    assert caught.value.param == name


def test_a_misspelt_xarg_is_refused_and_foreign_ones_are_not():
    with pytest.raises(InvalidRequest, match="did you mean 'ttft_ms'"):
        promise({"vllm_xargs": {"slo_ttft": 5}})


@pytest.mark.parametrize(
    ("tier", "service", "echo"),
    [
        ("priority", "chat", "priority"),
        ("fast", "chat", "priority"),
        ("default", "default", "default"),
        ("auto", "default", "default"),
        ("scale", "default", "default"),
        ("flex", "batch", "flex"),
        (None, "default", None),
    ],
)
def test_service_tiers_are_classes_and_are_echoed(tier, service, echo):
    made = promise({"service_tier": tier})
    assert (made.service.name, made.tier) == (service, echo)


def test_a_class_wins_over_a_tier_and_the_tier_used_is_echoed():
    made = promise({"service_tier": "flex", "slo": {"class": "chat"}})
    assert (made.service.name, made.tier) == ("chat", "priority")


def test_an_unknown_class_is_refused_with_the_nearest():
    with pytest.raises(InvalidRequest, match="did you mean 'chat'"):
        promise({"slo": {"class": "chta"}})


def test_a_key_has_its_own_default_class():
    caller = key(default_class="tool")
    assert promise(caller=caller).service.name == "tool"
    assert promise({"service_tier": "auto"}, caller=caller).service.name == "tool"
    assert promise({"service_tier": "flex"}, caller=caller).service.name == "batch"


@pytest.mark.parametrize(
    ("slo", "expected", "raised"),
    [
        ({"ttft_ms": 1, "tpot_ms": 1}, Streaming(0.5, 0.05), True),
        ({"ttft_ms": 600, "tpot_ms": 60}, Streaming(0.6, 0.06), False),
        ({"ttft_ms": 500, "tpot_ms": 50}, Streaming(0.5, 0.05), False),
        ({"deadline_ms": 1}, Deadline(2.0), True),
        ({"class": "chat"}, Streaming(1.0, 0.1), False),
        ({}, BestEffort(), False),
    ],
)
def test_what_is_beyond_the_keys_bounds_is_raised_and_said_so(slo, expected, raised):
    made = promise({"slo": slo}, caller=key(bounds=Bounds(0.5, 0.05, 2.0)))
    assert (made.slo, made.is_raised) == (expected, raised)


def test_headers_cannot_jump_the_queue_either():
    made = promise(headers={"x-slo-ttft-ms": "1"}, caller=key(bounds=Bounds(ttft=0.5)))
    assert (made.slo, made.is_raised) == (Streaming(ttft=0.5), True)


def test_weight_and_priority_are_bounded_by_key():
    caller = key(bounds=Bounds(weight=2.0), min_priority=-1)
    made = promise({"slo": {"weight": 100}, "priority": -9}, caller=caller)
    assert (made.weight, made.priority, made.is_raised) == (2.0, -1, True)
    meek = promise({"slo": {"weight": 1}, "priority": 9}, caller=caller)
    assert (meek.weight, meek.priority, meek.is_raised) == (1.0, 9, False)


def test_weight_comes_from_the_class_unless_it_is_stated():
    assert promise({"slo": {"class": "chat"}}).weight == 2.0
    assert promise({"slo": {"class": "chat", "weight": 0.5}}).weight == 0.5


def test_a_best_effort_key_gets_best_effort():
    made = promise(
        {"slo": {"ttft_ms": 1}, "program": {"id": "p", "deadline_ms": 1}},
        caller=key(best_effort_only=True),
    )
    assert (made.slo, made.is_raised) == (BestEffort(), True)
    assert made.program.deadline is None


def test_a_program_is_read_and_scoped_by_key():
    body = {
        "program": {
            "id": "p1",
            "deadline_ms": 60000,
            "call": "c2",
            "parents": ["c1"],
            "stage": 1,
            "final": True,
            "app": "research",
        }
    }
    expected = ProgramRef("acme/p1", "c2", ("c1",), 1, True, "research", 60.0)
    assert promise(body, caller=key()).program == expected
    other = promise(body, caller=key("rival")).program
    assert other.id == "rival/p1"


def test_a_call_is_named_after_its_request_unless_it_says_so():
    assert promise({"program": {"id": "p"}}).program.call == "call-1"


@pytest.mark.parametrize("header", ["x-session-id", "x-claude-code-session-id", "session_id"])
def test_a_session_groups_calls_without_a_promise(header):
    made = promise(headers={header: "s1"})
    assert made.program == ProgramRef("/s1", "call-1")
    assert made.slo == BestEffort()


def test_a_session_in_the_body_wins_over_one_in_headers():
    made = promise({"session_id": "s1"}, {"x-session-id": "s2"})
    assert made.program == ProgramRef("/s1", "call-1")


def test_a_session_with_a_program_deadline_is_a_program():
    headers = {"x-session-id": "s1", "x-giusto-program-deadline-ms": "9000"}
    assert promise(headers=headers).program == ProgramRef("/s1", "call-1", deadline=9.0)


def test_a_programs_deadline_is_bounded_by_key():
    made = promise(
        {"program": {"id": "p", "deadline_ms": 1}}, caller=key(bounds=Bounds(deadline=2.0))
    )
    assert (made.program.deadline, made.is_raised) == (2.0, True)


def test_a_program_without_a_deadline_has_its_classs():
    """By its id alone; its own deadline wins, and the key bounds either."""
    slo = {"class": "agent"}
    assert promise({"slo": slo, "program": {"id": "p"}}).program.deadline == 60.0
    assert promise({"slo": slo, "program": {"id": "p", "deadline_ms": 5}}).program.deadline == 0.005
    bound = key(bounds=Bounds(deadline=90.0))
    made = promise({"slo": slo, "program": {"id": "p"}}, caller=bound)
    assert (made.program.deadline, made.is_raised) == (90.0, True)


def test_a_session_has_no_deadline_from_its_class():
    """Agents send session headers unasked: their calls stay judged alone."""
    made = promise({"slo": {"class": "agent"}}, {"x-session-id": "s1"})
    assert made.program.deadline is None


def test_flat_xargs_state_a_program():
    made = promise({"vllm_xargs": {"program_id": "p", "program_deadline_ms": 500}})
    assert made.program == ProgramRef("/p", "call-1", deadline=0.5)


@pytest.mark.parametrize("program", [{"deadline_ms": 5}, {"call": "c"}, {"final": True}])
def test_a_program_needs_an_id(program):
    with pytest.raises(InvalidRequest) as caught:
        promise({"program": program})
    assert caught.value.param == "program.id"


def test_an_empty_program_is_none():
    assert promise({"program": {}}).program is None


def test_a_long_session_header_is_refused():
    with pytest.raises(InvalidRequest) as caught:
        promise(headers={"x-session-id": "s" * 257})
    assert caught.value.param == "x-session-id"


def test_time_already_spent_moves_the_arrival_for_admins_only():
    headers = Headers({"x-giusto-elapsed-ms": "1500"})
    assert arrival(headers, key(is_admin=True), 10.0) == 8.5
    with pytest.raises(ApiError) as caught:
        arrival(headers, key(), 10.0)
    assert caught.value.status == 403
    assert arrival(Headers({}), key(), 10.0) == 10.0


def test_an_ordinary_key_cannot_choose_its_tenant():
    headers = Headers({"x-llm-d-inference-fairness-id": "t1"})
    assert tenant(headers, ANYONE) == "t1"
    assert tenant(headers, key(is_admin=True)) == "t1"
    assert tenant(headers, key()) == "acme"
