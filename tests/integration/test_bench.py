"""`giusto bench` against a small server in virtual time, and once over a real port."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from giusto import build
from giusto.bench import calibrate, results
from giusto.bench.client import Client
from giusto.bench.command import bench as bench_command
from giusto.bench.command import parse_goodput, saved
from giusto.bench.drive import Driver, Run
from giusto.bench.plots import plot
from giusto.bench.progress import Bar, Progress
from giusto.bench.run import Settings, bench, find_workload, plan
from giusto.bench.table import tables
from giusto.bench.wire import Dialect, SloIn
from giusto.core.errors import ConfigError
from giusto.core.request import FinishReason
from giusto.core.slo import Deadline, Streaming
from giusto.metrics.records import Record
from giusto.metrics.summary import Goodput
from giusto.profiles.profile import load as load_profile
from giusto.sim.load import Load
from giusto.sim.run import SimRun
from giusto.sim.settings import SimSettings
from giusto.workload import records
from giusto.workload.mixed import CLASSES
from giusto.workload.records import Entry, Message, Step
from virtual_time import VirtualLoop, run

HELLO = (Message("user", "hello"),)
CHAT = Streaming(ttft=1.0, tpot=0.5)
BEST_EFFORT_CAP = CLASSES["best_effort"][1]
JSON = dict[str, Any]


@dataclass
class FakeServer:
    """An OpenAI server on which each token takes `pace` seconds and no request waits for another.

    `odd` may answer a request in its own way; `counted` is what `/tokenize` counts, if it is there.
    """

    pace: float = 0.1
    num_tokens: int = 4
    is_giusto: bool = True
    counted: int | None = None
    odd: Callable[[JSON], httpx.Response | None] = lambda body: None
    seen: list[tuple[float, JSON]] = field(default_factory=list)
    headers: list[httpx.Headers] = field(default_factory=list)

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/version":
            says = {"server": "giusto", "scheduling_policy": "fcfs"} if self.is_giusto else {}
            return httpx.Response(200, json={"version": "1", **says})
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "tiny"}]})
        body = json.loads(request.content)
        if request.url.path == "/tokenize":
            return httpx.Response(200 if self.counted else 404, json={"count": self.counted})
        self.seen.append((asyncio.get_running_loop().time(), body))
        self.headers.append(request.headers)
        return self.odd(body) or httpx.Response(200, content=self.stream())

    async def stream(self) -> AsyncIterator[bytes]:
        for k in range(self.num_tokens):
            await asyncio.sleep(self.pace)
            yield event({"choices": [{"delta": {"content": f"t{k} "}}]})
        yield event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        usage = {"prompt_tokens": 20, "completion_tokens": self.num_tokens}
        yield event({"choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"


def event(content: JSON) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def stream_of(*parts: bytes) -> httpx.Response:
    async def stream() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    return httpx.Response(200, content=stream())


def transport(server: FakeServer) -> httpx.MockTransport:
    return httpx.MockTransport(server)


def run_bench(server: FakeServer, settings: Settings) -> tuple[JSON, Run]:
    loop = VirtualLoop()
    return run(loop, bench(settings, clock=loop, transport=transport(server)))


def drive(
    server: FakeServer,
    entries: list[Entry],
    *,
    timeout: float = 600.0,
    stop_at: float | None = None,
) -> Run:
    """Drive entries in virtual time; cancel at `stop_at`."""
    loop = VirtualLoop()

    async def work() -> Run:
        http = httpx.AsyncClient(base_url="http://test", transport=transport(server))
        async with http:
            driver = Driver(Client(http, Dialect("tiny", SloIn.BODY), loop.time, timeout))
            task = asyncio.ensure_future(driver.drive(entries))
            if stop_at is not None:
                await asyncio.sleep(stop_at)
                task.cancel()
            return await task

    return run(loop, work())


def by_id(of: Run) -> dict[str, Record]:
    return {record.id: record for record in of.records}


def entry(name: str, at: float = 0.0, **fields: Any) -> Entry:
    return Entry(name, at, "chat", **{"messages": HELLO, "slo": CHAT, **fields})


def two_steps(tool_time: float = 2.0) -> list[Entry]:
    first = Step("p", "read", deadline=20.0)
    second = Step("p", "mail", ("read",), tool_time, 20.0, is_final=True)
    quote = (*HELLO, Message("assistant", answer_of="read"), Message("user", "go on"))
    return [
        entry("p-read", 1.0, slo=None, step=first),
        entry("p-mail", 1.0, slo=None, step=second, messages=quote),
    ]


# The open loop


def test_arrivals_never_wait_for_answers() -> None:
    """Every request leaves at its time, though the first has not ended when the last leaves."""
    server = FakeServer(pace=10.0)
    done = drive(server, [entry(f"e{k}", 0.25 * k) for k in range(8)])
    assert [at for at, _ in server.seen] == [0.25 * k for k in range(8)]
    assert done.lags == [0.0] * 8
    assert {record.delivery.e2e for record in done.records} == {40.0}


def test_tokens_have_the_times_of_their_chunks() -> None:
    """TTFT, gaps and counts are what the server did."""
    (record,) = drive(FakeServer(pace=0.25), [entry("a", 3.0)]).records
    assert record.arrival == 3.0
    assert record.token_times == (3.25, 3.5, 3.75, 4.0)
    assert (record.prompt_tokens, record.finish) == (20, FinishReason.STOP)


def test_a_program_waits_for_its_tool() -> None:
    """The second call leaves when the first has ended and the tool has run, with its answer."""
    server = FakeServer(pace=0.5)
    done = drive(server, two_steps())
    assert [at for at, _ in server.seen] == [1.0, 1.0 + 4 * 0.5 + 2.0]
    assert server.seen[1][1]["messages"][1]["content"] == "t0 t1 t2 t3 "
    assert server.seen[1][1]["program"]["final"] is True
    last = by_id(done)["p-mail"]
    assert last.program is not None
    assert (last.origin, last.program.opened, last.arrival) == (1.0, 1.0, 5.0)


def test_a_failed_step_ends_its_program() -> None:
    """The later call is never sent, counts as failed, and the program is missed."""
    server = FakeServer(odd=lambda body: httpx.Response(500, text="boom"))
    done = drive(server, two_steps())
    assert len(server.seen) == 1
    assert by_id(done)["p-read"].error == "HTTP 500: boom"
    assert by_id(done)["p-mail"].error == "not sent: an earlier call failed"
    figures = results.result(done, {})
    assert (figures["failed"], figures["offered"], figures["attained"]) == (2, 1, 0)


def test_an_interrupt_keeps_what_was_reached() -> None:
    """What is under way is closed as the client's own cancel; missed only if late already."""
    entries = [entry("done"), entry("late", slo=Deadline(0.2)), *two_steps(), entry("far", 90.0)]
    done = drive(FakeServer(), entries, stop_at=1.05)
    assert done.is_interrupted
    records = by_id(done)
    assert sorted(records) == ["done", "late", "p-mail", "p-read"]
    assert records["p-read"].finish is records["p-mail"].finish is FinishReason.ABORT
    figures = results.result(done, {})
    assert (figures["offered"], figures["attained"], figures["cancelled"]) == (2, 1, 1)


