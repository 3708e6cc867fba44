"""How long a step takes to decide: `Scheduler.schedule` from entry to exit.

View, policy, pack and block allocation, with a predictor that learns and programs that open and
close, at a steady number of running and waiting requests: who finishes is replaced by an arrival.
Budgets (docs: the scheduler's cost): median 1 ms at 256 running, 5 ms with 10,000 waiting.

    python benchmarks/plan_time.py
    python benchmarks/plan_time.py --policy giusto --waiting 10000 --steps 300 --profile
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
import random
import statistics
import time
from itertools import count

from giusto import build
from giusto.core.kv import BlockPool
from giusto.core.latency import BatchShape, LinearLatency
from giusto.core.plan import Limits, Plan, StepOutcome, Yield
from giusto.core.request import FinishReason, ProgramRef, SamplingParams, Submission
from giusto.core.scheduler import Scheduler
from giusto.core.slo import SLO, BestEffort, Deadline, Streaming
from giusto.policies import REGISTRY, make
from giusto.policies.base import Dependencies
from giusto.programs.matcher import HistoryMatcher

SLOS: tuple[SLO, ...] = (
    Streaming(1.0, 0.1),
    Streaming(None, 0.1),
    Deadline(30.0),
    BestEffort(),
)
STEP_SECONDS = 0.03
#: Steps until the house is full: the first prompts take about thirty.
WARM_UP = 60
BUDGETS_MS = {0: 1.0, 10_000: 5.0}

#: Policies that a server can have.
HONEST = [name for name, module in REGISTRY.items() if not hasattr(module, "IS_ORACLE")]


class Bench:
    """A scheduler kept at `running` residents and `waiting` more, one step at a time."""

    def __init__(self, policy: str, running: int, waiting: int, *, seed: int = 0) -> None:
        self.draw = random.Random(seed)
        self.target = running + waiting
        self.ids = count()
        lengths, programs = build.predictor("histogram"), HistoryMatcher()
        latency = LinearLatency((0.015, 1e-5, 1e-10, 1e-5, 1e-8, 0.0, 0.0, 0.0, 0.0))
        self.scheduler = Scheduler(
            make(policy, Dependencies(latency, lengths, programs=programs)),
            BlockPool(running * 64, 16),
            Limits(max_num_batched_tokens=2048, max_num_seqs=running, block_size=16),
        )
        for learner in (lengths, programs):
            self.scheduler.subscribe(learner.observe)
        self.now = 0.0
        self.lengths: dict[str, int] = {}
        self.drawn: dict[str, int] = {}
        self.fill(self.target)
        for _ in range(WARM_UP):
            self.step()

    def fill(self, target: int) -> None:
        """Let requests arrive until so many are in the house."""
        for _ in range(target - len(self.scheduler.requests)):
            i = next(self.ids)
            program = ProgramRef(f"p{i // 4}", f"c{i}", final=i % 4 == 3, deadline=60.0, app="a")
            slo = self.draw.choice(SLOS)
            prompt = self.draw.randint(16, 400)
            self.lengths[f"r{i}"] = self.draw.randint(20, 300)
            self.scheduler.add(
                Submission(
                    f"r{i}",
                    self.now,
                    prompt,
                    prompt_ids=tuple(self.draw.choices(range(8), k=prompt)),
                    slo=slo,
                    service_class=type(slo).__name__,
                    program=program if i % 3 == 0 else None,
                    sampling=SamplingParams(max_tokens=400),
                    cap=400,
                ),
                self.now,
            )

    def step(self) -> float:
        """Plan and commit one step; returns the seconds that planning took."""
        began = time.perf_counter()
        plan = self.scheduler.schedule(self.now)
        took = time.perf_counter() - began
        self.now += STEP_SECONDS
        if plan.grants:
            yields = {g.request_id: self.draw_token(plan, g.request_id) for g in plan.grants}
            shape = BatchShape(decode_seqs=len(plan.grants), kv_tokens=100 * len(plan.grants))
            outcome = StepOutcome(plan.step, self.now - STEP_SECONDS, self.now, shape, yields)
            self.scheduler.commit(plan.step, outcome, self.now)
        self.fill(self.target)
        self.scheduler.take_events()
        return took

    def draw_token(self, plan: Plan, request_id: str) -> Yield:
        """What the step yields for one request."""
        request = self.scheduler.requests[request_id]
        end = request.num_computed_tokens + request.num_in_flight_tokens
        if end < request.num_tokens:
            return Yield()
        is_last = request.num_output_tokens + 1 >= self.lengths[request_id]
        return Yield((1,), finish=FinishReason.STOP if is_last else None)


def measure(bench: Bench, steps: int) -> tuple[float, float]:
    """Median and p99 of the plan time in milliseconds."""
    gc.collect()
    gc.freeze()
    times = sorted(bench.step() for _ in range(steps))
    gc.unfreeze()
    return 1e3 * statistics.median(times), 1e3 * times[int(0.99 * (len(times) - 1))]


def main() -> None:
    """Print a table of policies by load."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--policy", action="append", choices=HONEST, help="default: all")
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--waiting", type=int, action="append", help="default: 0 and 10000")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--profile", action="store_true", help="show the hot spots of each run")
    args = parser.parse_args()
    print(
        f"{'policy':10} {'running':>8} {'waiting':>8} {'median ms':>10} {'p99 ms':>8} {'budget':>7}"
    )
    for waiting in args.waiting or list(BUDGETS_MS):
        for policy in args.policy or HONEST:
            bench = Bench(policy, args.running, waiting)
            with cProfile.Profile() if args.profile else _Nothing() as profile:
                median, p99 = measure(bench, args.steps)
            budget = BUDGETS_MS.get(waiting, float("nan"))
            print(
                f"{policy:10} {args.running:8} {waiting:8} {median:10.2f} {p99:8.2f} {budget:7.1f}",
                flush=True,
            )
            if isinstance(profile, cProfile.Profile):
                pstats.Stats(profile).sort_stats("tottime").print_stats(20)


class _Nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *args: object) -> None: ...


if __name__ == "__main__":
    main()
