"""Start, drain, stop and the death of the engine: no accepted request is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import threading

import httpx
import pytest

from fakes import FakeBackend, Script
from giusto.config import ServerSettings
from giusto.core.errors import ModelError
from giusto.server.app import create_app, serve
from live import InProcess, live

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}


def test_draining_finishes_what_was_accepted_and_refuses_the_rest():
    backend = FakeBackend(script=Script(pause_after=2))
    settings = ServerSettings()
    with live(create_app(backend, settings), settings) as server:
        with httpx.Client(base_url=server.url, timeout=10) as client:
            assert client.get("/health").status_code == 200
            with client.stream("POST", CHAT, json={**HI, "stream": True}) as open_stream:
                lines = open_stream.iter_lines()
                assert next(lines).startswith("data: ")
                assert backend.paused.wait(5)
                server.drain()
                with httpx.Client(base_url=server.url, timeout=10) as other:
                    health = other.get("/health")
                    while health.status_code == 200:
                        health = other.get("/health")
                    assert (health.status_code, health.json()) == (503, {"status": "draining"})
                    assert other.get("/live").status_code == 200
                    refused = other.post(CHAT, json=HI)
                    assert refused.status_code == 503
                    assert refused.json()["error"]["code"] == "draining"
                    assert int(refused.headers["retry-after"]) >= 1
                backend.resume()
                rest = [line for line in lines if line]
            assert rest[-1] == "data: [DONE]"
        server.thread.join(10)
        assert not server.thread.is_alive()
    assert backend.calls == ["drain", "stop"]
    assert backend.aborted == []


def test_what_outlasts_the_drain_timeout_ends_with_an_error():
    backend = FakeBackend(script=Script(pause_after=2))
    settings = ServerSettings(drain_timeout_s=0.05)
    with live(create_app(backend, settings), settings) as server:
        with httpx.Client(base_url=server.url, timeout=10) as client:
            with client.stream("POST", CHAT, json={**HI, "stream": True}) as open_stream:
                lines = open_stream.iter_lines()
                next(lines)
                assert backend.paused.wait(5)
                server.drain()
                rest = [line for line in lines if line]
            assert "engine_dead" in rest[-1]
        server.thread.join(10)
        assert not server.thread.is_alive()


@pytest.mark.parametrize("stream", [False, True])
def test_the_engines_death_before_the_first_token_is_a_503(stream):
    backend = FakeBackend(script=Script(die_after=0))
    api = InProcess(create_app(backend, ServerSettings()))
    response = api.post(CHAT, json={**HI, "stream": stream})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_dead"
    assert api.get("/health").status_code == 503
    assert api.get("/health").json() == {"status": "dead"}
    assert api.get("/live").status_code == 200
    assert api.post(CHAT, json=HI).status_code == 503


def test_the_engines_death_in_mid_stream_is_told_in_the_stream():
    backend = FakeBackend(script=Script(die_after=3))
    api = InProcess(create_app(backend, ServerSettings()))
    response = api.post(CHAT, json={**HI, "stream": True})
    assert response.status_code == 200
    assert '"code": "engine_dead"' in response.text
    assert "[DONE]" not in response.text


def test_an_unforeseen_error_is_a_500_that_tells_nothing():
    class Broken(FakeBackend):
        def encode(self, text, *, add_special_tokens=True):
            raise RuntimeError("inside information")

    app = create_app(Broken(), ServerSettings())

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post(CHAT, json=HI)

    response = asyncio.run(send())
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "inside information" not in response.text


def test_serve_starts_the_backend_drains_on_sigterm_and_stops():
    found: list[str] = []

    def visit(port: int) -> None:
        found.append(httpx.get(f"http://127.0.0.1:{port}/version").json()["server"])
        os.kill(os.getpid(), signal.SIGTERM)

    def on_ready(port: int) -> None:
        threading.Thread(target=visit, args=(port,), daemon=True).start()

    backend = FakeBackend()
    before = signal.getsignal(signal.SIGTERM)
    serve(backend, ServerSettings(port=0, log_level="warning"), on_ready=on_ready)
    assert signal.getsignal(signal.SIGTERM) is before
    assert found == ["giusto"]
    assert backend.calls == ["start", "drain", "stop", "stop"]


def test_a_backend_that_cannot_start_says_so_to_the_caller():
    class Broken(FakeBackend):
        async def start(self) -> None:
            raise ModelError("shard 2 of 3 is missing: fetch it again")

    with pytest.raises(ModelError, match="shard 2"):
        serve(Broken(), ServerSettings())


def test_sigterm_while_the_backend_starts_stops_it():
    class Slow(FakeBackend):
        async def start(self) -> None:
            await super().start()
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()

    backend = Slow()
    with pytest.raises(SystemExit) as caught:
        serve(backend, ServerSettings())
    assert caught.value.code == 128 + signal.SIGTERM
    assert backend.calls == ["start", "stop"]
