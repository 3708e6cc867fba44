"""The wiring: settings in, objects with their dependencies and subscribers out. The only such file.

Called by `cli` and by the engine's own process (`worker`). Imports torch only when asked for an
engine.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from giusto.core.clock import Clock, WallClock
from giusto.core.errors import ConfigError, GiustoError
from giusto.core.kv import BlockPool
from giusto.core.latency import NUM_TERMS, LatencyModel, LinearLatency
from giusto.core.plan import Caps, Limits, Policy
from giusto.core.programs import ProgramTable
from giusto.core.queue import QueueLimits
from giusto.core.scheduler import Scheduler
from giusto.engine.settings import EngineSettings
from giusto.learning import Learners, predictor
from giusto.policies import make, module_named
from giusto.policies.base import Dependencies
from giusto.policies.speculating import Speculating
from giusto.predict.base import LengthPredictor
from giusto.predict.feeds import InlineForest, virtual_cpu
from giusto.predict.forest_client import ForestFeed
from giusto.programs.base import ProgramMatcher, Unforeseen
from giusto.programs.matcher import HistoryMatcher
from giusto.spec import modes
from giusto.spec.modes import Mode
from giusto.spec.wishes import Control

if TYPE_CHECKING:
    from giusto.engine.backend import EmbeddedBackend
    from giusto.engine.engine import Engine
    from giusto.metrics.records import Record
    from giusto.profiles.fit import Timing
    from giusto.profiles.profile import Profile
    from giusto.sim.cluster import Cluster
    from giusto.sim.executor import Speculation
    from giusto.sim.kernel import Kernel
    from giusto.sim.replica import Replica
    from giusto.sim.run import SimRun
    from giusto.sim.settings import SimSettings
    from giusto.sim.truth import Truth
    from giusto.workload.records import Entry

DEFAULT_MODEL_NAME = "SmolLM2-135M-Instruct"
#: Draft models by name, beside folders and hub ids.
NO_DRAFT, DEFAULT_DRAFT = "none", "default"


def scheduler(
    settings: EngineSettings,
    latency: LatencyModel,
    num_blocks: int,
    learners: Learners | None = None,
) -> Scheduler:
    """A scheduler with its policy, predictors and subscribers."""
    learners = learners or Learners(settings.lengths)
    policy = _policy(settings, latency, learners.lengths, learners.programs)
    speculation = _mode(settings, latency)
    if speculation is not None:
        policy = Speculating(policy, speculation.wish(latency))
    pool = BlockPool(num_blocks, settings.block_size, prefix_caching=settings.prefix_caching)
    limits = Limits(settings.max_num_batched_tokens, settings.max_num_seqs, settings.block_size)
    queue = QueueLimits(settings.max_num_queued_reqs, settings.max_num_queued_tokens)
    made = Scheduler(
        policy,
        pool,
        limits,
        caps=Caps(token_trees=speculation is not None),
        queue_limits=queue,
        is_checking=settings.check,
    )
    made.programs = ProgramTable(idle_timeout=settings.program_idle_timeout)
    learners.follow(made)
    return made


def draft_of(settings: EngineSettings) -> str | None:
    """The draft model that a mode drafts with, None for none.

    Raises ConfigError where it can do nothing without one, or nothing with the one that is given.
    """
    mode = modes.mode(settings.speculation)
    given = settings.draft_model
    name = None if given == NO_DRAFT else given
    if mode is None or not mode.takes_model:
        if name is not None:
            raise ConfigError(
                f"speculation {settings.speculation} uses no draft model: give --speculation "
                "giusto, chain:K, static or adaserve, or --draft-model none"
            )
        return None
    if mode.needs_model and name is None:
        if given == NO_DRAFT or settings.model is not None:
            raise ConfigError(
                f"speculation {settings.speculation} drafts with a model: give --draft-model"
            )
        return DEFAULT_DRAFT
    return name


def _mode(settings: EngineSettings, latency: LatencyModel) -> Mode | None:
    has_model = draft_of(settings) is not None
    return modes.mode(settings.speculation, Control.for_machine(latency), has_model=has_model)


def _policy(
    settings: EngineSettings,
    latency: LatencyModel,
    lengths: LengthPredictor,
    programs: ProgramMatcher,
) -> Policy:
    deps = Dependencies(latency=latency, lengths=lengths, programs=programs)
    return make(settings.scheduling_policy, deps, settings.policy_options)


def engine(settings: EngineSettings, clock: Clock) -> tuple[Engine, dict[str, Any]]:
    """Load the model, measure it and put an engine around it; also what to tell the server.

    Raises ModelError or ConfigError.
    """
    from giusto.engine.draft import load_draft
    from giusto.engine.engine import Engine
    from giusto.engine.memory import pick_device, plan_capacity
    from giusto.engine.profile import decode_once, fit, measure
    from giusto.engine.runner import ModelRunner
    from giusto.engine.sampler import Sampler
    from giusto.engine.speculate import DraftModel, num_rows
    from giusto.engine.speculate import measure as measure_draft
    from giusto.engine.tensors import KVCache
    from giusto.engine.tokenizer import Tokenizer
    from giusto.engine.weights import load_model

    device = pick_device(settings.device)
    model = load_model(settings.model, settings.dtype, str(device))
    tokenizer = Tokenizer(model.folder)
    draft_name = draft_of(settings)
    draft = load_draft(draft_name, model, tokenizer) if draft_name else None
    capacity = plan_capacity(
        model.config,
        model.decoder.dtype,
        device,
        settings.block_size,
        kv_cache_memory=settings.kv_cache_memory,
        max_model_len=settings.max_model_len,
    )
    kv = KVCache(
        model.config, capacity.num_blocks, settings.block_size, model.decoder.dtype, device
    )
    latency = fit(measure(model.decoder, kv, clock, trees=settings.speculation != modes.OFF))
    guesser = None
    if draft is not None:
        rows = num_rows(draft, capacity.num_bytes, settings.max_num_seqs)
        guesser = DraftModel(draft, rows)
        prices = measure_draft(guesser, clock, lambda: decode_once(model.decoder, kv))
        latency = latency.drafting(*prices)
    runner = ModelRunner(
        model.decoder, kv, Sampler(model.config.vocab_size, model.eos_token_ids), tokenizer
    )
    folder = None if settings.state_dir is None else Path(settings.state_dir)
    learners = Learners(settings.lengths, folder)
    made = Engine(
        scheduler(settings, latency, capacity.num_blocks, learners),
        runner,
        clock,
        latency,
        Random(settings.seed),
        learners,
    )
    if speculation := _mode(settings, latency):
        drafter = speculation.drafting(guesser) if guesser is not None else None
        made.speculator = speculation.speculator(latency, drafter)
    ready = {
        "name": _public_name(settings.model),
        "folder": str(model.folder),
        "vocab_size": model.config.vocab_size,
        "max_model_len": capacity.max_model_len,
        "num_blocks": capacity.num_blocks,
        "kv_cache_bytes": capacity.num_bytes,
        "dtype": str(model.decoder.dtype).removeprefix("torch."),
        "device": str(device),
        "policy": settings.scheduling_policy,
        "speculation": settings.speculation,
        "draft_model": draft_name,
        "defaults": {k: v for k, v in model.generation.items() if isinstance(v, int | float)},
    }
    return made, ready


def profile(
    settings: EngineSettings,
    name: str,
    hardware: str,
    on_round: Callable[[int, int], None] = lambda done, rounds: None,
) -> tuple[list[Timing], Profile]:
    """Load the model, time its steps on this machine and fit a profile. Raises as `engine` does."""
    from giusto.engine.profile import Subject, make_profile, step_gap

    clock = WallClock()
    made, ready = engine(settings, clock)
    limits = Limits(settings.max_num_batched_tokens, settings.max_num_seqs, settings.block_size)
    subject = Subject(name, hardware, ready["name"], limits, ready["max_model_len"])
    timings, measured = make_profile(made.runner, clock, Random(0), subject, on_round)
    return timings, replace(measured, gap=step_gap(made))


def _public_name(model: str | None) -> str:
    """Name a model for clients: a hub id as it is, a path by its last part."""
    if model is None:
        return DEFAULT_MODEL_NAME
    path = Path(model)
    return path.name.removesuffix(".gguf") if path.exists() else model


def simulate(run: SimRun) -> dict[str, Any]:
    """One simulated run as a flat object of figures. Raises ConfigError."""
    from giusto.sim.run import simulate as run_it

    return run_it(run, cluster)


def cluster(
    settings: SimSettings,
    entries: Sequence[Entry],
    sink: Callable[[tuple[Record, ...]], None] | None = None,
) -> Cluster:
    """Simulated replicas behind a router, for the lengths that `entries` have.

    Raises ConfigError.
    """
    from giusto import routing
    from giusto.sim.asks import Asks
    from giusto.sim.cluster import Cluster
    from giusto.sim.kernel import Kernel
    from giusto.sim.truth import Truth

    kernel = Kernel()
    truth = Truth({e.id: e.output_tokens for e in entries if e.output_tokens is not None})
    # One table and one matcher for all: a program is one program wherever its calls are served.
    table = ProgramTable()
    matcher = HistoryMatcher() if settings.programs else Unforeseen()
    replicas = [
        _replica(settings, index, kernel, truth, (table, matcher))
        for index in range(settings.replicas)
    ]
    quoted = {piece.source for entry in entries for piece in entry.pieces}
    asks = Asks(settings.classes, quoted=quoted, has_text=settings.prefix_caching)
    return Cluster(kernel, replicas, routing.make(settings.router), asks, sink=sink)


def _replica(
    settings: SimSettings,
    index: int,
    kernel: Kernel,
    truth: Truth,
    programs: tuple[ProgramTable, ProgramMatcher],
) -> Replica:
    from giusto.sim.executor import SimExecutor
    from giusto.sim.replica import Replica

    profile = settings.profile
    rng = Random(f"{settings.seed} replica {index}")
    error = rng.uniform(1 - settings.model_error, 1 + settings.model_error)
    believed = profile.latency.scaled(error / settings.speed)
    table, matcher = programs
    lengths = predictor(settings.lengths, truth)
    feed = _virtual_forest(kernel) if settings.lengths == "forest" else None
    host_blocks = settings.host_blocks
    mode = modes.mode(settings.speculation, _control(profile))
    caps = Caps(
        swap=host_blocks > 0,
        token_trees=mode is not None,
        lookahead=settings.lookahead,
        host_blocks=host_blocks,
    )
    is_oracle = getattr(module_named(settings.policy), "IS_ORACLE", False)
    deps = Dependencies(believed, lengths, truth if is_oracle else None, caps, matcher)
    policy = make(settings.policy, deps, settings.policy_options)
    made = Scheduler(
        policy if mode is None else Speculating(policy, mode.wish(believed)),
        BlockPool(
            settings.num_blocks or profile.num_blocks,
            profile.block_size,
            prefix_caching=settings.prefix_caching,
        ),
        settings.limits,
        caps=caps,
        is_checking=settings.check,
    )
    made.programs = table
    made.subscribe(lengths.observe)
    made.subscribe(matcher.observe)
    if feed is not None:
        made.subscribe(feed.observe)
    executor = SimExecutor(
        profile.latency.scaled(),
        truth,
        rng,
        noise=profile.noise if settings.noise is None else settings.noise,
        speed=settings.speed,
        link=settings.link,
    )
    if mode is not None:
        executor.speculation = _speculation(mode, settings, believed)
    gap = profile.gap / settings.speed
    replica = Replica(index, kernel, made, executor, believed, gap=gap)
    replica.feed = feed
    return replica


def _control(profile: Profile) -> Control:
    try:
        return Control(**profile.control)
    except ValueError as error:
        raise ConfigError(f"profile {profile.name}, control: {error}") from None


def _speculation(mode: Mode, settings: SimSettings, believed: LatencyModel) -> Speculation:
    """Hidden guesses and who drafts them. Raises ConfigError for a mode that needs text."""
    from giusto.sim.executor import Speculation
    from giusto.sim.guesses import GuessDrafter, Guesses

    if mode.drafter is not None and not mode.calibrates:
        raise ConfigError(
            f"speculation {mode.name} looks text up, and simulated requests have none"
        )
    guesses = Guesses(settings.profile.draft, settings.seed)
    drafter = GuessDrafter(guesses, branching=mode.branching, calibrates=mode.calibrates)
    return Speculation(mode.speculator(believed, drafter), guesses)


def _virtual_forest(kernel: Kernel) -> ForestFeed:
    """A forest that learns and answers in the simulator's time."""
    from giusto.predict.forest import Forest, ForestSample
    from giusto.predict.forest_worker import Desk

    desk = Desk(Forest(), ForestSample(), virtual_cpu())
    return ForestFeed(InlineForest(desk, lambda: kernel.now))