def test_an_interrupted_request_that_was_late_is_missed() -> None:
    """Stopping the run does not hide a deadline that had passed."""
    done = drive(FakeServer(pace=5.0), [entry("late", slo=Deadline(1.0))], stop_at=3.0)
    figures = results.result(done, {})
    assert (figures["offered"], figures["attained"], figures["cancelled"]) == (1, 0, 0)


# What servers do


TOKEN = event({"choices": [{"delta": {"content": "x"}}]})
END = event({"choices": [{"delta": {}, "finish_reason": "stop"}]})


def raise_connect_error(body: JSON) -> httpx.Response:
    raise httpx.ConnectError("no route")


@pytest.mark.parametrize(
    ("odd", "error"),
    [
        (lambda body: httpx.Response(400, json={"error": {"message": "bad"}}), "HTTP 400: bad"),
        (lambda body: stream_of(TOKEN), "the stream broke off"),
        (lambda body: stream_of(TOKEN, b"data: <html>\n\n", END), "unreadable event '<html>'"),
        (lambda body: stream_of(TOKEN, event({"error": {"message": "oom"}}), END), "oom"),
        (raise_connect_error, "ConnectError: no route"),
    ],
)
def test_failures_are_missed(odd: Callable[[JSON], httpx.Response], error: str) -> None:
    """Whatever goes wrong is one failed record with its reason; the run goes on."""
    (record,) = drive(FakeServer(odd=odd), [entry("a")]).records
    assert (record.error, record.finish) == (error, FinishReason.ERROR)
    assert not record.is_answered


