"""The embedded engine behind the `Backend` protocol, in a thread and in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines import make_family, random_prompt
from giusto import build
from giusto.core.clock import WallClock
from giusto.core.errors import ConfigError, ModelError
from giusto.core.events import (
    LEVELS,
    Arrived,
    Estimated,
    Event,
    Finished,
    Rejected,
    Stepped,
)
from giusto.core.request import FinishReason, ProgramRef, Reason, SamplingParams, Submission
from giusto.core.slo import Streaming
from giusto.engine.settings import EngineSettings
from giusto.server.backend import BackendDied, Chunk, Refused
from tiny_models import make_tiny

PROMPT = tuple(random_prompt(40, 1))
#: Minutes of work: whatever a test does to it comes before its end.
ENDLESS = {"max_tokens": 8000, "ignore_eos": True}
WAIT = 60


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return make_family(tmp_path_factory.mktemp("llama"), "llama2")


def ask(name: str, n: int = 1, prompt: tuple[int, ...] = PROMPT, **sampling: Any) -> Submission:
    options = {"temperature": 0.0, "max_tokens": 12} | sampling
    return Submission(
        name, 0.0, len(prompt), prompt_ids=prompt, sampling=SamplingParams(**options), n=n
    )


@contextlib.asynccontextmanager
async def running(folder: Path, *, isolate: bool = False, **settings: Any):
    """A started backend with little memory; stopped at the end, with all memory free again."""
    defaults = {"kv_cache_memory": 40 << 20, "dtype": "float32", "device": "cpu", "check": True}
    made = build.backend(
        EngineSettings(model=str(folder), **(defaults | settings)), WallClock(), isolate=isolate
    )
    await asyncio.wait_for(made.start(), WAIT)
    try:
        yield made
    finally:
        await asyncio.wait_for(made.stop(), WAIT)


async def collect(backend, submission: Submission) -> list[Chunk]:
    return [chunk async for chunk in backend.submit(submission)]


async def until_idle(backend, events: list[Event], count: int) -> None:
    """Wait until so many requests have ended, as the events tell."""
    arrived = asyncio.Event()
    backend.subscribe(lambda _: arrived.set())
    while sum(isinstance(event, Finished | Rejected) for event in events) < count:
        arrived.clear()
        await asyncio.wait_for(arrived.wait(), WAIT)


def assert_free(backend) -> None:
    load = backend.load()
    assert (load.running, load.waiting) == (0, 0)
    assert load.free_blocks == load.total_blocks


def watch(backend) -> list[Event]:
    events: list[Event] = []
    backend.subscribe(events.append)
    return events


@pytest.mark.parametrize("isolate", [False, True], ids=["thread", "process"])
def test_a_life(family, isolate):
    """Start, greedy answers as `transformers` gives, cancel, drain, refusal, stop."""
    expected, _ = family.generate(PROMPT, 12)

    async def run():
        async with running(family.folder, isolate=isolate) as backend:
            assert backend.is_alive
            assert backend.model.name == family.folder.name
            assert backend.model.max_model_len == 512
            events = watch(backend)
            first, second = await asyncio.gather(
                collect(backend, ask("a")), collect(backend, ask("b"))
            )
            for chunks in (first, second):
                assert [t for chunk in chunks for t in chunk.token_ids] == expected
                assert "".join(c.text for c in chunks) == backend.decode(expected)
                assert [c.finish for c in chunks[-1:]] != [None]
            stream = backend.submit(ask("gone", **ENDLESS))
            await anext(stream)
            await stream.aclose()
            await until_idle(backend, events, 3)
            assert events[-1].reason is FinishReason.ABORT
            assert_free(backend)
            await backend.drain(WAIT)
            with pytest.raises(Refused) as refused:
                await collect(backend, ask("late"))
            assert refused.value.reason is Reason.DRAINING
        assert not backend.is_alive
        with pytest.raises(BackendDied):
            await collect(backend, ask("after"))

    asyncio.run(run())


def test_samples_stops_and_logprobs(family):
    """n samples are told apart, a stop string is cut off, log-probabilities come along."""

    async def run():
        async with running(family.folder) as backend:
            chunks = await collect(backend, ask("a", n=3, temperature=1.0, seed=4))
            finals = [chunk for chunk in chunks if chunk.finish]
            assert sorted(chunk.sample for chunk in finals) == [0, 1, 2]
            texts = ["".join(c.text for c in chunks if c.sample == k) for k in range(3)]
            assert len(set(texts)) == 3

            whole = await collect(backend, ask("b", logprobs=3, ignore_eos=True))
            text = "".join(chunk.text for chunk in whole)
            records = [record for chunk in whole for record in chunk.logprobs or ()]
            assert len(records) == 12
            for record in records:
                assert len(record.top) == 3
                assert record.token == record.top[0][0]
                assert record.logprob == pytest.approx(record.top[0][2], abs=1e-5)
            stop = text[4:6]
            cut = await collect(backend, ask("c", stop=(stop,), ignore_eos=True))
            assert "".join(chunk.text for chunk in cut) == text.partition(stop)[0]
            assert cut[-1].finish is FinishReason.STOP

    asyncio.run(run())


def test_cached_tokens_are_told(family):
    """The second request with a prompt learns how much of it was cached."""

    async def run():
        async with running(family.folder) as backend:
            first = await collect(backend, ask("a"))
            second = await collect(backend, ask("b"))
            assert (first[-1].cached_tokens, second[-1].cached_tokens) == (0, 32)
        async with running(family.folder, prefix_caching=False) as backend:
            await collect(backend, ask("a"))
            assert (await collect(backend, ask("b")))[-1].cached_tokens == 0

    asyncio.run(run())


def test_events_reach_subscribers_with_what_was_settled(family):
    """Subscribers see arrivals with SLO and origin, steps and endings; one that fails is logged."""

    async def run(caplog_free: list[Event]):
        async with running(family.folder) as backend:

            def broken(event: Event) -> None:
                raise ZeroDivisionError

            backend.subscribe(broken)
            backend.subscribe(caplog_free.append)
            submission = Submission(
                "a", backend.now(), 40, prompt_ids=PROMPT, slo=Streaming(0.5, 0.05)
            )
            await collect(backend, submission)
            return submission

    events: list[Event] = []
    logging.disable(logging.CRITICAL)
    try:
        submission = asyncio.run(run(events))
    finally:
        logging.disable(logging.NOTSET)
    assert isinstance(events[0], Arrived)
    assert (events[0].request.id, events[0].request.slo) == ("a", Streaming(0.5, 0.05))
    assert events[0].request.origin == submission.arrival
    assert any(isinstance(event, Stepped) for event in events)
    assert isinstance(events[-1], Finished)
    assert events[-1].now >= submission.arrival


def test_a_full_queue_refuses(family):
    """Beyond the queue's bound a request is refused with a time to come back; others go on."""

    async def run():
        async with running(family.folder, max_num_seqs=1, max_num_queued_reqs=1) as backend:
            events = watch(backend)
            first = backend.submit(ask("first", **ENDLESS))
            await anext(first)
            second = asyncio.create_task(collect(backend, ask("second")))
            await asyncio.sleep(0)
            with pytest.raises(Refused) as refused:
                await collect(backend, ask("third"))
            assert refused.value.reason is Reason.QUEUE_FULL
            assert refused.value.retry_after >= 1
            await first.aclose()
            assert (await second)[-1].finish is not None
            await until_idle(backend, events, 3)
            assert_free(backend)

    asyncio.run(run())


