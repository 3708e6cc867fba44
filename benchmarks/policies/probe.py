"""Compare or tune policies in virtual time: the built-in mixed workload on a model of an engine.

    python benchmarks/policies/probe.py --rate 2.5 --seed 1 --seed 2 --seed 3
    python benchmarks/policies/probe.py --policy giusto:window=9 --policy sarathi
    python benchmarks/policies/probe.py --policy priority:chat=0+tool=1+program=1+best_effort=10
    python benchmarks/policies/probe.py --capacity 0.9 --policy fcfs

Arrivals, prompts, programs and promises are those of the workload `mixed`; lengths of answers are
drawn from what SmolLM2-135M-Instruct gave to such prompts. A step takes what the profile says times
noise; the policy starts from a profile that is wrong in each term, and learns. Figures from here
guide; only measured ones count.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from giusto.core.errors import GiustoError
from giusto.core.events import Event, Finished
from giusto.core.kv import BlockPool
from giusto.core.latency import BatchShape, LinearLatency
from giusto.core.plan import Limits, Plan, StepOutcome, Yield
from giusto.core.request import FinishReason, ProgramRef, Request, SamplingParams, Submission
from giusto.core.scheduler import Scheduler
from giusto.core.slo import SLO, BestEffort, Program, Streaming, is_attained
from giusto.metrics.records import Record, Recorder
from giusto.metrics.summary import Summary, summarize
from giusto.policies import REGISTRY, make
from giusto.policies.base import Dependencies
from giusto.predict.histogram import Histogram
from giusto.workload.mixed import (
    CLASSES,
    ClassTimes,
    Load,
    calibration,
    entries,
    promises,
)
from giusto.workload.records import Entry, promised

#: Seconds: 14.2 ms a step, 0.75 ms a prompt token, 0.4 ms a decoding sequence, 0.5 us a context
#: token; near the embedded engine in bf16 on two cores.
PROFILE = (0.0142, 0.00075, 2e-8, 0.0004, 5e-7, 0.0004, 0.001, 0.0, 0.0)

#: Answer lengths of SmolLM2-135M-Instruct at temperature 0.7 to 24-32 prompts of each class.
LENGTHS = {
    "chat": (5, 8, 12, 16, 20, 39, 54, 61, 81, 99, 106, 153, 170, 189, 199, *[256] * 17),
    "tool": (7, 61, *[64] * 30),
    "program": (12, 16, 22, 46, 49, 68, 74, 76, 77, 79, *[96] * 38),
    "best_effort": (16, 18, 21, 40, 56, 120, *[192] * 6),
}
PRIORITIES = {"chat": 0, "tool": 0, "program": 0, "best_effort": 10}
CHARS_PER_TOKEN = 4.3
TEMPLATE_TOKENS = {"chat": 33, "tool": 20, "program": 20, "best_effort": 33}
CAP = 2048
#: Of one step: the embedded engine's defaults.
LIMITS = Limits(max_num_batched_tokens=512, max_num_seqs=128)


@dataclass(frozen=True, slots=True)
class World:
    """What is the same for all policies of a comparison."""

    duration: float = 300.0
    burstiness: float = 1.0
    noise: float = 0.1
    error: float = 0.1
    limits: Limits = Limits(max_num_batched_tokens=512, max_num_seqs=128)  # noqa: RUF009  frozen
    num_blocks: int = 8192


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy with its options; options that name classes are the priorities of these."""

    policy: str
    options: dict[str, str] = field(default_factory=dict)
    priorities: dict[str, int] = field(default_factory=lambda: dict(PRIORITIES))

    @classmethod
    def parse(cls, text: str) -> Contender:
        """Read `policy` or `policy:option=value+option=value`."""
        name, _, rest = text.partition(":")
        pairs = [pair.partition("=") for pair in rest.split("+") if pair]
        options = {key: value for key, _, value in pairs if key not in CLASSES}
        priorities = {key: int(value) for key, _, value in pairs if key in CLASSES}
        return cls(name, options, PRIORITIES | priorities)


