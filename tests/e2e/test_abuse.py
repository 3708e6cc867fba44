"""Hostile input against a live server: a clear refusal each time, and nothing is lost by it."""

from __future__ import annotations

import json
import socket
from concurrent import futures

import pytest

from served import served
from tiny_models import make_tiny

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
TEXT = {"prompt": "hi", "max_tokens": 4}
BIG = 10**12


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory):
    folder = make_tiny(tmp_path_factory.mktemp("e2e") / "tiny")
    with served("--model", str(folder), "--check") as running:
        yield running


@pytest.fixture
def server(shared_server):
    """The server; after each test it still answers, and all memory is free."""
    yield shared_server
    assert shared_server.post("/v1/completions", json=TEXT).status_code == 200
    shared_server.until_free()


def assert_refused(response, *statuses: int) -> dict:
    """A 4xx in OpenAI's shape, which says something."""
    assert response.status_code in (statuses or (400,)), response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert "Traceback" not in response.text
    return error


def send(server, body: str | bytes, path: str = "/v1/completions", **headers: str):
    data = body if isinstance(body, bytes) else body.encode()
    return server.post(path, content=data, headers={"Content-Type": "application/json"} | headers)


FIELDS = [
    ("n", [0, -1, 129, BIG, 1.5, "2", True]),
    ("best_of", [BIG]),
    ("max_tokens", [0, -5, BIG, "many"]),
    ("min_tokens", [-1, 5, BIG]),
    ("temperature", [-0.1, 1e9, "hot", [1]]),
    ("top_p", [-0.1, 1.1]),
    ("top_k", [BIG, -7, 1.5]),
    ("min_p", [-1, 2]),
    ("presence_penalty", [-3, 3, 1e300]),
    ("frequency_penalty", [-3, 3]),
    ("repetition_penalty", [0, -1, 1e9]),
    ("logit_bias", [{"99999": 1}, {"-1": 1}, {"x": 1}, {"5": 1e9}, {"5": "x"}, [1]]),
    ("stop", [["x"] * 1000, ["x" * 100_000], [1], {"a": 1}]),
    ("stop_token_ids", [[320], [-1], [BIG], ["a"], list(range(320)) * 100]),
    ("seed", [1.5, "x", 10**40]),
    ("priority", [BIG, -BIG, 10**30, 0.5, "high"]),
    ("cache_salt", ["x" * 1_000_000, 5]),
    ("slo", [5, "fast", {"tfft_ms": 1}, {"ttft_ms": -1}, {"ttft_ms": 0}, {"deadline_ms": 1e300}]),
    ("slo", [{"weight": -1}, {"weight": 1e300}, {"class": "nosuch"}, {"deadline_ms": 10**30}]),
    ("slo", [{"ttft_ms": 5, "deadline_ms": 5}, {"tpot_ms": "5"}, {"ttft_ms": True}]),
    ("program", [5, {"id": "x" * 10_000}, {"id": "p", "deadline_ms": -1}]),
    ("program", [{"id": "p", "stage": BIG}, {"id": "p", "parents": ["x"] * 10_000}]),
    ("stream", ["yes"]),
    ("tools", [[{"type": "function", "function": {"name": "f", "parameters": {"pattern": "("}}}]]),
    ("response_format", [{"type": "json_object"}, {"type": "json_schema", "json_schema": {}}]),
    ("prompt_embeds", ["AAAA"]),
    ("nonsense", [1]),
]
CASES = [(name, value) for name, values in FIELDS for value in values]


@pytest.mark.parametrize(
    ("name", "value"), CASES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(CASES)]
)
def test_a_field_out_of_range_is_refused(server, name, value):
    """Each impossible value is a 400 on either route that names the field."""
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)):
        error = assert_refused(server.post(path, json=body | {name: value}))
        assert name in f"{error['param']} {error['message']}"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize(
    "field",
    ["temperature", "top_p", "presence_penalty", "repetition_penalty", "min_p", "priority"],
)
def test_numbers_that_are_none_are_refused(server, field, number):
    """NaN and infinities are refused wherever a number belongs."""
    assert_refused(send(server, f'{{"prompt": "hi", "{field}": {number}}}'))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize("field", ["ttft_ms", "tpot_ms", "deadline_ms", "weight"])
def test_promises_that_are_no_numbers_are_refused(server, field, number):
    """So are they inside `slo`, `program`, and the headers that carry promises."""
    assert_refused(send(server, f'{{"prompt": "hi", "slo": {{"{field}": {number}}}}}'))
    program = f'{{"prompt": "hi", "program": {{"id": "p", "deadline_ms": {number}}}}}'
    assert_refused(send(server, program))
    for header in ("x-llm-d-slo-ttft-ms", "x-giusto-deadline-ms"):
        assert_refused(send(server, json.dumps(TEXT), **{header: number}))


PROMPTS = [
    "",
    [],
    [[]],
    [320],
    [-1],
    [BIG],
    [1, "a"],
    [[1], "a"],
    ["a"] * 1000,
    "x" * 100_000,
    [1] * 600,
    {"a": 1},
    None,
]


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_prompts_that_cannot_be_are_refused(server, prompt):
    """Empty, foreign, mixed, too many or too long prompts are a 400."""
    assert_refused(server.post("/v1/completions", json={"prompt": prompt}))


