"""Write a scheduling policy in twenty lines and compare it with fcfs, in virtual time.

    python examples/write_a_policy.py

Needs no model, no GPU and no server: the scheduler that serves real requests is driven here by an
executor that only adds up what a step would cost. docs/tutorial/write_a_policy.md walks through it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from giusto.core.kv import BlockPool
from giusto.core.latency import BatchShape, LinearLatency
from giusto.core.pack import pack
from giusto.core.plan import Limits, Plan, Policy, StepOutcome, View, Want, Yield
from giusto.core.request import FinishReason, RequestView, Submission
from giusto.core.scheduler import Scheduler
from giusto.core.slo import SLO, BestEffort, Deadline, Streaming, slack
from giusto.metrics.records import Recorder
from giusto.metrics.summary import summarize
from giusto.policies import make
from giusto.policies.base import Dependencies
from giusto.predict.histogram import Histogram

#: Seconds: 10 ms a step, 0.2 ms a prompt token, 1 ms a sequence that decodes.
MACHINE = LinearLatency((0.010, 0.0002, 0.0, 0.001, 0.0, 0.0, 0.0, 0.0, 0.0))


class LeastSlack:
    """Whoever has the least time to spare goes first; missed promises and best effort go last."""

    def plan(self, view: View) -> Plan:
        def urgency(request: RequestView) -> tuple[bool, float, float]:
            work = MACHINE.step_time(BatchShape(prefill_tokens=request.num_remaining_tokens))
            spare = slack(request.slo, request, view.now, work)
            return spare is None, spare or 0.0, request.arrival

        order = sorted((*view.running, *view.waiting), key=urgency)
        return pack((Want(request.id) for request in order), view)

    def observe(self, event: object) -> None:
        """Learns nothing."""


#: Class: share of arrivals, promise, prompt tokens, mean output tokens.
CLASSES: dict[str, tuple[float, SLO, int, int]] = {
    "chat": (0.5, Streaming(ttft=0.5, tpot=0.05), 150, 60),
    "tool": (0.3, Deadline(2.0), 300, 20),
    "batch": (0.2, BestEffort(), 800, 100),
}


def load(seed: int, rate: float, duration: float) -> Iterator[tuple[Submission, int]]:
    """Poisson arrivals, each with an output length that only the executor will know."""
    rng = random.Random(seed)
    now, shares = 0.0, [share for share, *_ in CLASSES.values()]
    while (now := now + rng.expovariate(rate)) < duration:
        name = rng.choices(list(CLASSES), shares)[0]
        _, slo, prompt, output = CLASSES[name]
        length = 1 + min(int(rng.expovariate(1 / output)), 1000)
        yield Submission(f"{name}-{now:.6f}", now, prompt, slo=slo, service_class=name), length


def run(policy: Policy, arrivals: list[tuple[Submission, int]]) -> Recorder:
    """Serve the arrivals: schedule, execute, commit, until nothing is left."""
    limits = Limits(max_num_batched_tokens=128, max_num_seqs=48, block_size=16)
    scheduler = Scheduler(policy, BlockPool(4096, 16), limits, is_checking=True)
    recorder = Recorder()
    scheduler.subscribe(recorder.observe)
    lengths = {ask.id: length for ask, length in arrivals}
    pending = [ask for ask, _ in reversed(arrivals)]
    now = 0.0
    while pending or scheduler.has_work:
        if not scheduler.has_work:
            now = max(now, pending[-1].arrival)
        while pending and pending[-1].arrival <= now:
            scheduler.add(pending.pop(), now)
        plan = scheduler.schedule(now)
        outcome = execute(plan, scheduler, lengths, now)
        now = outcome.ended
        scheduler.commit(plan.step, outcome, now)
    return recorder


def execute(plan: Plan, scheduler: Scheduler, lengths: dict[str, int], now: float) -> StepOutcome:
    """Pretend to run a step: a request whose known tokens are all computed yields one more."""
    prompts = sum(grant.num_tokens for grant in plan.grants if grant.num_tokens > 1)
    decodes = sum(grant.num_tokens == 1 for grant in plan.grants)
    shape = BatchShape(prefill_tokens=prompts, decode_seqs=decodes)
    yields = {}
    for grant in plan.grants:
        request = scheduler.requests[grant.request_id]
        if not request.num_in_flight_outputs:
            yields[request.id] = Yield()
            continue
        is_last = request.num_output_tokens + 1 == lengths[request.id]
        yields[request.id] = Yield(tokens=(0,), finish=FinishReason.STOP if is_last else None)
    return StepOutcome(plan.step, now, now + MACHINE.step_time(shape), shape, yields)


def main() -> None:
    arrivals = list(load(seed=1, rate=7.0, duration=60.0))
    policies = {
        "fcfs": make("fcfs", Dependencies(MACHINE, Histogram())),
        "least slack": LeastSlack(),
    }
    print(f"{len(arrivals)} requests; share of promises kept, and the longest wait in seconds")
    print(f"{'policy':<12} {'all':>6} {'chat':>6} {'tool':>6} {'batch waits':>12}")
    for name, policy in policies.items():
        recorder = run(policy, arrivals)
        by_class = summarize(recorder.records)["by_class"]
        kept = [by_class[c]["attainment"] for c in ("all", "chat", "tool")]
        waits = max(r.wait(0.0) for r in recorder.records if r.service_class == "batch")
        print(f"{name:<12} {kept[0]:>6.1%} {kept[1]:>6.1%} {kept[2]:>6.1%} {waits:>12.1f}")


if __name__ == "__main__":
    main()