def test_refusals_are_missed_with_their_reason() -> None:
    """A 429 is no error of the client; it is offered and not attained."""
    busy = {"error": {"code": "queue_full", "message": "come back"}}
    done = drive(FakeServer(odd=lambda body: httpx.Response(429, json=busy)), [entry("a")])
    assert done.records[0].refused == "queue_full"
    figures = results.result(done, {})
    assert (figures["attainment"], figures["refused"], figures["failed"]) == (0.0, 1, 1)
    assert figures["errors"] == {"queue_full": 1}
    assert figures["p95_ttft_offered_ms"] is None


def test_a_request_that_never_ends_is_given_up() -> None:
    """After the timeout it counts as failed, not as the client's cancel."""
    (record,) = drive(FakeServer(pace=10.0), [entry("a")], timeout=25.0).records
    assert record.error == "no end within 25 s"
    assert record.token_times == (10.0, 20.0)
    assert (record.closed, record.is_cancelled) == (25.0, False)


def test_token_counts_per_chunk_are_used() -> None:
    """A server that counts along tells how many tokens a chunk has, text or none."""
    parts = [
        event({"choices": [{"delta": {"content": "ab"}}], "usage": {"completion_tokens": 3}}),
        event({"choices": [{"delta": {"content": ""}}], "usage": {"completion_tokens": 4}}),
        END,
    ]
    (record,) = drive(FakeServer(odd=lambda body: stream_of(*parts)), [entry("a")]).records
    assert len(record.token_times) == 4


# Whole runs


def test_a_whole_run_of_mixed() -> None:
    """Calibrated on the idle server, then loaded: all promises are kept where nothing waits."""
    server = FakeServer(pace=0.05)
    figures, done = run_bench(server, Settings(rate=2.0, duration=30.0, goodput=Goodput(ttft=1.0)))
    assert figures["attainment"] == 1.0
    assert list(figures["by_class"]) == ["best_effort", "chat", "program", "tool", "all"]
    assert figures["calibration"]["chat"]["ttft_ms"] == pytest.approx(50.0)
    assert figures["calibration"]["tool"]["e2el_ms"] == pytest.approx(200.0)
    assert figures["completed"] == len(done.records)
    assert figures["request_goodput"] == figures["request_throughput"]
    assert (figures["policy"], figures["model_id"], figures["slo_in"]) == ("fcfs", "tiny", "body")
    assert figures["client_lag_max_ms"] == pytest.approx(0.0, abs=1e-6)
    chats = [body for _, body in server.seen if "slo" in body and "ttft_ms" in body["slo"]]
    assert chats[0]["slo"] == pytest.approx({"ttft_ms": 150.0, "tpot_ms": 150.0})


def test_a_slower_server_misses_the_same_promises(tmp_path: Path) -> None:
    """With the calibration of the faster run the promises stay, and are missed."""
    path = tmp_path / "idle" / "calibration.json"
    settings = Settings(rate=2.0, duration=20.0, calibration=path)
    fast, _ = run_bench(FakeServer(pace=0.05), settings)
    slow_server = FakeServer(pace=0.5)
    slow, _ = run_bench(slow_server, settings)
    assert path.is_file()
    assert slow["calibration"] == fast["calibration"]
    assert len(slow_server.seen) == slow["completed"]
    assert (fast["attainment"], slow["attainment_without_best_effort"]) == (1.0, 0.0)
    assert slow["service_gain_possible"] == pytest.approx(fast["service_gain_possible"])
    assert 0 < slow["service_gain"] < fast["service_gain"]
    assert slow["service_gain_cutoff"] == 0.0


