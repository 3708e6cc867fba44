"""The public interface as its users write it: checked by mypy, never run."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_type

from giusto.core.clock import Clock, VirtualClock, WallClock
from giusto.core.events import LEVELS, Estimated, Event, Finished, Stepped
from giusto.core.kv import BlockPool
from giusto.core.latency import BatchShape, LatencyModel, LinearLatency
from giusto.core.pack import pack
from giusto.core.plan import Caps, Limits, Plan, Policy, ProgramView, StepOutcome, View, Want, check
from giusto.core.programs import ProgramState
from giusto.core.request import Request, RequestView, SamplingParams, Submission
from giusto.core.scheduler import Scheduler
from giusto.core.slo import (
    SLO,
    BestEffort,
    Deadline,
    Delivery,
    Program,
    ProgressView,
    Streaming,
    due,
    is_attained,
    service_gain,
    slack,
)
from giusto.core.view import SchedulerView
from giusto.policies import make
from giusto.policies.base import Dependencies
from giusto.predict.base import Constant, LengthPredictor
from giusto.predict.histogram import Histogram


class OwnPolicy:
    """A policy needs two methods and no base class."""

    def plan(self, view: View) -> Plan:
        order = sorted(view.waiting, key=lambda request: due(request.slo, request))
        return pack((Want(request.id) for request in (*view.running, *order)), view)

    def observe(self, event: object) -> None:
        match event:
            case Finished(request_id):
                assert_type(request_id, str)
            case Stepped(outcome):
                assert_type(outcome, StepOutcome)


def protocols(
    request: Request, view: SchedulerView, state: ProgramState, histogram: Histogram
) -> tuple[RequestView, ProgressView, View, ProgramView, LengthPredictor, LengthPredictor]:
    """What the scheduler owns satisfies what policies are typed against."""
    return request, request, view, state, histogram, Constant(64.0)


def drivers(fit: list[tuple[BatchShape, float]]) -> tuple[Clock, Clock, LatencyModel]:
    return WallClock(), VirtualClock(), LinearLatency.fit(fit)


def schedule(policy: Policy, subscriber: Callable[[Event], None]) -> None:
    """How a driver owns a scheduler."""
    limits = Limits(max_num_batched_tokens=512, max_num_seqs=16, block_size=16)
    scheduler = Scheduler(policy, BlockPool(128, 16), limits, caps=Caps(lookahead=1))
    scheduler.subscribe(subscriber)
    sampling = SamplingParams(max_tokens=8)
    slo = Streaming(ttft=0.5, tpot=0.05)
    scheduler.add(Submission("a", 0.0, 12, slo=slo, sampling=sampling), 0.0)
    scheduler.inform(Estimated("a", (40.0,) * len(LEVELS), 0.0))
    plan = scheduler.schedule(0.0)
    assert_type(plan, Plan)
    check(plan, scheduler.view(0.0))
    outcome = StepOutcome(plan.step, 0.0, 0.1, BatchShape(prefill_tokens=12))
    assert_type(scheduler.commit(plan.step, outcome, 0.1), list[Event])
    assert_type(scheduler.abort("a", 0.2), bool)


def promises(request: RequestView, delivery: Delivery) -> float:
    """One definition of every kind of promise."""
    slos: list[SLO] = [Streaming(ttft=1.0), Deadline(5.0), Program(60.0), BestEffort()]
    for slo in slos:
        assert_type(due(slo, request), float)
        assert_type(slack(slo, request, 0.0), float | None)
        assert_type(is_attained(slo, delivery), bool)
    return service_gain(slos[0], delivery)


def named(deps: Dependencies) -> tuple[Policy, Policy]:
    return make("edf", deps), make("sarathi", deps, {"chunk_tokens": 128})


OWN: Policy = OwnPolicy()
