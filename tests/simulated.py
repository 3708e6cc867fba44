"""Small simulations: a machine, loads for it, and runs of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from giusto import build
from giusto.core.latency import LinearLatency, terms
from giusto.core.slo import SLO, BestEffort, Deadline, Streaming
from giusto.profiles.profile import Profile
from giusto.sim.cluster import Cluster, Outcome
from giusto.sim.replica import Replica
from giusto.sim.settings import SimSettings
from giusto.workload.records import Entry, Piece, Step

LATENCY = LinearLatency(
    terms(constant=0.01, prefill_tokens=5e-4, prefill_kv=2e-8, decode_seqs=5e-4, kv_tokens=1e-6)
)
PROFILE = Profile(
    name="tiny",
    hardware="none",
    model="tiny",
    measured="made up for tests",
    latency=LATENCY,
    block_size=16,
    num_blocks=96,
    bytes_per_block=1024,
    max_num_batched_tokens=128,
    max_num_seqs=8,
    slo_unit=0.0105,
    noise=0.05,
)
SLOS: tuple[SLO | None, ...] = (Streaming(0.3, 0.04), Deadline(2.0), BestEffort(), None)


def entry(name: str, arrival: float = 0.0, prompt: int = 40, output: int = 5, **more: Any) -> Entry:
    """One request with lengths."""
    more.setdefault("max_tokens", 64)
    return Entry(name, arrival, prompt_tokens=prompt, output_tokens=output, **more)


def call(
    program: str, name: str, parents: tuple[str, ...] = (), tool_time: float = 0.0, **more: Any
) -> Entry:
    """One call of a program; its id is `program.name`."""
    deadline = more.pop("deadline", None)
    step = Step(program, name, parents, tool_time, deadline, app="test")
    return entry(f"{program}.{name}", step=step, **more)


def load(count: int, seed: int = 0, rate: float = 6.0) -> list[Entry]:
    """Requests of all kinds, and every fifth a program: two calls, then one on both's answers."""
    rng = random.Random(seed)
    now = 0.0
    made: list[Entry] = []
    for number in range(count):
        now += rng.expovariate(rate)
        sizes = {"prompt": rng.randint(20, 300), "output": rng.randint(1, 48)}
        if number % 5:
            slo = rng.choice(SLOS)
            tenant = rng.choice("ab")
            made.append(entry(f"r{number}", now, slo=slo, tenant=tenant, max_tokens=64, **sizes))
            continue
        name = f"p{number}"
        first = call(name, "a", arrival=now, deadline=4.0, **sizes)
        second = call(name, "b", arrival=now + 0.1, deadline=4.0, **sizes)
        pieces = (Piece(f"{name}.a own", 0, sizes["prompt"]), Piece(first.id, 0, sizes["output"]))
        joined = sum(piece.tokens for piece in pieces) + 10
        last = call(
            name, "c", ("a", "b"), 0.2, deadline=4.0, prompt=joined, output=8, pieces=pieces
        )
        made += [first, second, last]
    return made


def settings(**more: Any) -> SimSettings:
    more.setdefault("policy", "fcfs")
    return SimSettings(more.pop("profile", PROFILE), **more)


def cluster(entries: Sequence[Entry], **more: Any) -> Cluster:
    return build.cluster(settings(**more), entries)


def replicas(made: Cluster) -> Sequence[Replica]:
    return made.replicas


def run(entries: Sequence[Entry], **more: Any) -> Outcome:
    """Simulate to the end, every plan checked."""
    more.setdefault("check", True)
    return cluster(entries, **more).run(entries)
