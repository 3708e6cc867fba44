"""What goes wrong stays with whom it concerns: failing steps, aborts, bad messages."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading

import pytest

from engines import Family, TinyEngine, make_family, random_prompt
from giusto.core.events import Finished
from giusto.core.plan import StepOutcome
from giusto.core.request import FinishReason, Reason, SamplingParams, Submission
from giusto.engine.loop import Loop
from giusto.engine.wire import FrameReader, decode_event, encode_ask, pack_frame

PROMPT = random_prompt(40, 1)
GREEDY = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 12}


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> Family:
    return make_family(tmp_path_factory.mktemp("llama"), "llama2")


@pytest.fixture
def engine(family: Family) -> TinyEngine:
    return TinyEngine(family.model)


def fail_once(engine: TinyEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next forward pass fail after it has begun."""
    decoder = engine.engine.runner.decoder
    forward = type(decoder).forward

    def failing(self, batch, kv):
        monkeypatch.undo()
        raise RuntimeError("out of memory, say")

    assert forward is not failing
    monkeypatch.setattr(type(decoder), "forward", failing)


# A step that fails


def test_a_failing_step_ends_its_requests_and_no_others(engine, family, monkeypatch, caplog):
    """Requests of the step end with an error that tells nothing of the inside; the engine lives."""
    engine.submit("victim", PROMPT, **GREEDY)
    fail_once(engine, monkeypatch)
    with caplog.at_level(logging.CRITICAL):
        engine.step()
    victim = engine.answers["victim"]
    assert (victim.finish, victim.error) == (FinishReason.ERROR, "RuntimeError in the model")
    engine.assert_empty()
    engine.submit("next", PROMPT[:9], **GREEDY)
    assert engine.run()["next"].finish is FinishReason.LENGTH


def test_a_failing_step_leaves_nothing_in_the_prefix_cache(engine, family, monkeypatch, caplog):
    """Blocks that a failed step was to fill are never found by a later request."""
    expected, _ = family.generate(PROMPT, 1)
    engine.submit("victim", PROMPT, **GREEDY)
    fail_once(engine, monkeypatch)
    with caplog.at_level(logging.CRITICAL):
        engine.step()
    assert engine.scheduler.pool.num_cached == 0
    engine.submit("again", PROMPT, **GREEDY)
    assert engine.run()["again"].tokens[:1] == expected


def test_what_was_computed_before_a_failure_stays_cached(family, monkeypatch, caplog):
    """Blocks of earlier steps are sound and may be shared."""
    engine = TinyEngine(family.model, max_num_batched_tokens=16)
    engine.submit("victim", PROMPT, **GREEDY)
    engine.step()
    fail_once(engine, monkeypatch)
    with caplog.at_level(logging.CRITICAL):
        engine.step()
    assert engine.scheduler.pool.num_cached == 1
    engine.submit("again", PROMPT, **GREEDY)
    alone = TinyEngine(family.model)
    alone.submit("again", PROMPT, **GREEDY)
    assert engine.run()["again"].tokens == alone.run()["again"].tokens


def test_a_failure_of_one_sample_of_many_ends_the_group(engine, monkeypatch, caplog):
    """When the prompt of n=3 fails, the siblings still end, by themselves, and nothing leaks."""
    engine.submit("a", PROMPT, n=3, **GREEDY)
    fail_once(engine, monkeypatch)
    with caplog.at_level(logging.CRITICAL):
        engine.run()
    assert engine.answers["a"].finish is FinishReason.ERROR
    assert all(engine.answers[f"a#{k}"].finish is not None for k in (1, 2))


# Aborts