class Run:
    """One scheduler in virtual time, with programs whose later calls wait for earlier ones."""

    def __init__(self, contender: Contender, world: World, seed: int) -> None:
        rng = random.Random(f"{seed} profile")
        wrong = tuple(c * rng.uniform(1 - world.error, 1 + world.error) for c in PROFILE)
        self.latency = LinearLatency(wrong)
        self.truth = LinearLatency(PROFILE)
        self.noise = random.Random(f"{seed} noise")
        self.world = world
        self.contender = contender
        lengths = Histogram()
        policy = make(contender.policy, Dependencies(self.latency, lengths), contender.options)
        pool = BlockPool(world.num_blocks, world.limits.block_size)
        self.scheduler = Scheduler(policy, pool, world.limits)
        self.records: list[Record] = []
        self.recorder = Recorder(self.records.extend)
        for observe in (lengths.observe, self.recorder.observe, self._follow):
            self.scheduler.subscribe(observe)
        self.now = 0.0
        self.num_steps = 0
        self._lengths: dict[str, int] = {}
        self._calls: dict[str, tuple[Entry, ...]] = {}
        self._ids: dict[str, tuple[int, ...]] = {}
        self._arrivals: list[tuple[float, int, Entry]] = []
        self._serial = 0

    def play(self, load: list[Entry]) -> list[Record]:
        """Serve all of `load` to its end; returns the records."""
        for entry in load:
            self._lengths[entry.id] = length_of(entry)
            parents = entry.step.parents if entry.step else ()
            if parents:
                parent = f"{entry.step.program}-{parents[0]}"
                self._calls[parent] = (*self._calls.get(parent, ()), entry)
            else:
                self._push(entry.arrival, entry)
        while self._arrivals or self.scheduler.has_work:
            while self._arrivals and self._arrivals[0][0] <= self.now:
                when, _, entry = heappop(self._arrivals)
                self.scheduler.add(self._ask(when, entry), self.now)
            if not self.scheduler.has_work:
                self.now = self._arrivals[0][0]
                continue
            self._step()
        return self.records

    def _step(self) -> None:
        plan = self.scheduler.schedule(self.now)
        if not plan.grants:
            assert plan.wake_at is not None
            self.now = min([plan.wake_at] + [when for when, _, _ in self._arrivals[:1]])
            return
        shape = shape_of(plan, self.scheduler.requests)
        seconds = self.truth.step_time(shape) * self.noise.lognormvariate(0, self.world.noise)
        started = self.now
        self.now += seconds
        self.num_steps += 1
        self.latency.learn(shape, seconds)
        yields = {grant.request_id: self._yield(grant.request_id) for grant in plan.grants}
        outcome = StepOutcome(plan.step, started, self.now, shape, yields)
        self.scheduler.commit(plan.step, outcome, self.now)

    def _yield(self, request_id: str) -> Yield:
        request = self.scheduler.requests[request_id]
        if request.num_remaining_tokens > 0 and not request.num_in_flight_outputs:
            return Yield()
        count = request.num_output_tokens + 1
        is_last = count >= self._lengths[request_id]
        return Yield(tokens=(count,), finish=FinishReason.STOP if is_last else None)

    def _follow(self, event: Event) -> None:
        if isinstance(event, Finished):
            for entry in self._calls.pop(event.request_id, ()):
                self._push(event.now + entry.step.tool_time, entry)

    def _push(self, when: float, entry: Entry) -> None:
        self._serial += 1
        heappush(self._arrivals, (when, self._serial, entry))

    def _ask(self, when: float, entry: Entry) -> Submission:
        step, slo = entry.step, entry.promise
        num_tokens = prompt_tokens(entry)
        ids: tuple[int, ...] = ()
        ref = None
        if step is not None:
            num_tokens, ids = self._program_ids(entry, num_tokens)
            ref = ProgramRef(
                step.program,
                step.call,
                step.parents,
                step.stage,
                step.is_final,
                step.app,
                step.deadline,
            )
        return Submission(
            id=entry.id,
            arrival=when,
            num_prompt_tokens=num_tokens,
            prompt_ids=ids,
            slo=BestEffort() if isinstance(slo, Program) else slo,
            has_own_slo=not isinstance(slo, Program),
            service_class=entry.service_class,
            priority=self.contender.priorities[entry.service_class],
            program=ref,
            cap=CAP,
            sampling=SamplingParams(max_tokens=entry.max_tokens),
        )

    def _program_ids(self, entry: Entry, num_tokens: int) -> tuple[int, tuple[int, ...]]:
        """Token ids such that a later call repeats the prompt and answer of the first."""
        assert entry.step is not None
        known = self._ids.get(entry.step.program, ())
        self._serial += 1
        fresh = num_tokens if not known else TEMPLATE_TOKENS["program"] + 20
        ids = known + tuple(self._serial * 10_000 + k for k in range(fresh))
        self._ids[entry.step.program] = ids + tuple(range(1, self._lengths[entry.id] + 1))
        return len(ids), ids


def shape_of(plan: Plan, requests: Mapping[str, Request]) -> BatchShape:
    """The shape of an applied plan, counted as the engine counts it."""
    prefill = prefill_kv = decodes = kv = 0
    for grant in plan.grants:
        before = requests[grant.request_id].num_computed_tokens
        if grant.num_tokens > 1:
            prefill += grant.num_tokens
            prefill_kv += grant.num_tokens * before
        else:
            decodes += 1
            kv += before + 1
    return BatchShape(prefill, prefill_kv, decodes, kv)


def prompt_tokens(entry: Entry) -> int:
    chars = sum(len(message.content) for message in entry.messages)
    return TEMPLATE_TOKENS[entry.service_class] + round(chars / CHARS_PER_TOKEN)


def length_of(entry: Entry) -> int:
    """The hidden length of an answer, fixed by the entry's own seed."""
    return random.Random(f"{entry.seed} length").choice(LENGTHS[entry.service_class])


