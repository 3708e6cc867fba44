"""Measure what steps cost on this machine: quickly at start-up, thoroughly for `giusto profile`.

At start-up, `measure` times the bare model on a few shapes and `fit` makes the latency model that
policies begin with. `make_profile` times whole steps, batch building and sampling included, on a
grid of cases, again and again in changing order, and makes the profile that the simulator loads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random
from statistics import mean, median

import torch
from torch.nn.functional import linear

from giusto.core.clock import Clock
from giusto.core.events import Event, Stepped
from giusto.core.latency import BatchShape, LinearLatency
from giusto.core.plan import Grant, Limits, Plan
from giusto.core.request import Request, SamplingParams, Submission
from giusto.engine.engine import Engine
from giusto.engine.model import Decoder, has_native_bf16
from giusto.engine.runner import ModelRunner
from giusto.engine.tensors import BatchTensors, KVCache, bytes_per_block
from giusto.profiles.fit import Timing, fit_latency, noise, residuals
from giusto.profiles.grid import Case, Room, cases
from giusto.profiles.profile import Profile
from giusto.spec.tree import ROOT, TokenTree

log = logging.getLogger(__name__)

#: (sequences, new tokens each, context before them): decodes, whole prompts, later chunks.
SHAPES = (
    *((count, 1, context) for context in (64, 512) for count in (1, 4, 8, 16, 32)),
    *((1, chunk, 0) for chunk in (16, 64, 256)),
    *((1, chunk, 512) for chunk in (16, 64, 256)),
)
#: The same where each sequence verifies a token tree: its new tokens are the root and its nodes.
TREES = ((1, 5, 128), (1, 13, 128), (8, 5, 128), (32, 5, 128))


def measure(
    decoder: Decoder, kv: KVCache, clock: Clock, *, trees: bool = False, repeats: int = 3
) -> list[tuple[BatchShape, float]]:
    """Time each shape that fits the cache: one warm-up, then the median of `repeats`, seconds.

    With `trees`, steps that verify candidates too. Writes to the cache: call it before anything is
    served.
    """
    steps = [
        (_batch(count, tokens, context, kv, decoder.device), _shape(count, tokens, context))
        for count, tokens, context in _fitting(kv, SHAPES) or [(1, 1, 0)]  # fits any cache
    ]
    for count, tokens, context in _fitting(kv, TREES) if trees else ():
        batch = _with_chains(_batch(count, tokens, context, kv, decoder.device))
        steps.append((batch, replace(_shape(count, 1, context), nodes=count * (tokens - 1))))
    samples = []
    for batch, shape in steps:
        times = []
        for _ in range(repeats + 1):
            started = clock.now()
            decoder.forward(batch, kv).argmax(-1).tolist()
            times.append(clock.now() - started)
        samples.append((shape, median(times[1:])))
    return samples


def decode_once(decoder: Decoder, kv: KVCache) -> None:
    """One token of one sequence, as `measure` times it."""
    decoder.forward(_batch(1, 1, 0, kv, decoder.device), kv)


def fit(samples: list[tuple[BatchShape, float]]) -> LinearLatency:
    """Fit the model and log how far it is off."""
    model = LinearLatency.fit(samples)
    errors = [abs(model.step_time(shape) / seconds - 1) for shape, seconds in samples]
    log.info(
        "step times measured: %.1f ms alone, median error of the fit %.0f %%",
        1e3 * samples[0][1],
        100 * median(errors),
    )
    return model


def _fitting(kv: KVCache, shapes: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    return [
        (count, tokens, context)
        for count, tokens, context in shapes
        if count * -(-(context + tokens) // kv.block_size) <= kv.num_blocks
    ]


def _shape(count: int, tokens: int, context: int) -> BatchShape:
    if tokens == 1:
        return BatchShape(decode_seqs=count, kv_tokens=count * (context + 1))
    return BatchShape(prefill_tokens=count * tokens, prefill_kv=count * tokens * context)


def _batch(
    count: int, tokens: int, context: int, kv: KVCache, device: torch.device | str
) -> BatchTensors:
    """`count` sequences side by side in the cache, each with `tokens` new ones."""
    end = context + tokens
    width = -(-end // kv.block_size)
    tables = torch.arange(count * width).view(count, width)
    positions = torch.arange(context, end).repeat(count)
    first = tables[:, :1].repeat_interleave(tokens, 1).view(-1) * kv.block_size
    return BatchTensors(
        token_ids=torch.zeros(count * tokens, dtype=torch.int64, device=device),
        positions=positions.to(device),
        slot_mapping=(first + positions).to(device),
        query_lens=[tokens] * count,
        context_lens=[end] * count,
        block_tables=tables.to(device),
        logits_indices=torch.arange(tokens - 1, count * tokens, tokens, device=device),
    )


def _with_chains(batch: BatchTensors) -> BatchTensors:
    """The same tokens as roots with their candidates, one after the other; each has logits."""
    size = batch.query_lens[0]
    seen = torch.ones(size, size, dtype=torch.bool, device=batch.token_ids.device).tril()
    return replace(
        batch,
        trees=dict.fromkeys(range(len(batch.query_lens)), seen),
        logits_indices=torch.arange(len(batch.token_ids), device=batch.token_ids.device),
    )


#: Rounds over the grid whose times count, after one that warms up.
ROUNDS = 7
#: What users sample with, and what the built-in workload does: a draw costs more than an argmax.
SAMPLING = SamplingParams(temperature=0.7, top_p=0.95, seed=0)
#: Whose mean tells how fast the machine is: where its speed flips within seconds, one would not.
CALIBRATION_LOOPS = 4
#: Above this difference between the loops before and after, the machine was not the same.
STEADY = 0.05


@dataclass(frozen=True, slots=True)
class Subject:
    """What is profiled, in words, and the limits that it is used with."""

    name: str
    hardware: str
    model: str
    limits: Limits
    max_model_len: int


def make_profile(
    runner: ModelRunner,
    clock: Clock,
    rng: Random,
    subject: Subject,
    on_round: Callable[[int, int], None] = lambda done, rounds: None,
) -> tuple[list[Timing], Profile]:
    """Time the grid and fit a profile; half a minute to a few, on an engine that serves nothing.

    `on_round` is told the rounds done, of how many. Writes to the cache. Warns when the machine's
    speed changed meanwhile: run it again then.
    """
    kv = runner.kv
    limits = subject.limits
    room = Room(
        limits.max_num_batched_tokens,
        limits.max_num_seqs,
        subject.max_model_len,
        kv.num_blocks,
        kv.block_size,
    )
    before = mean(calibration_loop(clock) for _ in range(CALIBRATION_LOOPS))
    timings = time_cases(runner, clock, rng, cases(room), on_round)
    after = mean(calibration_loop(clock) for _ in range(CALIBRATION_LOOPS))
    if abs(after / before - 1) > STEADY:
        log.warning(
            "the calibration loop took %.3f s before and %.3f s after: the machine is not quiet",
            before,
            after,
        )
    latency = fit_latency(timings)
    alone = BatchShape(decode_seqs=1, kv_tokens=128)
    return timings, Profile(
        name=subject.name,
        hardware=subject.hardware,
        model=subject.model,
        measured=f"giusto profile: {len(timings)} kinds of step, medians of {ROUNDS} rounds; "
        f"calibration loop {before:.3f} s before and {after:.3f} s after",
        latency=latency,
        block_size=kv.block_size,
        num_blocks=kv.num_blocks,
        bytes_per_block=bytes_per_block(runner.decoder.config, kv.block_size, runner.decoder.dtype),
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_num_seqs=limits.max_num_seqs,
        slo_unit=latency.step_time(alone),
        noise=noise(timings),
        calibration=(before + after) / 2,
        residuals=residuals(latency, timings),
    )


def time_cases(
    runner: ModelRunner,
    clock: Clock,
    rng: Random,
    grid: Sequence[Case],
    on_round: Callable[[int, int], None] = lambda done, rounds: None,
) -> list[Timing]:
    """Time each case once a round, each round in another order: drift then hits all alike."""
    steps = [_step(case, runner, rng) for case in grid]
    times: list[list[float]] = [[] for _ in grid]
    shapes: list[BatchShape] = [BatchShape()] * len(grid)
    order = list(range(len(grid)))
    for done in range(ROUNDS + 1):
        rng.shuffle(order)
        for at in order:
            plan, requests, trees = steps[at]
            started = clock.now()
            execution = runner.execute(plan, requests, trees)
            ended = clock.now()
            shapes[at] = execution.shape
            if done:
                times[at].append(ended - started)
        on_round(done, ROUNDS)
    return [
        Timing(case.kind, shape, tuple(taken))
        for case, shape, taken in zip(grid, shapes, times, strict=True)
    ]


def _step(
    case: Case, runner: ModelRunner, rng: Random
) -> tuple[Plan, dict[str, Request], dict[str, TokenTree]]:
    """The plan of a case, its requests, side by side in the cache, and what they speculate."""
    size, vocab_size = runner.kv.block_size, runner.sampler.vocab_size
    requests: dict[str, Request] = {}
    trees: dict[str, TokenTree] = {}
    grants = []
    next_block = 0
    for number, (held, new) in enumerate(case.sequences):
        length = held + new
        ids = tuple(rng.choices(range(vocab_size), k=length))
        request = Request.of(
            Submission(str(number), 0.0, length, prompt_ids=ids, sampling=SAMPLING)
        )
        request.num_computed_tokens = held
        width = -(-(length + case.nodes) // size)
        request.blocks = list(range(next_block, next_block + width))
        next_block += width
        requests[request.id] = request
        if case.nodes:
            trees[request.id] = _chain(rng.choices(range(vocab_size), k=case.nodes))
        grants.append(Grant(request.id, new))
    return Plan(0, tuple(grants)), requests, trees


def _chain(tokens: Sequence[int]) -> TokenTree:
    tree, node = TokenTree(), ROOT
    for token in tokens:
        node = tree.add(node, token)
    return tree


#: Streams and tokens each over which the gap between steps is taken.
_GAP_STREAMS, _GAP_TOKENS = 8, 48


def step_gap(engine: Engine) -> float:
    """Seconds from the end of a step to the start of the next: booking, events, the next plan.

    The median over a few streams that decode together. What a server adds (sending events to
    another process) is not in it.
    """
    spans: list[tuple[float, float]] = []

    def observe(event: Event) -> None:
        if isinstance(event, Stepped):
            spans.append((event.outcome.started, event.outcome.ended))

    engine.scheduler.subscribe(observe)
    sampling = replace(SAMPLING, max_tokens=_GAP_TOKENS, ignore_eos=True)
    for number in range(_GAP_STREAMS):
        ids = tuple(range(10 * number + 1, 10 * number + 9))
        ask = Submission(f"gap-{number}", 0.0, len(ids), prompt_ids=ids, sampling=sampling)
        engine.submit(ask)
    while engine.scheduler.has_work:
        engine.step()
    return median(after[0] - before[1] for before, after in pairwise(spans))


#: The calibration loop's work: (rows, passes) through matrices of the default model's shapes. Few
#: rows wait for memory as decodes do, many for arithmetic as prompts do; neighbours slow either.
_CALIBRATION_WORK = ((8, 50), (256, 4))
_CALIBRATION_LAYERS = ((960, 576), (576, 576), (3072, 576), (576, 1536))
_CALIBRATION_HEAD = (49_152, 576)


def calibration_loop(clock: Clock) -> float:
    """Seconds that a fixed amount of work takes: about one on two good cores.

    The work is the heaviest part of decodes and of prompts, reading some 135 million weights once
    per pass, on this machine's CPU with the threads of this process. Its ratio to a profile's
    `calibration` says how much slower the machine is today; compare only loops of one machine and
    environment.
    """
    dtype = torch.bfloat16 if has_native_bf16() else torch.float32
    shapes = (*_CALIBRATION_LAYERS * 30, _CALIBRATION_HEAD)
    weights = [torch.full(shape, 1 / shape[1], dtype=dtype) for shape in shapes]
    inputs = {
        (rows, width): torch.ones(rows, width, dtype=dtype)
        for rows, _ in _CALIBRATION_WORK
        for _, width in shapes
    }

    def run(rows: int, passes: int) -> None:
        for _ in range(passes):
            for weight in weights:
                linear(inputs[rows, weight.shape[1]], weight)

    with torch.inference_mode():
        for rows, _ in _CALIBRATION_WORK:
            run(rows, passes=1)
        started = clock.now()
        for rows, passes in _CALIBRATION_WORK:
            run(rows, passes)
        return clock.now() - started