@pytest.mark.parametrize("steps", range(6))
def test_an_abort_at_any_moment_frees_everything(family, steps):
    """Waiting, mid-prompt, decoding, with siblings: an abort leaves nothing, others go on."""
    engine = TinyEngine(family.model, max_num_batched_tokens=24)
    options = GREEDY | {"stop": ("never there",), "presence_penalty": 0.5}
    engine.submit("gone", PROMPT, n=2, **options)
    engine.submit("stays", PROMPT[:20], **options)
    for _ in range(steps):
        engine.step()
    engine.engine.abort("gone")
    engine.engine.abort("gone")
    engine.engine.abort("never was")
    engine.run()
    assert engine.answers["gone"].finish is FinishReason.ABORT
    assert engine.answers["gone#1"].finish is FinishReason.ABORT
    assert len(engine.answers["stays"].tokens) == 12


def test_a_request_that_can_never_fit_is_refused(family):
    """Prompt and output beyond all memory are refused at once."""
    engine = TinyEngine(family.model, num_blocks=3)
    engine.submit("big", PROMPT, max_tokens=9)
    assert engine.run()["big"].refused is Reason.TOO_LARGE


def test_stop_strings_end_an_answer_across_tokens(family):
    """An answer ends with the token that completes a stop string, however many tokens spell it."""
    engine = TinyEngine(family.model)
    engine.submit("free", PROMPT, **GREEDY)
    tokens = engine.run()["free"].tokens
    pieces = [engine.engine.runner.tokenizer.decode([token]) for token in tokens]
    stop = "".join(pieces[3:6])
    assert "\ufffd" not in stop
    engine.submit("stopped", PROMPT, **GREEDY | {"stop": (stop,)})
    stopped = engine.run()["stopped"]
    assert stopped.finish is FinishReason.STOP
    assert stopped.tokens == tokens[: len(stopped.tokens)]
    assert len(stopped.tokens) <= 6


def test_stop_ids_and_ends_of_text(family):
    """A stop id ends an answer; so does an end of text, unless it is to be ignored."""
    engine = TinyEngine(family.model)
    engine.submit("free", PROMPT, **GREEDY)
    tokens = engine.run()["free"].tokens
    last = next(i for i, token in enumerate(tokens) if i >= 3 and token not in tokens[:i])
    engine.submit("stopped", PROMPT, **GREEDY | {"stop_token_ids": (tokens[last],)})
    assert engine.run()["stopped"].tokens == tokens[: last + 1]
    force = {"temperature": 0.0, "max_tokens": 4, "logit_bias": ((2, 100.0),)}
    engine.submit("ends", PROMPT, **force)
    engine.submit("goes on", PROMPT, ignore_eos=True, **force)
    answers = engine.run()
    assert (answers["ends"].tokens, answers["ends"].finish) == ([2], FinishReason.STOP)
    assert answers["goes on"].tokens == [2] * 4


# The loop


class Driven:
    """A loop in a thread, with the test at the other end of its socket."""

    def __init__(self, engine: TinyEngine) -> None:
        self.tiny = engine
        self.ours, theirs = socket.socketpair()
        self.ours.settimeout(20)
        self._frames = FrameReader()
        self._pending: list[dict] = []
        self._finished: dict[str, Finished] = {}
        self.load: dict = {}
        self.thread = threading.Thread(target=self._run, args=(theirs,))
        self.thread.start()
        assert self.receive() == {"ready": {"some": "thing"}}

    def _run(self, connection: socket.socket) -> None:
        with connection:
            Loop(self.tiny.engine, connection).run({"some": "thing"})

    def send(self, *messages: dict) -> None:
        self.ours.sendall(b"".join(map(pack_frame, messages)))

    def receive(self) -> dict:
        while not self._pending:
            data = self.ours.recv(1 << 16)
            assert data, "the loop has ended"
            self._pending += self._frames.feed(data)
        return self._pending.pop(0)

    def until_finished(self, name: str) -> Finished:
        """Receive until a request has ended."""
        while name not in self._finished:
            message = self.receive()
            self.load = message["load"]
            for data in message["events"]:
                if data[0] == "Finished":
                    self._finished[data[1]] = decode_event(data)
        return self._finished.pop(name)


@pytest.fixture
def loop(engine):
    driven = Driven(engine)
    with contextlib.closing(driven.ours):
        yield driven
    driven.thread.join(20)
    assert not driven.thread.is_alive()