def test_other_servers_see_no_slo() -> None:
    """`auto` sends SLOs to Giusto only; the verdicts are the client's all the same."""
    server = FakeServer(is_giusto=False)
    figures, _ = run_bench(server, Settings(num_prompts=10))
    assert not any({"slo", "program", "service_tier"} & body.keys() for _, body in server.seen)
    assert (figures["slo_in"], figures["policy"], figures["attainment"]) == ("none", None, 1.0)
    server = FakeServer(is_giusto=False)
    run_bench(server, Settings(num_prompts=10, slo_in=SloIn.HEADERS, model="m", policy="mine"))
    assert any("x-llm-d-slo-ttft-ms" in headers for headers in server.headers)


def test_runs_of_one_server_have_programs_of_their_own() -> None:
    """A second run with the same seed does not touch the closed programs of the first."""
    server = FakeServer()
    for _ in range(2):
        run_bench(server, Settings(num_prompts=20))
    opened = [body["program"]["id"] for _, body in server.seen if "program" in body]
    assert len(opened) == 2 * len(set(opened))


def test_a_calibration_that_fails_says_so() -> None:
    """A server that refuses the workload ends the bench with its own words."""
    server = FakeServer(odd=lambda body: httpx.Response(404, json={"error": {"message": "no"}}))
    with pytest.raises(ConfigError, match="calibration failed on calibration-chat-0: HTTP 404: no"):
        run_bench(server, Settings())


def test_progress_counts() -> None:
    """Sent, answered and attained are there while it runs, with and without a terminal."""
    for progress in (Progress(), Bar(Console(quiet=True))):
        loop = VirtualLoop()
        settings = Settings(num_prompts=20)
        run(
            loop,
            bench(settings, clock=loop, transport=transport(FakeServer()), progress=progress),
        )
        assert progress.num_sent == progress.num_ended == progress.num_answered == 25
        assert progress.num_attained == 25


# Workload files


