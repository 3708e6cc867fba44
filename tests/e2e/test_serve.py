"""`giusto serve` as a user starts it: the default model, curl-like calls, SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from served import Served, served
from tiny_models import make_tiny, write_json

EXAMPLE = Path(__file__).parents[2] / "examples" / "openai_client.py"
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return str(make_tiny(tmp_path_factory.mktemp("e2e") / "tiny", max_position_embeddings=16384))


@pytest.fixture(scope="module")
def default_server():
    started = time.monotonic()
    with served() as server:
        assert time.monotonic() - started < 60
        yield server


def test_the_default_model_knows_the_capital_of_france(default_server):
    """Started without a model, the server answers a plain question rightly."""
    body = {"messages": FRANCE, "max_tokens": 24, "temperature": 0}
    answer = default_server.post("/v1/chat/completions", json=body).json()
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert answer["model"] == "SmolLM2-135M-Instruct"


def test_the_line_that_it_prints_works(default_server):
    """The curl line of the announcement is a request that succeeds and keeps its promise."""
    text = "".join(default_server.announced)
    url = text.split("curl ")[1].split()[0]
    body = json.loads(text.split("-d '")[1].split("'\n")[0])
    answer = httpx.post(url, json=body | {"max_tokens": 8}, timeout=60).json()
    assert answer["slo"]["ttft_ms"] > 0
    assert answer["slo"]["kind"] == "streaming"


def test_a_second_turn_finds_its_first_in_the_cache(default_server):
    """A conversation that goes on reuses what was computed: its cached tokens grow."""
    asked = [{"role": "user", "content": "Tell me in one sentence why the sky is blue by day."}]
    body = {"messages": asked, "max_tokens": 24, "temperature": 0}
    first = default_server.post("/v1/chat/completions", json=body).json()
    reply = first["choices"][0]["message"]["content"]
    more = [*asked, {"role": "assistant", "content": reply}]
    body["messages"] = [*more, {"role": "user", "content": "And at night?"}]
    second = default_server.post("/v1/chat/completions", json=body).json()
    cached = [a["usage"]["prompt_tokens_details"]["cached_tokens"] for a in (first, second)]
    assert second["usage"]["prompt_tokens"] > cached[1] > cached[0] >= 0
    assert cached[1] >= first["usage"]["prompt_tokens"] // 16 * 16


def test_the_example_runs(default_server):
    """`examples/openai_client.py` gets all its answers from a live server."""
    env = os.environ | {"BASE_URL": f"{default_server.url}/v1"}
    done = subprocess.run(
        [sys.executable, EXAMPLE], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in ("stream", "deadline", "program"):
        assert f"  {name}: {{" in done.stdout


def test_speculation_answers_rightly_and_tells_what_it_saved(default_server):
    """The default model with `--speculation giusto`: right answers, and what it saved is told."""
    text = "Repeat this list three times: apple, pear, plum, cherry, apple, pear, plum, cherry."
    repeat = [{"role": "user", "content": text}]
    with served("--speculation", "giusto") as server:
        assert server.get("/version").json()["speculation"] == "giusto"
        for messages, limit in ((FRANCE, 24), (repeat, 96)):
            body = {"messages": messages, "max_tokens": limit, "temperature": 0}
            mine, plain = (
                s.post("/v1/chat/completions", json=body).json() for s in (server, default_server)
            )
            if messages is FRANCE:
                assert "Paris" in mine["choices"][0]["message"]["content"]
            assert plain["slo"]["accepted_draft_tokens"] == 0
        accepted = mine["slo"]["accepted_draft_tokens"]
        assert 0 < accepted < mine["usage"]["completion_tokens"]
        page = server.get("/metrics").text
        told = [
            line for line in page.splitlines() if line.startswith("giusto_accepted_tokens_total{")
        ]
        assert sum(float(line.split()[-1]) for line in told) >= accepted
        assert "giusto_step_part_seconds_total{model_name" in page
        assert server.get("/health").json() == {"status": "ok"}


# Life and death, on a tiny model


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(tiny, sign):
    """An open stream goes on to its end, newcomers get 503, and the exit code is 0."""
    with served("--model", tiny) as server:
        body = {"prompt": "a", "max_tokens": 400, "ignore_eos": True, "stream": True, "seed": 1}
        with httpx.stream(
            "POST", f"{server.url}/v1/completions", json=body, timeout=60
        ) as response:
            lines = response.iter_lines()
            first = next(lines)
            server.process.send_signal(sign)
            rest = [line for line in lines if line]
        assert first.startswith("data: ")
        assert rest[-1] == "data: [DONE]"
        final = json.loads(rest[-2].removeprefix("data: "))
        assert final["choices"][0]["finish_reason"] == "length"
        assert server.wait() == 0


def test_a_dead_engine_is_told(tiny):
    """When the engine's process dies, the open stream ends with an error and health is 503."""
    server = Served("--model", tiny)
    server.wait_ready()
    try:
        children = Path(f"/proc/{server.process.pid}/task").glob("*/children")
        (worker,) = {int(pid) for file in children for pid in file.read_text().split()}
        body = {"prompt": "a", "max_tokens": 16000, "ignore_eos": True, "stream": True}
        with httpx.stream(
            "POST", f"{server.url}/v1/completions", json=body, timeout=60
        ) as response:
            lines = response.iter_lines()
            next(lines)
            os.kill(worker, signal.SIGKILL)
            rest = [line for line in lines if line]
        assert any('"error"' in line for line in rest)
        assert server.get("/health").status_code == 503
        answer = server.post("/v1/completions", json={"prompt": "a"})
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_dead"
    finally:
        assert server.stop() == 0


def test_a_broken_model_is_one_sentence(tiny, tmp_path):
    """A model folder that cannot be loaded ends the command with exit code 2 and a sentence."""
    folder = make_tiny(tmp_path / "broken")
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"architectures": ["GPT2LMHeadModel"]})
    server = Served("--model", str(folder))
    assert server.wait(60) == 2
    assert server.log[-1].startswith("giusto serve: ")
    assert "GPT2LMHeadModel" in server.log[-1]
    assert not any("Traceback" in line for line in server.log)


def test_a_taken_port_is_told(tiny):
    """A port in use ends the command with a message, and no engine is left behind."""
    with served("--model", tiny) as server:
        port = server.url.rsplit(":", 1)[1]
        second = Served("--model", tiny, "--port", port)
        assert second.wait(60) != 0
        assert any(port in line and "use" in line for line in second.log)
