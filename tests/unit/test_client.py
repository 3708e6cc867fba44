"""`giusto.client`: what rides in a request, what comes of an answer, when a program is closed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from giusto.client import AsyncProgram, Call, Program
from giusto.core.slo import Deadline, Streaming

KEPT = {"kind": "program", "met": True, "e2e_ms": 12.0}


def answer(text: str = "yes", slo: dict[str, Any] | None = None) -> Any:
    """As the `openai` client gives it, as far as it is read."""
    message = SimpleNamespace(content=text)
    usage = SimpleNamespace(prompt_tokens=7, completion_tokens=3)
    choice = SimpleNamespace(index=0, message=message)
    return SimpleNamespace(choices=[choice], usage=usage, slo=KEPT if slo is None else slo)


class Refusal(Exception):
    """An error of the client that carries the server's status."""

    def __init__(self, status: int) -> None:
        super().__init__("refused")
        self.status_code = status


class Fake:
    """An `openai.OpenAI` that answers from a list, the last for ever, and writes down requests."""

    def __init__(self, *replies: Any) -> None:
        self.replies = list(replies) or [answer()]
        self.asked: list[dict[str, Any]] = []
        self.posted: list[str] = []
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.create))
        self.models = SimpleNamespace(list=self.list)

    def create(self, **request: Any) -> Any:
        self.asked.append(request)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, BaseException):
            raise reply
        return reply

    def list(self) -> Any:
        return SimpleNamespace(data=[SimpleNamespace(id="first"), SimpleNamespace(id="second")])

    def post(self, path: str, *, cast_to: type) -> Any:
        assert cast_to is object
        self.posted.append(path)
        return {}

    @property
    def programs(self) -> list[dict[str, Any]]:
        return [request["extra_body"]["program"] for request in self.asked]


class AsyncFake(Fake):
    """The same to be awaited."""

    def __init__(self, *replies: Any) -> None:
        super().__init__(*replies)
        self.chat.completions.create = self.acreate
        self.models.list = self.alist

    async def acreate(self, **request: Any) -> Any:
        return self.create(**request)

    async def alist(self) -> Any:
        return self.list()

    async def post(self, path: str, *, cast_to: type) -> Any:
        return super().post(path, cast_to=cast_to)


# What rides in a request


def test_a_call_carries_its_place() -> None:
    """Id, stage, parents, app, deadline and end, as the server reads them, and nothing empty."""
    client = Fake()
    with Program(client, deadline=60, app="research", id="p") as program:
        plan = program.chat("Plan it.", call="plan", max_tokens=9)
        notes = [program.chat("Note.", parents=[plan]) for _ in range(2)]
        program.chat("Report.", call="report", parents=[*notes, "plan", plan], final=True)
    usual = {"id": "p", "deadline_ms": 60_000, "app": "research"}
    assert client.programs == [
        usual | {"call": "plan", "stage": 0},
        usual | {"call": "call-1", "stage": 1, "parents": ["plan"]},
        usual | {"call": "call-2", "stage": 1, "parents": ["plan"]},
        usual
        | {
            "call": "report",
            "stage": 2,
            "parents": ["call-1", "call-2", "plan"],
            "final": True,
        },
    ]
    first = client.asked[0]
    assert first["messages"] == [{"role": "user", "content": "Plan it."}]
    assert (first["max_tokens"], first["model"]) == (9, "first")
    assert Program(client, id="q").extra() == {
        "extra_body": {"program": {"id": "q", "call": "call-0", "stage": 0}}
    }


def test_a_conversation_a_model_and_other_extras_go_through() -> None:
    """Messages as they are; the caller's extra body beside the program's fields."""
    client = Fake()
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    with Program(client, model="mine") as program:
        program.chat(turns, extra_body={"top_k": 3}, temperature=0)
        program.chat("Hi", model="other")
    assert client.asked[0]["messages"] == turns
    assert client.asked[0]["extra_body"].keys() == {"top_k", "program"}
    assert [request["model"] for request in client.asked] == ["mine", "other"]


@pytest.mark.parametrize(
    ("slo", "sent"),
    [
        (Streaming(0.5, 0.05), {"ttft_ms": 500, "tpot_ms": 50}),
        (Streaming(ttft=0.5), {"ttft_ms": 500}),
        (Deadline(3), {"deadline_ms": 3000}),
        ({"class": "chat", "weight": 2}, {"class": "chat", "weight": 2}),
    ],
)
def test_a_call_may_have_an_slo_of_its_own(slo: Any, sent: dict[str, Any]) -> None:
    """In seconds, or as the server reads it."""
    client = Fake()
    call = Program(client).chat("Hi", slo=slo)
    assert client.asked[0]["extra_body"]["slo"] == pytest.approx(sent)
    assert call.has_own_slo == ("class" not in sent)


