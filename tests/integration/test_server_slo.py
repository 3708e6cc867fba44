"""The verdict in the answer: measured from arrival, judged as the metrics judge."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fakes import FakeBackend, Script
from giusto.config import BUILT_IN_CLASSES, ApiKey, ServerSettings, ServiceClass
from giusto.core.request import Reason
from giusto.core.slo import BestEffort, Bounds, Program, Streaming
from giusto.server.app import create_app
from live import InProcess, error

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}
#: Tokens of the template around "hi", and of the scripted answer with its end token.
PROMPT_TOKENS, OUTPUT_TOKENS = 20, 14


@pytest.fixture
def backend():
    return FakeBackend()


@pytest.fixture
def api(backend):
    return InProcess(create_app(backend, ServerSettings()))


def verdict(api, slo=None, headers=None, **body):
    answer = api.post(CHAT, json={**HI, "slo": slo, **body}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["slo"]


def events(text):
    """The objects of an event stream, and whether it ended as it should."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [json.loads(line) for line in lines if line != "[DONE]"], lines[-1] == "[DONE]"


def test_a_stream_in_time_is_met_and_earns_all(api):
    assert verdict(api, {"ttft_ms": 500, "tpot_ms": 50}) == {
        "class": "default",
        "kind": "streaming",
        "targets": {"ttft_ms": 500.0, "tpot_ms": 50.0},
        "weight": 1.0,
        "raised": False,
        "ttft_ms": 50.0,
        "tpot_ms": 10.0,
        "e2e_ms": 180.0,
        "met": True,
        "gain": 1.0 * PROMPT_TOKENS + 2.0 * OUTPUT_TOKENS,
        "gain_possible": 1.0 * PROMPT_TOKENS + 2.0 * OUTPUT_TOKENS,
        "accepted_draft_tokens": 13,
        "demoted": None,
    }


def test_a_late_first_token_misses_and_earns_less(api):
    made = verdict(api, {"ttft_ms": 25})
    assert (made["met"], made["ttft_ms"]) == (False, 50.0)
    # Soft gain: half in time, half the prompt's value; nothing was promised for later tokens.
    expected = PROMPT_TOKENS / 2 + 2.0 / 2 + 2.0 * (OUTPUT_TOKENS - 1)
    assert made["gain"] == pytest.approx(expected)
    assert made["gain_possible"] == PROMPT_TOKENS + 2.0 * OUTPUT_TOKENS


@pytest.mark.parametrize(("deadline", "met"), [(181, True), (179, False)])
def test_a_deadline_is_judged_by_the_last_token(api, deadline, met):
    made = verdict(api, {"deadline_ms": deadline})
    assert (made["kind"], made["met"]) == ("deadline", met)


def test_best_effort_is_met_when_it_ends_and_earns_nothing(api):
    made = verdict(api)
    assert (made["kind"], made["met"]) == ("best_effort", True)
    assert (made["targets"], made["gain"], made["gain_possible"]) == ({}, 0.0, 0.0)


def test_time_before_the_server_counts_when_a_router_says_so(backend):
    settings = ServerSettings(keys=(ApiKey.of("router", "k", is_admin=True), ApiKey.of("a", "a")))
    app = create_app(backend, settings)
    headers = {"x-giusto-elapsed-ms": "1000"}
    made = verdict(InProcess(app, authorization="Bearer k"), {"ttft_ms": 500}, headers)
    assert (made["ttft_ms"], made["met"]) == (1050.0, False)
    refused = InProcess(app, authorization="Bearer a").post(CHAT, json=HI, headers=headers)
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "admin_key_required"


def test_arrival_is_when_the_head_is_there(backend):
    class Slow(FakeBackend):
        def encode(self, text, *, add_special_tokens=True):
            self.clock.advance(2.0)
            return super().encode(text, add_special_tokens=add_special_tokens)

    slow = Slow()
    began = slow.now()
    made = verdict(InProcess(create_app(slow, ServerSettings())), {"ttft_ms": 500})
    assert slow.submitted[0].arrival == began
    assert made["ttft_ms"] == 2050.0


def test_what_the_key_may_not_claim_is_raised_and_said(backend):
    key = ApiKey("a", ApiKey.of("a", "k").digest, bounds=Bounds(ttft=0.4, tpot=0.03))
    api = InProcess(create_app(backend, ServerSettings(keys=(key,))), authorization="Bearer k")
    made = verdict(api, {"ttft_ms": 1, "tpot_ms": 1})
    assert made["raised"] is True
    assert made["targets"] == {"ttft_ms": 400.0, "tpot_ms": 30.0}
    assert made["met"] is True
    assert backend.submitted[0].slo == Streaming(0.4, 0.03)


def test_a_demoted_stream_ends_normally_and_says_why(api, backend):
    backend.script = Script(demote=Reason.DEADLINE_PASSED, first_step=5.0)
    made = verdict(api, {"ttft_ms": 100})
    assert (made["met"], made["demoted"]) == (False, "deadline_passed")


def test_samples_count_once_and_all_must_be_in_time(api):
    made = verdict(api, {"ttft_ms": 500}, n=2)
    assert made["met"] is True
    assert made["gain"] == PROMPT_TOKENS + 2 * 2.0 * OUTPUT_TOKENS


def test_a_call_is_judged_with_its_program_from_its_opening(api, backend):
    backend.script.resolve = lambda ask: (Program(10.0), ask.arrival - 9.9)
    made = verdict(api, program={"id": "p", "deadline_ms": 10_000})
    assert (made["kind"], made["targets"]) == ("program", {"deadline_ms": 10_000.0})
    # 9.9 s had gone at arrival, 0.18 s more until the last token.
    assert made["met"] is False
    assert made["gain"] is None
    assert made["gain_possible"] == PROMPT_TOKENS + 2.0 * OUTPUT_TOKENS