def test_drain_waits_for_open_answers(family):
    """An answer under way when draining begins ends as it would have."""

    async def run():
        async with running(family.folder) as backend:
            stream = backend.submit(ask("a", max_tokens=60, ignore_eos=True))
            tokens = list((await anext(stream)).token_ids)
            drained = asyncio.create_task(backend.drain(WAIT))
            await asyncio.sleep(0)
            assert not drained.done()
            async for chunk in stream:
                tokens += chunk.token_ids
            await drained
            assert len(tokens) == 60

    asyncio.run(run())


def test_an_id_in_use_is_refused_to_the_second(family):
    """Two open requests cannot share an id; the first is not disturbed."""

    async def run():
        async with running(family.folder) as backend:
            stream = backend.submit(ask("same"))
            await anext(stream)
            with pytest.raises(ValueError, match="in use"):
                await collect(backend, ask("same"))
            rest = [chunk async for chunk in stream]
            assert rest[-1].finish is not None
            assert (await collect(backend, ask("same")))[-1].finish is not None

    asyncio.run(run())


def test_the_death_of_the_engine_ends_open_requests(family):
    """When the engine's process is killed, open and later requests learn it at once."""

    async def run():
        async with running(family.folder, isolate=True) as backend:
            stream = backend.submit(ask("a", **ENDLESS))
            await anext(stream)
            backend._launched.process.send_signal(signal.SIGKILL)
            with pytest.raises(BackendDied):
                async for _ in stream:
                    pass
            assert not backend.is_alive
            with pytest.raises(BackendDied):
                await collect(backend, ask("b"))
            await asyncio.wait_for(backend.drain(WAIT), WAIT)

    asyncio.run(run())


def test_the_engine_explains_an_open_request(family):
    """Facts of a running request and of its policy's view come back; None for an unknown one."""

    async def run():
        async with running(family.folder) as backend:
            stream = backend.submit(ask("a", **ENDLESS))
            await anext(stream)
            facts = await asyncio.wait_for(backend.explain("a"), WAIT)
            assert (facts["id"], facts["state"], facts["of"]) == ("a", "running", 1)
            assert facts["output_tokens"] >= 1
            assert facts["granted_tokens"] == 1
            assert facts["policy"]["group"] == "decodes without a promise"
            assert await asyncio.wait_for(backend.explain("b"), WAIT) is None
            await stream.aclose()

    asyncio.run(run())