def test_ids_are_drawn() -> None:
    """Two programs never meet."""
    assert len({Program().id for _ in range(100)}) == 100


def test_calls_from_several_threads_keep_apart() -> None:
    """Names are given once each."""
    client = Fake()
    with Program(client) as program, ThreadPoolExecutor(8) as threads:
        list(threads.map(program.chat, ["Hi"] * 64))
    assert len({sent["call"] for sent in client.programs}) == len(program.calls) == 64


# What comes of an answer


def test_an_answer_is_read() -> None:
    """Its text, its cost and its verdict."""
    reply = answer("Paris")
    call = Program(Fake(reply), deadline=1).chat("Where?")
    assert (call.text, call.prompt_tokens, call.output_tokens) == ("Paris", 7, 3)
    assert (call.slo, call.met, call.answer) == (KEPT, True, reply)


def test_a_stream_is_read_chunk_by_chunk() -> None:
    """Deltas of the first sample, whatever else comes; usage and verdict at the end."""

    def chunk(*deltas: tuple[int, str | None], **more: Any) -> Any:
        choices = [
            SimpleNamespace(index=index, delta=SimpleNamespace(content=text))
            for index, text in deltas
        ]
        return SimpleNamespace(choices=choices, **{"usage": None, **more})

    program = Program(deadline=1)
    call = program.begin("draft")
    usage = SimpleNamespace(prompt_tokens=2, completion_tokens=4)
    for part in (
        chunk((0, "Pa"), (1, "Lon")),
        chunk((0, "ris")),
        chunk((0, None)),
        chunk(usage=usage, slo=KEPT),
    ):
        call.take(part)
    assert (call.text, call.output_tokens, call.met, program.met) == ("Paris", 4, True, True)


def test_an_older_completion_is_read() -> None:
    """Its choices have a text and no message; another server gives no verdict."""
    choice = SimpleNamespace(index=0, text="Once")
    call = Program(deadline=1).begin().take(SimpleNamespace(choices=[choice]))
    assert (call.text, call.slo, call.met, call.prompt_tokens) == ("Once", {}, None, None)


LOST = {"kind": "program", "met": False}
SERVED_ALL_THE_SAME = {"kind": "best_effort", "met": True}
OWN = {"kind": "deadline", "met": False}


@pytest.mark.parametrize(
    ("verdicts", "met"),
    [
        ([], None),
        ([{}], None),
        ([KEPT, KEPT], True),
        ([KEPT, LOST], False),
        ([LOST, SERVED_ALL_THE_SAME], False),
        ([KEPT, SERVED_ALL_THE_SAME], False),
        ([KEPT, {}], True),
    ],
)
def test_the_verdict_on_the_program(verdicts: list[dict[str, Any]], met: bool | None) -> None:
    """Kept while every call that is judged with it is; what is served for nothing tells a loss."""
    program = Program(Fake(*(answer(slo=verdict) for verdict in verdicts)), deadline=9)
    for _ in verdicts:
        program.chat("Hi")
    assert program.met is met
    assert f"deadline of 9 s kept: {'-' if met is None else 'yes' if met else 'no'}" in (
        program.report()
    )


def test_a_call_judged_by_its_own_slo_tells_nothing_of_the_program() -> None:
    """Neither kept nor lost by it; without a deadline there is no verdict at all."""
    program = Program(Fake(answer(slo=OWN)), deadline=9)
    own = program.chat("Hi", slo=Deadline(1))
    assert (own.met, program.met) == (False, None)
    assert Program(Fake(answer()), deadline=None).met is None


@pytest.mark.parametrize(("status", "met"), [(429, False), (503, False), (500, False), (400, True)])
def test_a_refused_call_loses_the_program(status: int, met: bool) -> None:
    """As the server counts; what it never took in changes nothing. The error is the caller's."""
    program = Program(Fake(answer(), Refusal(status), answer()), deadline=9)
    program.chat("Hi")
    with pytest.raises(Refusal):
        program.chat("Hi", call="bad")
    program.chat("Hi")
    assert program.met is met
    assert any(line.startswith("bad") and "failed" in line for line in program.report().split("\n"))


def test_a_report_has_a_line_per_call() -> None:
    """What each cost, whether it was in time, and the verdict below."""
    program = Program(Fake(answer(), answer(slo={})), deadline=2)
    program.chat("Hi", call="a")
    program.chat("Hi", call="long name", parents=["a"])
    assert [line.split() for line in program.report().splitlines()] == [
        ["call", "stage", "prompt", "output", "ms", "kept"],
        ["a", "0", "7", "3", "12", "yes"],
        ["long", "name", "1", "7", "3", "-", "-"],
        ["deadline", "of", "2", "s", "kept:", "yes"],
    ]


# Closing