MESSAGES = [
    [],
    "hi",
    [5],
    [{"role": "boss", "content": "x"}],
    [{"role": "user", "content": 5}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}],
    [{"role": "user", "content": "x " * 50_000}],
    [{"role": "user", "content": "x"}] * 20_000,
]


@pytest.mark.parametrize("messages", MESSAGES, ids=range(len(MESSAGES)))
def test_messages_that_cannot_be_are_refused(server, messages):
    """So are messages of no known shape, and those that would fetch something."""
    assert_refused(server.post("/v1/chat/completions", json={"messages": messages}))


SURROGATE = '"\\ud800"'


@pytest.mark.parametrize(
    "body",
    [
        f'{{"prompt": {SURROGATE}}}',
        f'{{"prompt": "hi", "stop": {SURROGATE}}}',
        f'{{"prompt": "hi", "cache_salt": {SURROGATE}}}',
        f'{{"prompt": "hi", "user": {SURROGATE}}}',
        f'{{"prompt": "hi", "model": {SURROGATE}}}',
        f'{{"prompt": "hi", "program": {{"id": {SURROGATE}}}}}',
        f'{{"prompt": "hi", "slo": {{"class": {SURROGATE}}}}}',
        f'{{"prompt": "hi", {SURROGATE}: 1}}',
    ],
    ids=["prompt", "stop", "cache_salt", "user", "model", "program", "class", "name"],
)
def test_lone_surrogates_are_refused(server, body):
    """Half a character anywhere in the body is a 4xx, not a crash on the way out."""
    assert_refused(send(server, body), 400, 404)


def test_a_lone_surrogate_in_a_message_is_refused(server):
    """The same holds for chat."""
    body = f'{{"messages": [{{"role": "user", "content": {SURROGATE}}}]}}'
    assert_refused(send(server, body, "/v1/chat/completions"))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nul",
        b"[]",
        b'"text"',
        b"7",
        b"\xff\xfe\x00",
        b'{"prompt": "\xff"}',
        b'{"prompt": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"prompt": "hi", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": "a", "prompt": 5}',
    ],
    ids=range(12),
)
def test_what_is_no_request_is_refused(server, body):
    """Malformed, deeply nested and wrongly encoded bodies are a 400."""
    assert_refused(send(server, body))


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "image/png"])
def test_other_content_types_are_refused(server, kind):
    """A body that says it is no JSON is refused."""
    assert_refused(send(server, json.dumps(TEXT), **{"Content-Type": kind}), 400, 415)


def test_a_huge_body_is_refused(server):
    """A body beyond the cap is a 413, whatever is in it."""
    assert_refused(send(server, b'{"prompt": "' + b"x" * (5 << 20) + b'"}'), 413)


@pytest.mark.parametrize("size", [40_000, 60_000])
def test_huge_headers_are_refused(server, size):
    """Headers beyond the cap are a 431."""
    assert_refused(send(server, json.dumps(TEXT), **{"x-big": "x" * size}), 431)


def test_endless_headers_are_cut_off(server):
    """A head without end is closed on, not collected."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(b"GET /live HTTP/1.1\r\nHost: x\r\nx-big: ")
        with pytest.raises(ConnectionError):
            for _ in range(500):
                raw.sendall(b"x" * 65536)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-llm-d-slo-ttft-ms", "-5"),
        ("x-llm-d-slo-tpot-ms", "fast"),
        ("x-giusto-deadline-ms", "0"),
        ("x-giusto-deadline-ms", "9" * 400),
        ("x-giusto-program-deadline-ms", "-1"),
    ],
)
def test_promises_in_headers_are_checked(server, header, value):
    """A promise in a header is refused as it would be in the body."""
    assert_refused(send(server, json.dumps(TEXT), **{header: value}))


def test_an_operators_header_is_ignored_or_refused_without_a_key(server):
    """Elapsed time is the operator's to state: from anyone else it does not buy urgency."""
    answer = send(server, json.dumps(TEXT), **{"x-giusto-elapsed-ms": "1e12"})
    assert answer.status_code in (200, 400, 403)


def test_routes_that_are_not_there(server):
    """Unknown routes and methods are a 404 and a 405 that name what is there."""
    for path in ("/v1/responses", "/v1/embeddings", "/v1/../etc/passwd"):
        assert "/v1/chat/completions" in assert_refused(server.post(path, json={}), 404)["message"]
    assert_refused(server.get("/v1/chat/completions"), 405)


def test_one_id_for_two_requests_harms_neither(server):
    """Requests that name themselves alike at the same time both get an answer or a refusal."""
    body = json.dumps(TEXT | {"max_tokens": 100, "ignore_eos": True})
    with futures.ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(send, server, body, **{"x-request-id": "same"}) for _ in range(4)]
        statuses = [job.result().status_code for job in jobs]
    assert 200 in statuses
    assert all(status in (200, 400, 409) for status in statuses)


def test_clients_that_vanish_leave_nothing_behind(server):
    """Connections dropped mid-request and mid-answer free what they held."""
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps(TEXT | {"max_tokens": 400, "ignore_eos": True, "stream": True, "n": 3})
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    for cut in (10, len(head), len(head) + 5, None):
        with socket.create_connection((host, int(port)), timeout=20) as raw:
            raw.sendall((head + body)[:cut].encode())
            if cut is None:
                assert raw.recv(64).startswith(b"HTTP/1.1 200")