def run_loop(settings: EngineSettings, connection: socket.socket) -> None:
    """Build an engine and drive it from a socket; a failure to start is told over it."""
    from giusto.engine.loop import Loop
    from giusto.engine.wire import pack_frame

    with connection:
        try:
            made, ready = engine(settings, WallClock(settings.clock_offset))
        except GiustoError as error:
            connection.sendall(pack_frame({"failed": str(error)}))
            return
        try:
            Loop(made, connection).run(ready)
        finally:
            made.close()


def backend(
    settings: EngineSettings, clock: WallClock, *, name: str | None = None, isolate: bool = True
) -> EmbeddedBackend:
    """An embedded engine for a server, in a process of its own unless `isolate` is off.

    Raises ConfigError for an unknown policy, mode or option at once, before a model is loaded.
    """
    lengths = predictor(settings.lengths)
    unknown = LinearLatency((0.0,) * NUM_TERMS)
    _policy(settings, unknown, lengths, Unforeseen())
    draft_of(settings)
    from giusto.engine.backend import EmbeddedBackend
    from giusto.engine.launch import ProcessLauncher, ThreadLauncher

    settings = replace(settings, clock_offset=clock.offset)
    if isolate:
        command = [sys.executable, "-m", "giusto.worker", json.dumps(asdict(settings))]
        return EmbeddedBackend(ProcessLauncher(command), clock, name=name)
    return EmbeddedBackend(
        ThreadLauncher(lambda connection: run_loop(settings, connection)), clock, name=name
    )