def idle_promises() -> dict[str, SLO]:
    """Three times what each class gets alone on the machine, as the client calibrates."""
    world = World(noise=0.0, error=0.0)
    times = {}
    for name, arrivals in calibration().items():
        records = [Run(Contender("fcfs"), world, 0).play(arrival) for arrival in arrivals]
        median = statistics.median
        times[name] = ClassTimes(
            ttft=median(run[0].delivery.ttft for run in records),
            tpot=median(run[0].delivery.tpot for run in records),
            e2e=median(run[0].delivery.e2e for run in records),
            program=median(run[-1].arrival + run[-1].delivery.e2e for run in records),
        )
    return promises(times)


def play(
    contender: Contender, world: World, rate: float, seed: int, slos: Mapping[str, SLO]
) -> Summary:
    load = Load(rate, seed=seed, burstiness=world.burstiness, duration=world.duration)
    run = Run(contender, world, seed)
    summary = summarize(run.play(promised(entries(load), slos)))
    return summary | {"steps": run.num_steps, "records": run.records}


def capacity(
    contender: Contender, world: World, seeds: list[int], slos: Mapping[str, SLO], share: float
) -> float:
    """The highest rate, to 2 %, at which the mean attainment is at least `share`."""

    def is_met(rate: float) -> bool:
        runs = (play(contender, world, rate, seed, slos) for seed in seeds)
        return statistics.mean(run["attainment"] for run in runs) >= share

    low, high = 0.05, 0.1
    while is_met(high):
        low, high = high, high * 2
    while high / low > 1.02:
        middle = (low + high) / 2
        low, high = (middle, high) if is_met(middle) else (low, middle)
    return low


def misses(records: list[Record]) -> dict[str, int]:
    """Why promises were missed, as far as records tell: first token, later tokens, or the end."""
    counts = dict.fromkeys(("ttft", "tokens", "deadline", "program"), 0)
    for record in records:
        if isinstance(record.slo, Streaming):
            late_first = record.slo.ttft is not None and record.delivery.ttft > record.slo.ttft
            counts["ttft"] += late_first
            counts["tokens"] += not late_first and not is_attained(record.slo, record.delivery)
        elif not isinstance(record.slo, BestEffort):
            late = not is_attained(record.slo, record.delivery, record.origin)
            counts["program" if isinstance(record.slo, Program) else "deadline"] += late
    return counts


def cell(values: list[float]) -> str:
    spread = f" ({min(values):.3f}–{max(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def row(text: str, rate: float, runs: list[Summary]) -> list[str]:
    classes = [[run["by_class"][name]["attainment"] for run in runs] for name in CLASSES]
    why = [misses(run["records"]) for run in runs]
    return [
        f"{rate:.3g}",
        text,
        cell([run["attainment"] for run in runs]),
        *(f"{statistics.mean(values):.3f}" for values in classes),
        f"{statistics.mean(run['service_gain_ratio'] for run in runs):.3f}",
        f"{statistics.mean(run['duration'] for run in runs):.0f}",
        " ".join(f"{statistics.mean(w[key] for w in why):.0f}" for key in why[0]),
    ]


def main(
    policy: Annotated[
        list[str] | None, typer.Option(help="name or name:option=value+…; default: all")
    ] = None,
    rate: Annotated[list[float] | None, typer.Option(help="arrivals per second")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="default 1, 2, 3")] = None,
    duration: Annotated[float, typer.Option(help="seconds of arrivals")] = 300.0,
    burstiness: Annotated[float, typer.Option(help="1 = Poisson, below 1 bursty")] = 1.0,
    noise: Annotated[float, typer.Option(help="sigma of the log of step times")] = 0.1,
    error: Annotated[float, typer.Option(help="start error of the policy's profile")] = 0.1,
    max_num_batched_tokens: int = 512,
    max_num_seqs: int = 128,
    num_blocks: Annotated[int, typer.Option(help="KV blocks of 16 tokens")] = 8192,
    capacity_at: Annotated[
        float | None,
        typer.Option("--capacity", help="find the highest rate with this attainment instead"),
    ] = None,
) -> None:
    """Attainment by policy, rate and class on the mixed workload, in virtual time."""
    console = Console(width=None if Console().is_terminal else 150)
    limits = Limits(max_num_batched_tokens, max_num_seqs)
    world = World(duration, burstiness, noise, error, limits, num_blocks)
    contenders = policy or [n for n, m in REGISTRY.items() if not hasattr(m, "IS_ORACLE")]
    seeds = seed or [1, 2, 3]
    slos = idle_promises()
    console.print("Promises:", *(f"{name}: {slo}" for name, slo in slos.items()), sep="\n  ")
    if capacity_at is not None:
        for text in contenders:
            found = capacity(Contender.parse(text), world, seeds, slos, capacity_at)
            console.print(f"{text}: {found:.3f}/s attain {capacity_at:.0%}")
        return
    table = Table("rate", "policy", "attainment", *CLASSES, "gain", "s", "late: ttft tok dl prog")
    cells = [(r, text) for r in rate or [2.0] for text in contenders]
    for r, text in track(cells, console=Console(stderr=True), transient=True):
        runs = [play(Contender.parse(text), world, r, s, slos) for s in seeds]
        table.add_row(*row(text, r, runs))
    console.print(table)


if __name__ == "__main__":
    try:
        typer.run(main)
    except GiustoError as error:
        raise SystemExit(str(error)) from None
