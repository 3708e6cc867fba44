"""Every route, who may call it, and its errors in OpenAI's shape."""

from __future__ import annotations

import hashlib
import logging

import httpx
import pytest

from fakes import FakeBackend, Script
from giusto.config import ApiKey, ServerSettings
from giusto.core.events import Event
from giusto.core.request import Reason
from giusto.server.app import create_app
from giusto.server.backend import ReplicaView
from giusto.server.errors import MESSAGES
from live import InProcess, error, live

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def backend():
    return FakeBackend()


@pytest.fixture
def api(backend):
    yield InProcess(create_app(backend, ServerSettings()))
    assert backend.open == set()


# Routes


def test_version_names_the_server(api):
    answer = api.get("/version").json()
    assert answer["server"] == "giusto"
    assert answer["version"]


def test_load_is_exactly_the_replica_view(api):
    assert set(api.get("/load").json()) == set(ReplicaView.__dataclass_fields__)


def test_metrics_speak_prometheus(api):
    api.post(CHAT, json=HI)
    page = api.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    assert "giusto_" in page.text


def test_metrics_come_from_the_collector_that_is_handed_in(backend):
    class Collector:
        def __init__(self):
            self.seen = []

        def observe(self, event: Event) -> None:
            self.seen.append(type(event).__name__)

        def render(self):
            return b"one 1\n", "text/plain; version=1.0.0"

    collector = Collector()
    api = InProcess(create_app(backend, ServerSettings(), collector))
    api.post(CHAT, json=HI)
    page = api.get("/metrics")
    assert (page.content, page.headers["content-type"]) == (
        b"one 1\n",
        "text/plain; version=1.0.0",
    )
    assert collector.seen == ["Arrived", "Finished"]


def test_tokenize_and_detokenize_are_inverse(api):
    answer = api.post("/tokenize", json={"prompt": "héllo", "return_token_strs": True}).json()
    assert (answer["count"], answer["max_model_len"]) == (7, 512)
    assert len(answer["token_strs"]) == 7
    assert api.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": "héllo"}


def test_tokenize_renders_messages_as_chat_does(api, backend):
    ids = api.post("/tokenize", json=HI).json()["tokens"]
    api.post(CHAT, json=HI)
    assert tuple(ids) == backend.submitted[0].prompt_ids


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", **HI}, "prompt"),
        ("/tokenize", {"promt": "a"}, "promt"),
        ("/detokenize", {"tokens": [258]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
    ],
)
def test_token_routes_refuse_what_they_cannot_do(api, path, body, param):
    assert error(api.post(path, json=body), 400)["param"] == param


def test_closing_a_program_reaches_the_backend_scoped(backend):
    settings = ServerSettings(keys=(ApiKey.of("acme", "sesame"),))
    api = InProcess(create_app(backend, settings), authorization="Bearer sesame")
    assert api.post("/v1/programs/a/b/close").json()["closed"] is True
    assert backend.closed_programs == ["acme/a/b"]
    error(api.post(f"/v1/programs/{'x' * 300}/close"), 400)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/responses"),
        ("POST", "/v1/embeddings"),
        ("GET", "/nowhere"),
        ("GET", "/health/"),
        ("DELETE", "/v1"),
    ],
)
def test_a_route_that_is_not_there_names_what_is(api, method, path):
    found = error(api.request(method, path), 404)
    assert "/v1/chat/completions" in found["message"]


def test_a_wrong_method_names_the_right_one(api):
    response = api.get(CHAT)
    assert "POST" in error(response, 405)["message"]
    assert response.headers["allow"] == "POST"


def test_a_model_may_have_several_names(backend):
    api = InProcess(create_app(backend, ServerSettings(served_model_names=("a/b", "c"))))
    assert [m["id"] for m in api.get("/v1/models").json()["data"]] == ["a/b", "c"]
    assert api.get("/v1/models/a/b").json()["id"] == "a/b"
    assert api.post(CHAT, json={**HI, "model": "c"}).json()["model"] == "c"
    assert api.post(CHAT, json=HI).json()["model"] == "a/b"
    error(api.get("/v1/models/fake"), 404)


# Keys


