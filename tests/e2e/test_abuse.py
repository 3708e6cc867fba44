"""Hostile input against a live server: a clear refusal each time, and nothing is lost by it.

After each test the engine that served it is idle and its scheduler's books are checked.
"""

from __future__ import annotations

import json
import socket
from concurrent import futures
from contextlib import contextmanager
from dataclasses import replace

import pytest

from giusto.config import ApiKey, ServerSettings
from giusto.core.slo import Bounds
from giusto.engine.settings import EngineSettings
from live import PATIENCE_S, running
from served import Watched
from tiny_models import make_tiny

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
TEXT = {"prompt": "hi", "max_tokens": 4}
BIG = 10**12
KEY, ROUTER_KEY = "open sesame", "I am the router"
BOUNDS = Bounds(ttft=0.4, tpot=0.03, deadline=2.0, weight=5.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server for all tests, with its engine in reach."""
    folder = make_tiny(tmp_path_factory.mktemp("e2e") / "tiny")
    keys = (
        replace(ApiKey.of("client", KEY), bounds=BOUNDS),
        ApiKey.of("router", ROUTER_KEY, is_admin=True),
    )
    engine = EngineSettings(model=str(folder), kv_cache_memory=2 << 20, device="cpu", check=True)
    with running(Watched(engine, ServerSettings(keys=keys), KEY)) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_leaked(server):
    """After each test the server still answers, and nothing of the test is left."""
    yield
    server.assert_nothing_leaked()


# That what is lost would be found


@contextmanager
def held_block(engine):
    """A block that somebody forgot to release."""
    blocks = engine.scheduler.pool.allocate(1)
    yield
    engine.scheduler.pool.release(blocks)


@contextmanager
def lost_block(engine):
    """A block that nobody holds and that is not free either."""
    pool = engine.scheduler.pool
    (block,) = pool.allocate(1)
    pool._refs[block] = 0
    yield
    pool._refs[block] = 1
    pool.release([block])


@contextmanager
def remembered_stop(engine):
    """A stop matcher of a request that has ended."""
    engine.runner._stops["gone"] = None
    yield
    del engine.runner._stops["gone"]


@pytest.mark.parametrize("leak", [held_block, lost_block, remembered_stop])
def test_a_leak_is_caught(server, leak):
    """The check that follows each test finds a single block, or a single request, that leaked."""
    with leak(server.engine), pytest.raises(AssertionError):
        server.assert_nothing_leaked()


# Requests that are refused


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


def connect(server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)


FIELDS = [
    ("n", [0, -1, 129, BIG, 1.5, "2", True]),
    ("best_of", [BIG]),
    ("logprobs", [BIG, -1]),
    ("top_logprobs", [BIG, 2, -1]),
    ("max_tokens", [0, -5, BIG, "many"]),
    ("max_completion_tokens", [BIG]),
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
    ("structured_outputs", [{"regex": "(" * 100}]),
    ("guided_regex", ["(a+)+$"]),
    ("chat_template", ["{{ 9**9**9 }}"]),
    ("echo", [True]),
    ("response_format", [{"type": "json_object"}, {"type": "json_schema", "json_schema": {}}]),
    ("prompt_embeds", ["AAAA"]),
    ("service_tier", ["urgent", 5]),
    ("session_id", ["x" * 10_000]),
    ("vllm_xargs", [{"slo_ttft_ms": -1}, {"slo_weight": BIG}, {str(i): i for i in range(1000)}]),
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


def test_prompts_times_samples_are_bounded(server):
    """Lists that are each allowed are refused where their product is not."""
    body = {"prompt": ["a"] * 64, "n": 16}
    assert assert_refused(server.post("/v1/completions", json=body))["param"] == "n"


@pytest.mark.parametrize("tokens", [[320], [-1], [BIG], ["a"], None, [1] * 2_000_000])
def test_tokens_that_are_none_are_refused(server, tokens):
    """Neither does `/detokenize` take tokens that are not in the vocabulary."""
    assert_refused(server.post("/detokenize", json={"tokens": tokens}), 400, 413)


MESSAGES = [
    [],
    "hi",
    [5],
    [{"role": "boss", "content": "x"}],
    [{"role": "user", "content": 5}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}],
    [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA"}}]}],
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
        b"\x80\x04N.",
        b'{"prompt": "\xff"}',
        b'{"prompt": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"prompt": "hi", "seed": ' + b"9" * 5000 + b"}",
        b'{"prompt": "a", "prompt": 5}',
    ],
    ids=range(13),
)
def test_what_is_no_request_is_refused(server, body):
    """Malformed, deeply nested and wrongly encoded bodies are a 400."""
    assert_refused(send(server, body))


@pytest.mark.parametrize(
    "kind", ["text/plain", "multipart/form-data; boundary=x", "application/x-pickle"]
)
def test_other_content_types_are_refused(server, kind):
    """A body that says it is no JSON is refused."""
    assert_refused(send(server, json.dumps(TEXT), **{"Content-Type": kind}), 400, 415)


def test_compressed_bodies_are_refused(server):
    """What might unfold without end is not unfolded."""
    assert_refused(send(server, b"\x1f\x8b", **{"Content-Encoding": "gzip"}), 415)


def test_a_huge_body_is_refused(server):
    """A body beyond the cap is a 413, whatever is in it, and whether or not it states its size."""
    assert_refused(send(server, b'{"prompt": "' + b"x" * (5 << 20) + b'"}'), 413)
    pieces = (b" " * (1 << 20) for _ in range(5))
    headers = {"Content-Type": "application/json"}
    assert_refused(server.post("/v1/completions", content=pieces, headers=headers), 413)


def test_the_refusal_of_a_huge_body_arrives(server):
    """Again and again, also when the client is still sending: the connection is not reset."""
    body = b'{"prompt": "' + b"x" * (5 << 20) + b'"}'
    for _ in range(20):
        assert_refused(send(server, body), 413)


def test_a_huge_body_that_never_comes_is_refused(server):
    """Who states a size beyond the cap and then says nothing is not waited for."""
    with connect(server) as raw:
        raw.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 99999999\r\n\r\n{"
        )
        assert raw.recv(64).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("length", [b"-1", b"x", b"9" * 5000])
def test_a_length_that_is_none_is_refused(server, length):
    """A body whose stated size is no size is a 4xx."""
    with connect(server) as raw:
        raw.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: " + length + b"\r\n\r\n{}"
        )
        assert raw.recv(64).startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize("garbage", [b"\x00\xff\xfe\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01"])
def test_garbage_on_the_wire_is_refused(server, garbage):
    """What is no HTTP at all gets a 400 or a closed connection."""
    with connect(server) as raw:
        raw.sendall(garbage)
        raw.shutdown(socket.SHUT_WR)
        assert raw.recv(64)[:12] in (b"", b"HTTP/1.1 400")


@pytest.mark.parametrize("size", [40_000, 60_000])
def test_huge_headers_are_refused(server, size):
    """Headers beyond the cap are a 431."""
    assert_refused(send(server, json.dumps(TEXT), **{"x-big": "x" * size}), 431)


def test_endless_headers_are_cut_off(server):
    """A head without end is closed on, not collected."""
    with connect(server) as raw:
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


@pytest.mark.parametrize(
    "credentials",
    [
        "",
        "Bearer",
        "Bearer open",
        f"Bearer {KEY}s",
        f"Basic {KEY}",
        b"Bearer \xff",
        f"Bearer {BIG}",
    ],
)
def test_wrong_keys_are_refused(server, credentials):
    """Whoever has no key of the server's gets a 401, on every route that says or does anything."""
    headers = {"Authorization": credentials}
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)):
        assert_refused(server.post(path, json=body, headers=headers), 401)
    for path in ("/v1/models", "/metrics", "/load"):
        assert_refused(server.get(path, headers=headers), 401)