def test_leaving_the_block_closes_the_program() -> None:
    """Once, by its id as a path has it."""
    client = Fake()
    with Program(client, id="a b") as program:
        program.chat("Hi")
    program.close()
    assert client.posted == ["/programs/a%20b/close"]


def test_a_final_call_has_closed_it() -> None:
    """Nothing is posted, and nothing may follow."""
    client = Fake()
    with Program(client) as program:
        program.chat("Hi", call="end", final=True)
        with pytest.raises(ValueError, match="ends with call 'end', which was final"):
            program.chat("Hi")
    assert client.posted == []


@pytest.mark.parametrize("error", [Refusal(500), KeyboardInterrupt()])
def test_a_final_call_without_an_answer_has_not(error: BaseException) -> None:
    """It is closed by name then; another last call may be tried before."""
    client = Fake(error, answer())
    with Program(client) as program:
        with pytest.raises(type(error)):
            program.chat("Hi", call="end", final=True)
        program.chat("Hi")
    assert len(client.posted) == 1


def test_a_program_without_calls_is_not_there_to_be_closed() -> None:
    """Nor is one that has no client to do it."""
    client = Fake()
    with Program(client):
        pass
    with Program(deadline=1) as alone:
        alone.begin()
    assert client.posted == []


def test_what_went_wrong_inside_is_what_is_raised() -> None:
    """A server that is gone cannot close either; that comes second. By itself it is told."""

    class Gone(Fake):
        def post(self, path: str, *, cast_to: type) -> Any:
            raise ConnectionError("gone")

    with pytest.raises(Refusal), Program(Gone(Refusal(503))) as program:
        program.chat("Hi")
    with pytest.raises(ConnectionError), Program(Gone()) as program:
        program.chat("Hi")


# Mistakes


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (lambda p: p.chat("Hi", call="plan"), "call 'plan': a name must be new"),
        (lambda p: p.chat("Hi", call=""), "call '': a name must be new in its program"),
        (lambda p: p.chat("Hi", parents=["paln"]), "no call 'paln'; there are: plan"),
        (
            lambda p: p.chat("Hi", parents=[Program().begin("plan")]),
            "call 'plan' is of another program",
        ),
        (lambda p: p.chat("Hi", stream=True), "begin"),
        (lambda p: p.chat("Hi", extra_body={"slo": {}}), "extra_body has slo, which the program"),
        (lambda p: Program().chat("Hi"), r"no client: give it one, or pass \*\*program.extra"),
        (lambda p: Program(deadline=0), "deadline must be a positive, finite number of seconds"),
        (lambda p: Program(deadline=float("nan")), "deadline must be a positive, finite"),
        (lambda p: Program(id=""), "id '': leave it out"),
        (lambda p: Program(id="a/b"), "without '/'"),
    ],
)
def test_mistakes_are_refused_before_anything_is_sent(mistake: Any, said: str) -> None:
    """In one sentence that says what would do; no name is used up."""
    client = Fake()
    program = Program(client)
    program.chat("Plan.", call="plan")
    with pytest.raises(ValueError, match=said):
        mistake(program)
    assert len(client.asked) == len(program.calls) == 1


def test_a_closed_program_takes_no_calls() -> None:
    """Another is to be begun."""
    with Program(Fake()) as program:
        pass
    with pytest.raises(ValueError, match="is closed: begin another"):
        program.begin()


def test_a_server_without_models() -> None:
    """It says which argument helps."""
    client = Fake()
    client.models = SimpleNamespace(list=lambda: SimpleNamespace(data=[]))
    with pytest.raises(ValueError, match="lists no model: give model="):
        Program(client).chat("Hi")


# Its twin


def test_the_asynchronous_twin() -> None:
    """Fans out with gather, reads, closes and raises as the other does."""
    client = AsyncFake(answer("plan"), answer("note"), answer("note"), Refusal(429))

    async def run() -> AsyncProgram:
        async with AsyncProgram(client, deadline=9, id="p") as program:
            plan = await program.chat("Plan.", call="plan")
            notes: list[Call] = await asyncio.gather(
                *(program.chat("Note.", parents=[plan]) for _ in range(2))
            )
            assert [note.text for note in notes] == ["note", "note"]
            assert program.met is True
            with pytest.raises(Refusal):
                await program.chat("Report.", parents=notes, final=True)
        return program

    program = asyncio.run(run())
    assert program.met is False
    assert [call["stage"] for call in client.programs] == [0, 1, 1, 2]
    assert client.posted == ["/programs/p/close"]


def test_it_needs_nothing_installed() -> None:
    """Neither the client's package nor the server's libraries nor numpy."""
    script = """
import sys
for heavy in ("openai", "httpx", "pydantic", "numpy", "torch", "typer", "rich"):
    sys.modules[heavy] = None
import giusto.client
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=60)