def write_load(path: Path, count: int = 6) -> Path:
    rows = [
        {"id": f"r{k}", "prompt": "x", "arrival_s": k, "slo": {"deadline_ms": 60_000}}
        for k in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_keeps_its_times_unless_a_rate_is_given(tmp_path: Path) -> None:
    """Without a rate entries leave when the file says; duration and count cut it."""
    settings = Settings(workload=str(write_load(tmp_path / "load.jsonl")))
    assert [e.arrival for e in plan(settings, None)] == [0, 1, 2, 3, 4, 5]
    assert len(plan(replace(settings, duration=3.0), None)) == 4
    assert len(plan(replace(settings, num_prompts=2), None)) == 2
    faster = [e.arrival for e in plan(replace(settings, rate=100.0), None)]
    assert len(faster) == 6
    assert max(faster) < 1.0
    figures, _ = run_bench(FakeServer(is_giusto=False), settings)
    assert (figures["request_rate"], figures["calibration"]) == (None, None)
    assert figures["attainment"] == 1.0


def test_a_cut_file_keeps_programs_whole(tmp_path: Path) -> None:
    """Later calls stay with the programs whose first call is in, and go with the others."""
    rows: list[JSON] = []
    for k in range(3):
        program = {"id": f"p{k}", "call": "a"}
        rows.append({"prompt": "x", "arrival_s": k, "program": program})
        rows.append({"prompt": "x", "program": {**program, "call": "b", "parents": ["a"]}})
    path = tmp_path / "load.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    entries = plan(Settings(workload=str(path), num_prompts=2), None)
    assert [e.step.program for e in entries if e.step] == ["p0", "p0", "p1", "p1"]


def test_workloads_are_found_by_name_or_path(tmp_path: Path) -> None:
    """A misspelt name is answered with the nearest one."""
    assert find_workload("mixed") == "mixed"
    assert find_workload(str(write_load(tmp_path / "a"))) == tmp_path / "a"
    with pytest.raises(ConfigError, match="did you mean 'mixed'"):
        find_workload("mxied")
    with pytest.raises(ConfigError, match="built in: mixed"):
        find_workload("zzz")


def test_workloads_without_text_are_for_the_simulator(tmp_path: Path) -> None:
    """Class mixes and files of token counts are refused before anything is sent."""
    with pytest.raises(ConfigError, match=r"'slo-mix' has token counts only.*give 'mixed'"):
        find_workload("slo-mix")
    path = tmp_path / "counts.jsonl"
    path.write_text('{"id": "a", "prompt_tokens": 7}\n')
    with pytest.raises(ConfigError, match=r"entry a of .* has token counts only"):
        plan(Settings(workload=str(path)), None)


# What was sent


def record_run(tmp_path: Path, server: FakeServer, **settings: Any) -> tuple[JSON, Run, Path]:
    path = tmp_path / "sent.jsonl"
    figures, done = run_bench(server, Settings(save_workload=path, **settings))
    assert done.sent is not None
    records.write(path, done.sent.entries)
    return figures, done, path


def busy(body: JSON) -> httpx.Response | None:
    return httpx.Response(429) if body["max_tokens"] == BEST_EFFORT_CAP else None


def test_a_run_can_be_replayed(tmp_path: Path) -> None:
    """What was sent is written as it left and was judged; the simulator serves all of it."""
    figures, done, path = record_run(tmp_path, FakeServer(odd=busy, counted=9), num_prompts=40)
    assert done.sent is not None
    assert (done.sent.num_estimated, done.sent.num_left_out) == (figures["refused"], 0)
    sent = {e.id: e for e in records.read(path)}
    for record in done.records:
        entry = sent[record.id]
        assert (entry.arrival, entry.output_tokens) == (record.arrival, 4)
        assert entry.service_class == record.service_class
        assert entry.prompt_tokens == (9 if record.refused else 20)
        assert type(entry.promise) is type(record.slo)
        assert asdict(entry.promise) == pytest.approx(asdict(record.slo))
    replayed = build.simulate(
        SimRun(SimSettings(load_profile("smollm2-135m-cpu"), "fcfs"), Load(str(path)), "fcfs")
    )
    assert (replayed["completed"], replayed["offered"]) == (len(sent), figures["offered"])
    assert replayed["total_output_tokens"] == 4 * len(sent)


def test_calls_that_were_never_sent_are_replayed_too(tmp_path: Path) -> None:
    """Their prompt is counted with the length that the earlier answer is expected to have."""
    rows = [entry("a", 0.5), *two_steps(), entry("b", 2.0)]
    path = tmp_path / "load.jsonl"
    records.write(path, rows)
    server = FakeServer(
        odd=lambda body: httpx.Response(500) if "program" in body else None, counted=9
    )
    _, done, _ = record_run(tmp_path, server, workload=str(path))
    assert done.sent is not None
    assert done.sent.num_estimated == 2
    tokens = [(e.id, e.prompt_tokens, e.output_tokens) for e in done.sent.entries]
    assert tokens == [("a", 20, 4), ("p-read", 9, 4), ("p-mail", 9 + 4, 4), ("b", 20, 4)]


def test_an_answer_cut_off_is_at_least_what_came(tmp_path: Path) -> None:
    """A request that timed out keeps its tokens, and the prompt that the server told."""
    path = tmp_path / "load.jsonl"
    records.write(path, [entry("slow", max_tokens=99)])

    def stuck(body: JSON) -> httpx.Response:
        usage = {"prompt_tokens": 31, "completion_tokens": 100}
        return stream_of(event({"choices": [{"delta": {"content": "x"}}], "usage": usage}))

    _, done, _ = record_run(tmp_path, FakeServer(odd=stuck), workload=str(path))
    assert done.sent is not None
    (kept,) = done.sent.entries
    assert (kept.prompt_tokens, kept.output_tokens, done.sent.num_estimated) == (31, 100, 1)


def test_an_interrupted_run_keeps_what_left(tmp_path: Path) -> None:
    """What Ctrl-C cut off is in the recording, what it came before is not."""
    path = tmp_path / "load.jsonl"
    records.write(path, [entry("done"), entry("cut", 1.0), entry("far", 90.0)])
    loop = VirtualLoop()
    settings = Settings(workload=str(path), save_workload=tmp_path / "sent.jsonl")

    async def work() -> Run:
        server = transport(FakeServer(counted=9))
        task = asyncio.ensure_future(bench(settings, clock=loop, transport=server))
        await asyncio.sleep(1.05)
        task.cancel()
        return (await task)[1]

    done = run(loop, work())
    assert done.sent is not None
    tokens = [(e.id, e.prompt_tokens, e.output_tokens) for e in done.sent.entries]
    assert tokens == [("done", 20, 4), ("cut", 9, 4)]


def test_what_nobody_counted_is_left_out(tmp_path: Path) -> None:
    """Without `/tokenize` a refused request goes, and its program with it; both are told."""
    path = tmp_path / "load.jsonl"
    records.write(path, [entry("a"), *two_steps()])
    server = FakeServer(odd=lambda body: httpx.Response(429) if "program" in body else None)
    _, done, _ = record_run(tmp_path, server, workload=str(path))
    assert done.sent is not None
    assert [e.id for e in done.sent.entries] == ["a"]
    assert (done.sent.num_estimated, done.sent.num_left_out) == (0, 2)
    told = saved(path, replace(done.sent, num_estimated=3))
    assert "1 requests; 3 were not answered" in told
    assert "2 are left out, for the server did not count their prompts" in told


# Servers that cannot be used


def probe_error(answer: Callable[[httpx.Request], httpx.Response]) -> str:
    loop = VirtualLoop()
    with pytest.raises(ConfigError) as caught:
        run(loop, bench(Settings(), clock=loop, transport=httpx.MockTransport(answer)))
    return str(caught.value)


def test_unusable_servers_are_explained() -> None:
    """Not there, no key, no model: one sentence that says what to do."""

    def unreachable(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    assert "cannot reach a server at http://127.0.0.1:8000" in probe_error(unreachable)
    assert "give --api-key" in probe_error(lambda request: httpx.Response(401))
    assert "give --model" in probe_error(lambda request: httpx.Response(200, text="hello"))
    assert "give --model" in probe_error(lambda request: httpx.Response(200, json=["x"]))


def test_all_at_once_needs_a_count() -> None:
    """An infinite rate of an endless workload is refused, not run for ever."""
    with pytest.raises(ConfigError, match="needs --num-prompts"):
        run_bench(FakeServer(), Settings(rate=float("inf")))


# Files and pictures


@pytest.fixture(scope="module")
def finished() -> tuple[JSON, Run]:
    server = FakeServer(
        odd=lambda body: httpx.Response(429) if body["max_tokens"] == BEST_EFFORT_CAP else None
    )
    return run_bench(server, Settings(rate=2.0, num_prompts=40))


def test_a_result_file_has_the_run_twice(tmp_path: Path, finished: tuple[JSON, Run]) -> None:
    """`{"runs": [run]}`, with the keys of a single run at the top as well, in strict JSON."""
    figures, _ = finished
    path = tmp_path / "new" / "result.json"
    results.write(path, [figures])
    content = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert content["runs"] == [{k: v for k, v in content.items() if k != "runs"}]
    assert results.read(path) == content["runs"]
    assert content["offered"] == content["by_class"]["all"]["offered"] == 40
    assert content["by_class"]["best_effort"]["p95_ttft_offered_ms"] is None
    assert calibrate.load(path).keys() == {"chat", "tool", "program"}
    results.write(path, [figures, figures])
    assert json.loads(path.read_text()).keys() == {"runs"}


def test_infinite_rates_have_a_form_in_json(tmp_path: Path) -> None:
    """All at once is written as vLLM writes it; other infinities are null."""
    figures, _ = run_bench(FakeServer(), Settings(rate=float("inf"), num_prompts=4))
    assert figures["request_rate"] == "inf"
    results.write(tmp_path / "r.json", [{**figures, "odd": [float("nan")]}])
    assert results.read(tmp_path / "r.json")[0]["odd"] == [None]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"runs": []}', '{"calibration": {"a": 1}}'])
def test_files_without_a_calibration_are_refused(tmp_path: Path, content: str) -> None:
    """The message says what would do."""
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="holds no calibration"):
        calibrate.load(path)


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    """Folders and missing files are named, the result's before the run."""
    with pytest.raises(ConfigError, match=r"cannot write .*Is a directory"):
        results.prepare(tmp_path)
    with pytest.raises(ConfigError, match="cannot read calibration"):
        calibrate.load(tmp_path)
    with pytest.raises(ConfigError, match="is no result file"):
        results.read(tmp_path / "none.json")


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_shows_every_class(finished: tuple[JSON, Run]) -> None:
    """Classes, the whole, and what went wrong are readable in a terminal."""
    figures, _ = finished
    console = Console(width=120, file=io.StringIO())
    console.print(tables(figures))
    text = shown(console)
    for word in ("chat", "program", "best_effort", "all", "TTFT p95", "∞", "× http_429"):
        assert word in text
    odd = {**figures, "client_lag_p99_ms": 500.0, "is_interrupted": True, "request_goodput": 1.0}
    console.print(tables({**odd, "cancelled": 3}))
    text = shown(console)
    for word in ("The client itself was late", "Interrupted", "request goodput", "cancelled"):
        assert word in text