def test_nobody_jumps_the_queue_beyond_a_keys_bounds(server):
    """A promise tighter than the key may claim is raised to its bound, and the answer says so."""
    body = TEXT | {"slo": {"ttft_ms": 1, "tpot_ms": 1, "weight": 1000}}
    slo = server.post("/v1/completions", json=body).json()["slo"]
    assert slo["raised"] is True
    assert (slo["targets"], slo["weight"]) == ({"ttft_ms": 400.0, "tpot_ms": 30.0}, 5.0)
    by_header = send(server, json.dumps(TEXT), **{"x-giusto-deadline-ms": "1"}).json()["slo"]
    assert (by_header["raised"], by_header["targets"]) == (True, {"deadline_ms": 2000.0})


def test_an_operators_header_is_refused_without_its_key(server):
    """Elapsed time is the operator's to state: from anyone else it does not buy urgency."""
    refusal = send(server, json.dumps(TEXT), **{"x-giusto-elapsed-ms": "1000"})
    assert assert_refused(refusal, 403)["param"] == "x-giusto-elapsed-ms"


def test_a_deadline_that_has_passed_is_told_as_missed(server):
    """A request that comes long after its deadline is answered, and not as if it were in time."""
    headers = {"Authorization": f"Bearer {ROUTER_KEY}", "x-giusto-elapsed-ms": "1e6"}
    answer = send(server, json.dumps(TEXT | {"slo": {"deadline_ms": 1000}}), **headers)
    slo = answer.json()["slo"]
    assert (slo["met"], slo["kind"]) == (False, "deadline")


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
    ask = {"prompt": ["hi", "ho"], "n": 3, "max_tokens": 400, "ignore_eos": True, "stream": True}
    body = json.dumps(ask)
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    for cut in (10, len(head), len(head) + 5, len(head + body), None):
        with connect(server) as raw:
            raw.sendall((head + body)[:cut].encode())
            if cut is None:
                assert raw.recv(64).startswith(b"HTTP/1.1 200")