def test_who_asks_why_learns_that_the_engine_has_died(family):
    """A question that no engine is left to answer ends with its death."""

    async def run():
        async with running(family.folder, isolate=True) as backend:
            backend._launched.process.send_signal(signal.SIGKILL)
            with pytest.raises(BackendDied):
                await asyncio.wait_for(backend.explain("a"), WAIT)
            assert not backend.is_alive
            with pytest.raises(BackendDied):
                await backend.explain("a")

    asyncio.run(run())


def test_what_was_learned_of_programs_outlives_a_restart(family, tmp_path):
    """A program that ended is in the state folder, and is read by the next engine."""

    async def run(name: str) -> None:
        async with running(family.folder, state_dir=str(tmp_path / "state")) as backend:
            call = replace(ask(name), program=ProgramRef(name, "only", final=True, app="test"))
            await collect(backend, call)

    asyncio.run(run("first"))
    history = tmp_path / "state" / "programs.jsonl"
    assert len(history.read_text().splitlines()) == 2
    asyncio.run(run("second"))
    assert len(history.read_text().splitlines()) == 3


def test_a_broken_history_is_set_aside(family, tmp_path, caplog):
    """The engine starts without it, says so, and keeps the file."""
    history = tmp_path / "programs.jsonl"
    history.write_text("no history\n")

    async def run() -> None:
        async with running(family.folder, state_dir=str(tmp_path)) as backend:
            await collect(backend, ask("a"))

    asyncio.run(run())
    assert "program history" in caplog.text
    assert (tmp_path / "programs.jsonl.bad").read_text() == "no history\n"


def test_a_forest_of_lengths_works_beside_the_engine(family, tmp_path):
    """Requests are answered while it learns in its own process, and its sample is kept."""

    async def run() -> None:
        async with running(family.folder, lengths="forest", state_dir=str(tmp_path)) as backend:
            for number in range(3):
                await collect(backend, ask(str(number)))

    asyncio.run(run())
    assert (tmp_path / "lengths.npz").exists()


def test_length_bounds_are_told_to_who_subscribes(family):
    """Each arrival is followed by an estimate at every level."""
    seen: list[Event] = []

    async def run() -> None:
        async with running(family.folder) as backend:
            backend.subscribe(seen.append)
            await collect(backend, ask("a"))

    asyncio.run(run())
    (told,) = [event for event in seen if isinstance(event, Estimated)]
    assert told.request_id == "a"
    assert len(told.lengths) == len(LEVELS)
    assert list(told.lengths) == sorted(told.lengths)


@pytest.mark.parametrize("isolate", [False, True], ids=["thread", "process"])
def test_a_broken_folder_is_told_in_the_engines_own_words(tmp_path, isolate):
    """A model that cannot be loaded fails `start` with the sentence that says what to do."""
    folder = make_tiny(tmp_path / "broken")
    (folder / "model.safetensors").unlink()
    made = build.backend(EngineSettings(model=str(folder)), WallClock(), isolate=isolate)
    with pytest.raises(ModelError, match="download the model in safetensors form"):
        asyncio.run(asyncio.wait_for(made.start(), WAIT))
    assert not made.is_alive


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_model_len": 1000}, "--max-model-len 1000 must lie between 2 and"),
        ({"kv_cache_memory": 5}, "give --kv-cache-memory"),
        ({"device": "cuda:99"}, "cuda:99"),
    ],
)
def test_settings_that_cannot_be_honoured_are_told(family, settings, said):
    """What only the loaded model can judge fails `start` with one sentence as well."""
    made = build.backend(
        EngineSettings(model=str(family.folder), **settings), WallClock(), isolate=False
    )
    with pytest.raises(ModelError, match=said):
        asyncio.run(asyncio.wait_for(made.start(), WAIT))


def test_an_unknown_policy_fails_before_a_model_is_loaded():
    """Policy and options are checked at once, whatever the model."""
    with pytest.raises(ConfigError, match="did you mean edf"):
        build.backend(EngineSettings(model="/nowhere", scheduling_policy="edff"), WallClock())


def test_build_gives_what_the_server_tells(family):
    """`build.engine` reports sizes, type and the model's own name."""
    settings = EngineSettings(model=str(family.folder), dtype="float32", kv_cache_memory=1 << 20)
    made, ready = build.engine(settings, WallClock())
    assert ready["name"] == family.folder.name
    assert ready["num_blocks"] == made.scheduler.pool.num_blocks
    assert ready["kv_cache_bytes"] <= 1 << 20
    assert (ready["dtype"], ready["device"]) == ("float32", "cpu")
    assert ready["max_model_len"] == 512