def test_plots_are_written(tmp_path: Path, finished: tuple[JSON, Run]) -> None:
    """Four PNG files, for a run and for one that reached nothing."""
    figures, done = finished
    files = plot(figures, done.records, tmp_path / "plots")
    assert [f.name for f in files] == ["attainment.png", "gain.png", "latency.png", "timeline.png"]
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in files)
    empty = results.result(Run(), {"policy": None, "model_id": "m", "request_rate": 1.0})
    assert len(plot(empty, [], tmp_path / "empty")) == 4


# The command


def app() -> typer.Typer:
    made = typer.Typer()
    made.command()(bench_command)
    return made


def invoke(*arguments: str) -> tuple[int, str]:
    outcome = CliRunner().invoke(app(), list(arguments), env={"COLUMNS": "150"})
    return outcome.exit_code, outcome.output


def test_goodput_is_read_as_vllm_writes_it() -> None:
    """Bounds in milliseconds, in one text or several; what cannot be read is named."""
    expected = Goodput(ttft=0.5, tpot=0.05, e2el=5.0)
    assert parse_goodput(["ttft:500 tpot:50", "e2el:5000"]) == expected
    assert parse_goodput([]) is None
    for bad in ("ttft", "ttft:x", "itl:5", "ttft:-1", "ttft:inf"):
        with pytest.raises(ConfigError, match="give ttft:MS tpot:MS e2el:MS"):
            parse_goodput([bad])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload", "mxied"], "did you mean 'mixed'?"),
        (["--goodput", "ttft:soon"], "cannot read 'ttft:soon'"),
        (["--request-rate", "0"], "--request-rate: give a number above 0"),
        (["--request-rate", "many"], "--request-rate: give a number above 0"),
        (["--duration", "-1"], "--duration: give a number above 0"),
        (["--burstiness", "0"], "--burstiness: give a number above 0"),
        (["--slo-in", "bdy"], "give one of auto, body, headers, none"),
        (["--base-url", "http://127.0.0.1:9"], "cannot reach a server at http://127.0.0.1:9"),
    ],
)
def test_wrong_flags_are_explained(arguments: list[str], message: str) -> None:
    """One sentence on the error stream and status 2; no traceback."""
    code, output = invoke(*arguments)
    assert code == 2
    assert message in " ".join(output.split())
    assert "Traceback" not in output


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._send(json.dumps({"data": [{"id": "tiny"}]}).encode(), "application/json")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._send(TOKEN + TOKEN + END + b"data: [DONE]\n\n", "text/event-stream")

    def _send(self, content: bytes, content_type: str) -> None:
        self.send_response(200)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def base_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_command_over_a_real_port(base_url: str, tmp_path: Path) -> None:
    """Flags as a user of vLLM types them, a table on the screen and a file on the disk."""
    load = write_load(tmp_path / "load.jsonl", 5)
    result, sent = tmp_path / "result.json", tmp_path / "sent.jsonl"
    code, output = invoke(
        *("--base-url", f"{base_url}/v1", "--workload", str(load), "--request-rate", "inf"),
        *("--goodput", "ttft:60000", "tpot:60000", "--save-result", str(result)),
        *("--plots", str(tmp_path / "plots"), "--save-workload", str(sent)),
    )
    assert code == 0, output
    assert "Kept promises" in output
    assert "sent.jsonl has 0 requests; 5 are left out" in " ".join(output.split())
    assert sent.read_text() == ""
    content = json.loads(result.read_text())
    assert (content["completed"], content["attainment"]) == (5, 1.0)
    assert content["request_goodput"] == content["request_throughput"]
    assert (tmp_path / "plots" / "timeline.png").is_file()