def submit(name: str, **options) -> dict:
    sampling = SamplingParams(**{**GREEDY, **options})
    ask = Submission(name, 0.0, len(PROMPT), prompt_ids=tuple(PROMPT), sampling=sampling)
    return {"op": "submit", "ask": encode_ask(ask)}


BAD = (
    {},
    {"op": "nonsense"},
    {"op": ["submit"]},
    {"op": "submit"},
    {"op": "submit", "ask": {}},
    {"op": "submit", "ask": "text"},
    {"op": "submit", "ask": {**submit("x")["ask"], "prompt_ids": 5}},
    {"op": "submit", "ask": {**submit("x")["ask"], "slo": ["Nothing", {}]}},
    {"op": "abort"},
    {"op": "abort", "id": "nobody"},
    {"op": "abort", "id": ["a"]},
    {"op": "close_program", "id": "nothing"},
    [],
    "text",
    None,
    7,
)


def test_a_bad_message_costs_nobody_else_anything(loop, caplog):
    """Messages that make no sense are logged, and the ones after them obeyed."""
    with caplog.at_level(logging.CRITICAL):
        loop.send(submit("before"), *BAD, submit("after"))
        assert loop.until_finished("before").reason is FinishReason.LENGTH
        assert loop.until_finished("after").reason is FinishReason.LENGTH
    assert loop.load["free_blocks"] == loop.load["total_blocks"]


def test_a_submission_that_cannot_be_taken_is_answered(loop, caplog):
    """A client whose request breaks on the way in gets an error instead of waiting for ever."""
    broken = submit("broken")
    broken["ask"]["prompt_ids"] = [1 << 70] * len(PROMPT)
    with caplog.at_level(logging.CRITICAL):
        loop.send(broken)
        assert loop.until_finished("broken").reason is FinishReason.ERROR
    loop.send({"op": "abort", "id": "broken"}, submit("after"))
    assert loop.until_finished("after").reason is FinishReason.LENGTH
    assert loop.load["free_blocks"] == loop.load["total_blocks"]


def test_an_id_in_use_does_not_disturb_its_owner(loop, caplog):
    """A second submission under an id that is in use is logged; the first ends as it would."""
    with caplog.at_level(logging.CRITICAL):
        loop.send(submit("twice", max_tokens=30), submit("twice"))
        assert loop.until_finished("twice").reason is FinishReason.LENGTH
    assert loop.load["running"] == loop.load["waiting"] == 0


def test_an_abort_on_an_idle_engine_forgets_the_request(loop):
    """What the sampler and the stop matcher remember of an aborted request goes with it."""
    loop.send(submit("gone", max_tokens=3500, stop=("never there",), presence_penalty=0.5))
    loop.receive()
    loop.send({"op": "abort", "id": "gone"})
    assert loop.until_finished("gone").reason is FinishReason.ABORT
    loop.send(submit("after"))
    loop.until_finished("after")
    loop.tiny.assert_empty()


def test_a_drained_loop_refuses_newcomers_and_finishes_the_rest(loop):
    """After `drain` what runs goes on to its end and what comes is refused."""
    loop.send(submit("old", max_tokens=30), {"op": "drain"}, submit("new"))
    seen = []
    while not any(data[:2] == ["Finished", "old"] for data in seen):
        seen += loop.receive()["events"]
    assert ["Rejected", "new", "draining"] in [[*data[:2], *data[3:4]] for data in seen]


def test_the_outcome_of_a_step_reaches_the_scheduler_whole(engine):
    """Each step yields exactly one entry per grant, and as many tokens as rows of logits."""
    engine.submit("a", PROMPT, **GREEDY)
    engine.run()
    outcomes = [e.outcome for e in engine.events if hasattr(e, "outcome")]
    assert all(isinstance(outcome, StepOutcome) for outcome in outcomes)
    assert sum(len(o.yields["a"].tokens) for o in outcomes) == 12
