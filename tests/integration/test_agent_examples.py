"""The agent examples and `giusto.client` through the real `openai` clients over real HTTP."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import openai
import pytest

from fakes import FakeBackend
from giusto.client import AsyncProgram, Program
from giusto.config import ServerSettings
from giusto.core.request import Reason
from giusto.core.slo import Deadline
from giusto.core.slo import Program as ProgramSlo
from giusto.server.app import create_app
from live import live
from served import served
from tiny_models import make_tiny

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("research", "reflection", "tool_loop")


def example(name: str) -> ModuleType:
    """An example as a module; its `main` takes the words of a command line."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def server():
    settings = ServerSettings()
    backend = FakeBackend(max_model_len=8192)
    with live(create_app(backend, settings), settings) as running:
        running.backend = backend
        yield running


@pytest.fixture
def backend(server):
    """Promises are as the scheduler makes them: calls of a program are judged with it."""
    script = server.backend.script = type(server.backend.script)()

    def resolve(ask):
        if ask.has_own_slo or ask.program is None or ask.program.deadline is None:
            return ask.slo, ask.arrival
        return ProgramSlo(ask.program.deadline), ask.arrival

    script.resolve = resolve
    server.backend.submitted.clear()
    server.backend.closed_programs.clear()
    return server.backend


@pytest.fixture
def url(server, backend):
    yield f"{server.url}/v1"
    server.settle()


def answers(backend: FakeBackend, *rules: tuple[str, str]) -> None:
    """Answer by the first rule whose word is in the prompt."""

    def answer(ask, sample: int) -> str:
        prompt = backend.decode(ask.prompt_ids)
        return next(text for word, text in rules if word in prompt)

    backend.script.answer = answer


def calls(backend: FakeBackend) -> dict[str, object]:
    """What the engine was told of each call's place."""
    found = {ask.program.call: ask.program for ask in backend.submitted}
    assert len(found) == len(backend.submitted)
    assert len({ref.id for ref in found.values()}) == 1
    return found


# The examples, with an engine that says what is written here


def test_research_fans_out_and_in(url, backend, capsys) -> None:
    """One plan, three notes on it at once, one report on all, which ends the program."""
    answers(
        backend,
        ("Summarise", "All of it."),
        ("three questions", "1. Why?\n2. **How?**\n\n- When?\n4. Who?"),
        ("Answer in two sentences", "So."),
    )
    example("research").main(["bees", "--base-url", url, "--deadline", "40"])
    found = calls(backend)
    assert next(iter(found)) == "plan"
    assert {name: (ref.stage, ref.parents) for name, ref in found.items()} == {
        "plan": (0, ()),
        "note-0": (1, ("plan",)),
        "note-1": (1, ("plan",)),
        "note-2": (1, ("plan",)),
        "report": (2, ("note-0", "note-1", "note-2")),
    }
    assert {ref.deadline for ref in found.values()} == {40.0}
    assert {ref.app for ref in found.values()} == {"research"}
    assert [name for name, ref in found.items() if ref.final] == ["report"]
    assert backend.closed_programs == []
    out = capsys.readouterr().out
    assert out.startswith("All of it.\n")
    assert out.endswith("deadline of 40 s kept: yes\n")
    asked = [backend.decode(ask.prompt_ids) for ask in backend.submitted]
    assert any("How?" in text and "**" not in text for text in asked)


def test_research_says_when_it_was_late(url, backend, capsys) -> None:
    """An answer of seven tokens takes longer than a tenth of a second here."""
    answers(backend, ("three questions", "Why?"), ("", "Because."))
    example("research").main(["bees", "--base-url", url, "--deadline", "0.1"])
    assert capsys.readouterr().out.endswith("deadline of 0.1 s kept: no\n")


def test_reflection_goes_on_until_its_limit(url, backend, capsys) -> None:
    """Each revision builds on text and critique; the last round's ends the program."""
    answers(
        backend, ("better.", "Fresher bread."), ("could be better", "Too dull."), ("", "Bread.")
    )
    example("reflection").main(["Write.", "--rounds", "2", "--base-url", url])
    found = calls(backend)
    assert list(found) == ["draft", "critique-0", "revise-0", "critique-1", "revise-1"]
    assert [ref.stage for ref in found.values()] == [0, 1, 2, 3, 4]
    assert found["revise-1"].parents == ("revise-0", "critique-1")
    assert [ref.final for ref in found.values()] == [False] * 4 + [True]
    assert backend.closed_programs == []
    assert capsys.readouterr().out.startswith("Fresher bread.\n")


def test_a_content_critic_ends_reflection_early(url, backend, capsys) -> None:
    """No call was final, so the program is closed by name."""
    answers(backend, ("could be better", '"Nothing."'), ("", "Bread."))
    example("reflection").main(["Write.", "--base-url", url])
    found = calls(backend)
    assert list(found) == ["draft", "critique-0"]
    assert backend.closed_programs == [found["draft"].id]
    assert capsys.readouterr().out.startswith("Bread.\n")