@pytest.mark.parametrize(
    "header",
    [None, "Bearer wrong", "Basic sesame", "sesame", "Bearer", "Bearer ", "Bearer sesam\xe9"],
)
def test_only_the_key_opens(backend, header):
    settings = ServerSettings(keys=(ApiKey.of("a", "other"), ApiKey.of("b", "sesame")))
    app = create_app(backend, settings)
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    for method, path in [
        ("POST", CHAT),
        ("POST", "/v1/completions"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("POST", "/v1/programs/p/close"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/fake"),
        ("GET", "/metrics"),
        ("GET", "/load"),
        ("GET", "/debug/requests/x"),
    ]:
        response = InProcess(app).request(method, path, headers=headers)
        assert error(response, 401)["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/health", "/live", "/version"])
def test_probes_need_no_key(backend, path):
    settings = ServerSettings(keys=(ApiKey.of("a", "sesame"),))
    assert InProcess(create_app(backend, settings)).get(path).status_code == 200


def test_every_key_is_compared_in_constant_time(backend, monkeypatch):
    compared = []

    def compare(a, b):
        compared.append((len(a), len(b)))
        return a == b

    monkeypatch.setattr("giusto.server.edge.hmac.compare_digest", compare)
    settings = ServerSettings(keys=tuple(ApiKey.of(n, n) for n in ("a", "b", "c")))
    api = InProcess(create_app(backend, settings), authorization="Bearer a")
    assert api.get("/v1/models").status_code == 200
    # No early exit, and digests of one length whatever the length of the secret.
    assert compared == [(hashlib.sha256().digest_size,) * 2] * 3


def test_why_a_request_stands_where_it_stands_is_told_to_admins_only(backend):
    """An open request is explained under an admin key; others have no such key, or no such id."""
    keys = (ApiKey.of("user", "u"), ApiKey.of("boss", "b", is_admin=True))
    app = create_app(backend, ServerSettings(keys=keys))
    backend.open.add("chatcmpl-1")
    path = "/debug/requests/chatcmpl-1"
    user, boss = (InProcess(app, authorization=f"Bearer {secret}") for secret in "ub")
    assert error(user.get(path), 403)["code"] == "admin_key_required"
    assert boss.get(path).json() == {"id": "chatcmpl-1", "state": "running"}
    assert error(boss.get("/debug/requests/gone"), 404)["code"] == "request_not_found"
    backend.open.clear()


def test_an_open_server_has_no_admin(api):
    """Without keys nobody is an admin."""
    assert error(api.get("/debug/requests/x"), 403)["code"] == "admin_key_required"


# Identity, origins, logs


def test_a_sane_request_id_is_kept_and_another_is_replaced(api, backend):
    kept = api.post(CHAT, json=HI, headers={"x-request-id": "my-id.1"})
    assert kept.headers["x-request-id"] == "my-id.1"
    assert kept.json()["id"].startswith("chatcmpl-my-id.1-")
    made = api.post(CHAT, json=HI, headers={"x-request-id": "a b\tc"})
    assert made.json()["id"] == f"chatcmpl-{made.headers['x-request-id']}"


def test_two_requests_of_one_name_do_not_meet(api, backend):
    for _ in range(2):
        api.post(CHAT, json=HI, headers={"x-request-id": "same"})
    first, second = backend.submitted
    assert first.id != second.id


def test_a_call_is_named_after_the_clients_request_id(api, backend):
    headers = {"x-request-id": "r7", "x-session-id": "s"}
    api.post(CHAT, json=HI, headers=headers)
    assert backend.submitted[0].program.call == "r7"


def test_origins_are_closed_by_default(api):
    response = api.get("/health", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in response.headers


def test_a_root_path_is_what_a_proxy_has_stripped(backend):
    settings = ServerSettings(root_path="/llm", log_level="warning")
    with live(create_app(backend, settings), settings) as server:
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert httpx.post(f"{server.url}{CHAT}", json=HI).status_code == 200
        document = httpx.get(f"{server.url}/openapi.json").json()
    assert document["servers"] == [{"url": "/llm"}]


def test_allowed_origins_may_call(backend):
    settings = ServerSettings(allowed_origins=("https://app.example",))
    api = InProcess(create_app(backend, settings))
    response = api.post(CHAT, json=HI, headers={"origin": "https://app.example"})
    assert response.headers["access-control-allow-origin"] == "https://app.example"
    other = api.get("/health", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    preflight = {"origin": "https://app.example", "access-control-request-method": "POST"}
    assert api.request("OPTIONS", CHAT, headers=preflight).status_code == 200


def test_neither_prompts_nor_keys_are_logged(backend, caplog):
    caplog.set_level(logging.DEBUG)
    settings = ServerSettings(keys=(ApiKey.of("a", "sesame-key"),))
    api = InProcess(create_app(backend, settings), authorization="Bearer sesame-key")
    body = {"messages": [{"role": "user", "content": "my-private-thought"}]}
    api.post(CHAT, json=body)
    api.post(CHAT, json={**body, "temperature": "my-private-thought"})
    backend.script = Script(die_after=1)
    api.post(CHAT, json=body)
    assert "my-private-thought" not in caplog.text
    assert "sesame-key" not in caplog.text


# Refusals


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (Reason.QUEUE_FULL, 429),
        (Reason.QUEUE_TOKENS_FULL, 429),
        (Reason.DEADLINE_UNREACHABLE, 429),
        (Reason.DEADLINE_PASSED, 429),
        (Reason.PROGRAM_MISSED, 429),
        (Reason.DRAINING, 503),
        (Reason.TOO_LARGE, 400),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_has_a_status_and_a_reason(api, backend, reason, status, stream):
    backend.script = Script(refuse=reason, retry_after=0.2)
    response = api.post(CHAT, json={**HI, "stream": stream})
    assert error(response, status)["code"] == reason.value
    assert ("retry-after" in response.headers) == (status != 400)


def test_every_reason_has_a_message():
    assert set(MESSAGES) == set(Reason)


def test_the_openapi_document_names_the_routes_and_their_errors(api):
    document = api.get("/openapi.json").json()
    chat = document["paths"][CHAT]["post"]
    assert {"200", "400", "401", "404", "413", "429", "503"} <= set(chat["responses"])
    schema = document["components"]["schemas"]["ChatRequest"]
    assert "slo" in schema["properties"]
    assert schema["additionalProperties"] is False
