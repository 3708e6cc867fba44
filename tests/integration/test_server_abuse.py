"""The abuse that other servers did not survive: a clear 4xx, and the next request is served.

The backend is a fake, so that it can be seen that nothing reaches it. `tests/e2e/test_abuse.py`
sends the same to a real engine and looks at its memory.
"""

from __future__ import annotations

import json
import socket

import pytest

from fakes import FakeBackend
from giusto.config import ServerSettings
from giusto.server.app import create_app
from live import InProcess, error, live

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def backend():
    """A backend; after each test no request is open in it."""
    made = FakeBackend()
    yield made
    assert made.open == set()


@pytest.fixture
def api(backend):
    return InProcess(create_app(backend, ServerSettings()))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 10**9}, "n"),
        ({"best_of": 10**9}, "best_of"),
        ({"logprobs": True, "top_logprobs": 10**6}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"max_completion_tokens": 10**9, "max_tokens": 1}, "max_completion_tokens"),
        ({"max_tokens": 5, "min_tokens": 6}, "min_tokens"),
        ({"priority": 2**63}, "priority"),
        ({"priority": -(2**31) - 1}, "priority"),
        ({"temperature": float("nan")}, "temperature"),
        ({"presence_penalty": float("inf")}, "presence_penalty"),
        ({"slo": {"deadline_ms": float("nan")}}, "slo.deadline_ms"),
        ({"slo": {"weight": float("inf")}}, "slo.weight"),
        ({"slo": {"deadline_ms": -1}}, "slo.deadline_ms"),
        ({"slo": {"class": "nope"}}, "slo.class"),
        ({"program": {"id": "p", "deadline_ms": float("-inf")}}, "program.deadline_ms"),
        ({"logit_bias": {"258": 1}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"²": 1}}, "logit_bias"),
        ({"stop_token_ids": [258]}, "stop_token_ids"),
        ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
        ({"tools": [{"type": "function", "function": {"parameters": {"pattern": "("}}}]}, "tools"),
        ({"structured_outputs": {"regex": "(" * 100}}, "structured_outputs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"chat_template": "{{ 9**9**9 }}"}, "chat_template"),
        ({"echo": True}, "echo"),
    ],
)
def test_abuse_is_a_400_that_names_the_field(api, backend, body, param):
    content = json.dumps({**HI, **body})
    response = api.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert error(response, 400)["param"] == param
    assert backend.submitted == []
    assert api.post(CHAT, json=HI).status_code == 200


def test_an_image_url_is_refused_and_never_fetched(api):
    part = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}
    body = {"messages": [{"role": "user", "content": [part]}]}
    assert error(api.post(CHAT, json=body), 400)["param"] == "messages[0].content[0].type"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "x" * 600}, "prompt"),
        ({"prompt": "x" * 100_000}, "prompt"),
        ({"prompt": [1] * 512}, "prompt"),
        ({"prompt": ["ok", "x" * 600]}, "prompt"),
        ({"prompt": "x" * 400, "max_tokens": 200}, "max_tokens"),
    ],
)
def test_what_exceeds_the_context_is_refused(api, backend, body, param):
    found = error(api.post("/v1/completions", json=body), 400)
    assert (found["code"], found["param"]) == ("context_length_exceeded", param)
    assert backend.submitted == []


@pytest.mark.parametrize("prompt", [[], "", [[]], ["a", []], [258], [[1], [258]]])
def test_senseless_prompts_are_refused(api, prompt):
    body = {"prompt": prompt, "add_special_tokens": False}
    assert error(api.post("/v1/completions", json=body), 400)["param"] == "prompt"


def test_prompts_times_n_is_bounded(api):
    body = {"prompt": ["a"] * 64, "n": 16}
    assert error(api.post("/v1/completions", json=body), 400)["param"] == "n"


def test_the_template_may_refuse(api):
    body = {"messages": [{"role": "user", "content": "refuse me"}]}
    assert error(api.post(CHAT, json=body), 400)["param"] == "messages"


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_only_json_is_read(api, content_type):
    headers = {} if content_type is None else {"content-type": content_type}
    response = api.post(CHAT, content=json.dumps(HI), headers=headers)
    assert error(response, 415)["code"] == "unsupported_media_type"


def test_compressed_bodies_are_refused(api):
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    error(api.post(CHAT, content=b"\x1f\x8b", headers=headers), 415)


def test_a_charset_is_fine(api):
    headers = {"content-type": "application/json; charset=utf-8"}
    assert api.post(CHAT, content=json.dumps(HI), headers=headers).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_a_413(backend, chunked):
    api = InProcess(create_app(backend, ServerSettings(max_body_bytes=2048)))
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 4096}]}).encode()

    async def pieces():
        for i in range(0, len(body), 512):
            yield body[i : i + 512]

    headers = {"content-type": "application/json"}
    response = api.post(CHAT, content=pieces() if chunked else body, headers=headers)
    assert error(response, 413)["code"] == "body_too_large"


@pytest.mark.parametrize("length", ["-1", "x", "9" * 5000, "²"])
def test_a_strange_content_length_is_refused(api, length):
    headers = {"content-type": "application/json", "content-length": length.encode("utf-8")}
    assert api.post(CHAT, content=b"{}", headers=headers).status_code in (400, 413)


def test_large_headers_are_a_431(backend):
    api = InProcess(create_app(backend, ServerSettings(max_header_bytes=2048)))
    found = error(api.get("/health", headers={"x-big": "x" * 4096}), 431)
    assert found["code"] == "headers_too_large"


def test_an_endless_header_is_cut_off(backend):
    settings = ServerSettings(max_header_bytes=2048)
    with live(create_app(backend, settings), settings) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Big: ")
            with pytest.raises(OSError):
                for _ in range(10_000):
                    connection.sendall(b"x" * 1024)
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(1024).startswith(b"HTTP/1.1 200")


def test_garbage_on_the_wire_does_not_stop_the_server(backend):
    settings = ServerSettings()
    with live(create_app(backend, settings), settings) as server:
        for garbage in (b"\x00\xff\xfe\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00"):
            with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
                connection.sendall(garbage)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1024)
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            connection.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(1024).startswith(b"HTTP/1.1 200")