def test_a_tool_loop_calculates(url, backend, capsys) -> None:
    """What the model asks for is worked out and told; the answer ends the loop."""
    answers(
        backend,
        ("calculator says: 12 * 17 = 204", "There are 204, for 12 * 17 is that."),
        ("", "Sure! CALC: 12 * 17"),
    )
    example("tool_loop").main(["How many?", "--base-url", url])
    found = calls(backend)
    assert [ref.parents for ref in found.values()] == [(), ("think-0",)]
    assert backend.closed_programs == [found["think-0"].id]
    out = capsys.readouterr().out
    assert out.startswith("  12 * 17 = 204\nThere are 204")
    assert "deadline of 20 s kept: yes" in out


def test_a_tool_loop_has_an_end(url, backend) -> None:
    """A model that calculates for ever is asked three times, and the third call says so."""
    answers(backend, ("", "CALC: 1 + 1"))
    example("tool_loop").main(["How many?", "--base-url", url])
    assert [ref.final for ref in calls(backend).values()] == [False, False, True]
    assert backend.closed_programs == []


@pytest.mark.parametrize(
    ("said", "expression", "result"),
    [
        ("CALC: (2 + 3) * 4", "(2 + 3) * 4", "20"),
        ("**Calc:** 1,200 ÷ 7 eggs", "1200 / 7", "171.4285714"),
        ("It is 12 × 17.", "12 * 17", "204"),
        ("CALC: -3 - 5", "-3 - 5", "-8"),
        ("CALC: 1 / 0", "1 / 0", "an error, ZeroDivisionError"),
        ("CALC: 2 + (3", "2 + (3", "an error, SyntaxError"),
        ("I cannot.", None, None),
    ],
)
def test_the_calculator(said: str, expression: str | None, result: str | None) -> None:
    """Arithmetic is found in what a model says, and nothing else is ever run."""
    tool = example("tool_loop")
    assert tool.wanted(said) == expression
    if expression is not None:
        assert tool.calculate(expression) == result
    for code in ("__import__('os')", "9 ** 9", "f(1)", "1 if 1 else 2", "9" * 200):
        assert tool.calculate(code).startswith("an error")


# The helper and the server


def test_the_verdicts_of_server_and_program(url, backend) -> None:
    """Each answer has the server's; a call with a promise of its own has one of its own."""
    with openai.OpenAI(base_url=url, api_key="none") as client:
        with Program(client, deadline=30) as program:
            first = program.chat("Hi")
            own = program.chat("Hi", slo=Deadline(0.001), parents=[first])
        assert (first.slo["kind"], first.slo["targets"]) == ("program", {"deadline_ms": 30_000.0})
        assert (own.slo["kind"], own.met) == ("deadline", False)
        assert program.met is True
        assert backend.closed_programs == [f"/{program.id}"]
        assert first.output_tokens == 14


def test_a_refusal_loses_the_program(url, backend) -> None:
    """The error is openai's own; the program is closed all the same."""
    backend.script.refuse = Reason.QUEUE_FULL
    with (
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client,
        pytest.raises(openai.RateLimitError),
        Program(client, deadline=30) as program,
    ):
        program.chat("Hi")
    assert program.met is False
    assert backend.closed_programs == [f"/{program.id}"]


def test_a_stream_is_handed_back(url, backend) -> None:
    """`extra` goes to the client's own call, chunks come to `take`."""
    with (
        openai.OpenAI(base_url=url, api_key="none") as client,
        Program(client, deadline=30) as program,
    ):
        call = program.begin("draft")
        turns = [{"role": "user", "content": "Hi"}]
        for chunk in client.chat.completions.create(
            model="fake", messages=turns, stream=True, **call.extra()
        ):
            call.take(chunk)
    assert (call.text, call.met, program.met) == ("Hello, world!", True, True)


def test_the_asynchronous_client(url, backend) -> None:
    """It fans out with gather; the server has seen the same."""

    async def run() -> AsyncProgram:
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
            async with AsyncProgram(client, deadline=30, app="fan") as program:
                plan = await program.chat("Hi", call="plan")
                await asyncio.gather(*(program.chat("Hi", parents=[plan]) for _ in range(4)))
            return program

    program = asyncio.run(run())
    assert program.met is True
    assert Counter(ref.stage for ref in calls(backend).values()) == {0: 1, 1: 4}
    assert backend.closed_programs == [f"/{program.id}"]


# A real engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agents") / "tiny"
    make_tiny(folder, max_position_embeddings=16384)
    with served("--model", str(folder), "--dtype", "float32") as running:
        yield running


@pytest.mark.parametrize("name", NAMES)
def test_examples_run_on_an_engine_that_talks_nonsense(name: str, engine, capsys) -> None:
    """Whatever a model says, each ends, with a verdict by the scheduler's own table."""
    example(name).main(["--base-url", f"{engine.url}/v1", "--deadline", "600"])
    out = capsys.readouterr().out
    assert out.endswith("deadline of 600 s kept: yes\n")
    assert "failed" not in out
    example(name).main(["--base-url", f"{engine.url}/v1", "--deadline", "0.001"])
    assert capsys.readouterr().out.endswith("deadline of 0.001 s kept: no\n")
