"""Steps in virtual time: what they compute, how long they take, which tokens they yield."""

from __future__ import annotations

from math import log
from random import Random
from statistics import fmean, stdev

import pytest

from giusto.core.latency import BatchShape
from giusto.core.plan import Grant, Plan, Yield
from giusto.core.request import FinishReason, Request, SamplingParams, Submission
from giusto.sim.executor import Execution, SimExecutor
from giusto.sim.truth import Truth
from simulated import LATENCY


def executor(noise: float = 0.0, speed: float = 1.0, seed: int = 0, **lengths: int) -> SimExecutor:
    return SimExecutor(LATENCY, Truth(lengths), Random(seed), noise=noise, speed=speed)


def request(name: str, prompt: int, *, ids: tuple[int, ...] = (), seed: int | None = None):
    sampling = SamplingParams(max_tokens=64, seed=seed)
    return Request.of(Submission(name, 0.0, prompt, ids, sampling=sampling))


def step(runner: SimExecutor, *grants: tuple[Request, int]) -> Execution:
    """Launch grants, run them, and book what they yield as a commit does."""
    for one, num_tokens in grants:
        one.launch(num_tokens)
    plan = Plan(0, tuple(Grant(one.id, num_tokens) for one, num_tokens in grants))
    done = runner.execute(plan, {one.id: one for one, _ in grants})
    for one, num_tokens in grants:
        one.land(num_tokens, 0)
        one.emit(done.yields[one.id].tokens, 0.0)
    return done


def test_shape_of_a_step() -> None:
    """Chunks count with the context before them, single tokens with the context they read."""
    runner = executor(a=9, b=9)
    a, b = request("a", 10), request("b", 30)
    first = step(runner, (a, 10), (b, 20))
    assert first.shape == BatchShape(prefill_tokens=30)
    second = step(runner, (a, 1), (b, 10))
    # a decodes its 11th token; b's ten tokens each look at the 20 before them.
    assert second.shape == BatchShape(10, 10 * 20, 1, 11)
    third = step(runner, (a, 1), (b, 1))
    assert third.shape == BatchShape(decode_seqs=2, kv_tokens=12 + 31)


def test_seconds_are_the_profiles() -> None:
    """Without noise a step takes what the profile says, divided by the machine's speed."""
    a = request("a", 10)
    done = step(executor(a=9), (a, 10))
    assert done.seconds == LATENCY.step_time(BatchShape(prefill_tokens=10))
    slow = step(executor(a=9, speed=0.5), (request("a", 10), 10))
    assert slow.seconds == 2 * done.seconds


def test_noise_is_seeded_and_unbiased_in_the_log() -> None:
    """Two executors with one seed take equal times; the spread is the one asked for."""

    def times(seed: int) -> list[float]:
        runner = executor(noise=0.1, seed=seed)
        runs = (request(str(k), 10) for k in range(2000))
        return [runner.execute(Plan(0), {one.id: one}).seconds for one in runs]

    assert times(3)[:50] == times(3)[:50]
    assert times(3)[:50] != times(4)[:50]
    logs = [log(seconds / LATENCY.step_time(BatchShape())) for seconds in times(3)]
    assert fmean(logs) == pytest.approx(0.0, abs=0.01)
    assert stdev(logs) == pytest.approx(0.1, rel=0.1)


def test_a_chunk_yields_nothing_until_the_prompt_is_computed() -> None:
    """The step that computes the last known token makes the next one known."""
    runner = executor(a=3)
    a = request("a", 30)
    assert step(runner, (a, 20)).yields == {"a": Yield()}
    assert step(runner, (a, 10)).yields == {"a": Yield((0,))}
    assert step(runner, (a, 1)).yields == {"a": Yield((0,))}
    assert step(runner, (a, 1)).yields == {"a": Yield((0,), finish=FinishReason.STOP)}


def test_recomputing_yields_nothing_new() -> None:
    """After a preemption the tokens that were known are computed again, and not drawn again."""
    runner = executor(a=4)
    a = request("a", 10)
    step(runner, (a, 10))
    step(runner, (a, 1))
    assert a.num_output_tokens == 2
    a.num_computed_tokens = 0
    assert step(runner, (a, 5)).yields == {"a": Yield()}
    assert step(runner, (a, 6)).yields == {"a": Yield()}
    assert step(runner, (a, 1)).yields == {"a": Yield((0,))}
    assert step(runner, (a, 1)).yields["a"].finish is FinishReason.STOP
    assert a.num_output_tokens == 4


def test_a_step_planned_ahead_draws_the_token_after() -> None:
    """With a step in flight the next one reads its token and yields the one after it."""
    runner = executor(a=3)
    a = request("a", 10, ids=tuple(range(10)), seed=7)
    seen = []
    for num_tokens in (10, 1, 1):
        a.launch(num_tokens)
        seen.append(runner.execute(Plan(0, (Grant("a", num_tokens),)), {"a": a}))
    assert [done.yields["a"].tokens for done in seen] == [((7 << 32) + k,) for k in range(3)]
    assert [done.yields["a"].finish for done in seen] == [None, None, FinishReason.STOP]
    assert [done.shape.kv_tokens for done in seen] == [0, 11, 12]


def test_an_answer_is_the_text_that_later_calls_quote() -> None:
    """Token k of an answer has the number that a piece of that text has."""
    runner = executor(a=5)
    a = request("a", 2, ids=(1, 2), seed=9)
    assert step(runner, (a, 2)).yields["a"].tokens == (9 << 32,)
    assert step(runner, (a, 1)).yields["a"].tokens == ((9 << 32) + 1,)


def test_a_length_of_nothing_is_one_token() -> None:
    """A trace may record an empty answer: the step that computes the prompt ends it."""
    assert step(executor(a=0), (request("a", 4), 4)).yields["a"].finish is FinishReason.STOP


def test_what_ended_is_forgotten() -> None:
    """An id that comes again begins anew."""
    runner = executor(a=2)
    for _ in range(2):
        a = request("a", 4)
        step(runner, (a, 4))
        assert step(runner, (a, 1)).yields["a"].finish is FinishReason.STOP
        runner.forget("a")


def test_samples_share_a_length() -> None:
    """`a#1` is as long as `a`; a request that nobody drew a length for is an error."""
    truth = Truth({"a": 5, "b#1": 7})
    assert truth.output_tokens("a#1") == 5
    assert truth.output_tokens("b#1") == 7
    with pytest.raises(KeyError):
        truth.output_tokens("c")


def test_an_answer_that_fills_its_cap_does_not_stop_by_itself() -> None:
    """It is the scheduler that cuts it, as on the engine: the client reads `length`."""
    runner = executor(a=64, b=63)
    for name, last in (("a", None), ("b", FinishReason.STOP)):
        one = request(name, 4)
        made = [step(runner, (one, 4))] + [step(runner, (one, 1)) for _ in range(62)]
        assert made[-1].yields[name].finish is last