def test_a_call_of_a_missed_program_is_best_effort(api, backend):
    backend.script.resolve = lambda ask: (BestEffort(), ask.arrival)
    made = verdict(api, program={"id": "p", "deadline_ms": 10_000})
    assert (made["kind"], made["met"]) == ("best_effort", True)


def test_the_submission_carries_program_class_and_cap(api, backend):
    verdict(api, {"class": "priority", "weight": 3}, program={"id": "p", "deadline_ms": 9000})
    ask = backend.submitted[0]
    assert (ask.service_class, ask.weight, ask.cap) == ("priority", 3.0, 2048)
    assert (ask.has_own_slo, ask.program.deadline) == (False, 9.0)


def test_headers_state_slos_and_sessions(api, backend):
    made = verdict(api, headers={"x-llm-d-slo-ttft-ms": "250", "x-session-id": "s1"})
    assert made["targets"] == {"ttft_ms": 250.0}
    assert backend.submitted[0].program.id == "/s1"


def test_only_the_last_chunk_has_the_verdict(api):
    body = {**HI, "stream": True, "slo": {"ttft_ms": 500}, "n": 2}
    chunks, ended = events(api.post(CHAT, json=body).text)
    assert ended
    assert ["slo" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1]["slo"]["met"] is True


def test_with_usage_the_verdict_rides_in_the_usage_chunk(api):
    body = {**HI, "stream": True, "stream_options": {"include_usage": True}}
    chunks, _ = events(api.post(CHAT, json=body).text)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == PROMPT_TOKENS + OUTPUT_TOKENS
    assert "slo" in chunks[-1]
    assert all("slo" not in chunk for chunk in chunks[:-1])


def test_token_ids_are_returned_when_asked_for(api):
    body = {**HI, "stream": True, "return_token_ids": True}
    chunks, _ = events(api.post(CHAT, json=body).text)
    ids = [i for chunk in chunks for i in chunk["choices"][0]["token_ids"]]
    assert ids == [*b"Hello, world!", 257]
    assert len(chunks[0]["prompt_token_ids"]) == PROMPT_TOKENS
    whole = api.post(CHAT, json={**HI, "return_token_ids": True}).json()
    assert whole["choices"][0]["token_ids"] == ids
    assert whole["prompt_token_ids"] == chunks[0]["prompt_token_ids"]


def test_a_failure_in_mid_stream_is_an_error_event_and_the_end(api, backend):
    backend.script.fail_after = 3
    response = api.post(CHAT, json={**HI, "stream": True})
    chunks, ended = events(response.text)
    assert response.status_code == 200
    assert not ended
    assert chunks[-1]["error"]["code"] == "engine_error"


def test_output_is_limited_by_class_context_and_request(api, backend):
    def limit(**body):
        backend.submitted.clear()
        assert api.post(CHAT, json={**HI, **body}).status_code == 200
        return backend.submitted[0].sampling.max_tokens

    assert limit() == 512 - PROMPT_TOKENS
    assert limit(max_tokens=7) == 7
    assert limit(max_tokens=7, max_completion_tokens=9) == 9
    backend.model = type(backend.model)("fake", "", 258, 100_000, {})
    assert limit() == 2048


def test_the_models_defaults_hold_unless_a_request_says_otherwise():
    backend = FakeBackend(defaults={"temperature": 0.2, "top_p": 0.9, "top_k": 50.0})
    api = InProcess(create_app(backend, ServerSettings()))
    api.post(CHAT, json={**HI, "top_p": 0.5, "temperature": None})
    sampling = backend.submitted[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.2, 0.5, 50)


def test_long_prompts_are_encoded_off_the_loop():
    backend = FakeBackend(max_model_len=100_000)
    api = InProcess(create_app(backend, ServerSettings()))
    body = {"messages": [{"role": "user", "content": "x" * 50_000}]}
    assert api.post(CHAT, json=body).json()["usage"]["prompt_tokens"] > 50_000


def test_a_class_lends_its_priority_to_requests_that_state_none(backend):
    classes = {**BUILT_IN_CLASSES, "default": ServiceClass("default", priority=7)}
    api = InProcess(create_app(backend, ServerSettings(classes=classes)))
    assert api.post(CHAT, json=HI).status_code == 200
    assert api.post(CHAT, json={**HI, "priority": 2}).status_code == 200
    assert [ask.priority for ask in backend.submitted] == [7, 2]


def test_a_priority_that_the_policy_would_ignore_is_refused(backend):
    backend.model = replace(backend.model, policy="edf")
    api = InProcess(create_app(backend, ServerSettings()))
    refusal = error(api.post(CHAT, json={**HI, "priority": 2}), 400)
    assert refusal["param"] == "priority" and "edf" in refusal["message"]
    assert api.post(CHAT, json={**HI, "priority": 0}).status_code == 200


def test_the_version_names_the_scheduling_policy(backend):
    backend.model = replace(backend.model, policy="edf")
    api = InProcess(create_app(backend, ServerSettings()))
    assert api.get("/version").json()["scheduling_policy"] == "edf"


def test_health_and_version_tell_of_speculation(backend):
    """How tokens are guessed ahead, and why they no longer are; requests are taken all the same."""
    backend.model = replace(backend.model, speculation="ngram:4")
    api = InProcess(create_app(backend, ServerSettings()))
    assert api.get("/version").json()["speculation"] == "ngram:4"
    assert api.get("/health").json() == {"status": "ok"}
    backend.degraded = "MemoryError while drafting"
    answer = api.get("/health")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "speculation": "off: MemoryError while drafting"}
