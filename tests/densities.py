"""For tests of `tempo` and `jitserve`: known lengths and outlooks, and a policy with a clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from giusto.core.events import Arrived, Finished, Stepped
from giusto.core.latency import BatchShape, LatencyModel
from giusto.core.plan import Limits, Plan, StepOutcome, Yield, check
from giusto.core.request import FinishReason, ProgramRef, Request, RequestView, Submission
from giusto.core.slo import Program
from giusto.policies import make
from giusto.policies.base import Dependencies
from giusto.policies.jitserve import Jitserve
from giusto.policies.tempo import Tempo
from giusto.programs.base import LAST, Outlook
from harness import LATENCY
from strategies import LiteralView

#: Seconds per step that the policies assume before a frame has ended; here steps take as long.
TAU = 0.02


@dataclass
class Table:
    """A predictor that is told whole lengths, and notes what it is asked: id, tokens, level."""

    totals: dict[str, float]
    asked: list[tuple[str, int, float | None]] = field(default_factory=list)

    def remaining(self, request: RequestView, quantile: float | None = None) -> float:
        self.asked.append((request.id, request.num_output_tokens, quantile))
        return max(1.0, self.totals[request.id] - request.num_output_tokens)

    def observe(self, event: object) -> None:
        """Nothing to learn."""


@dataclass
class Outlooks:
    """A matcher that is told what is to come after each call."""

    known: Mapping[str, Outlook]

    def outlook(self, request: RequestView) -> Outlook:
        return self.known.get(request.id, LAST)

    def observe(self, event: object) -> None:
        """Nothing to learn."""


class House:
    """A policy whose requests are told as they arrive, at 0 s, and whose steps take TAU."""

    def __init__(
        self,
        name: str,
        *,
        latency: LatencyModel = LATENCY,
        outlooks: Mapping[str, Outlook] | None = None,
        **options: object,
    ) -> None:
        self.table = Table({})
        deps = Dependencies(latency, self.table, programs=Outlooks(outlooks or {}))
        policy = make(name, deps, options)
        assert isinstance(policy, Tempo | Jitserve)
        self.policy = policy
        self.now = 0.0
        self.next_step = 0

    def arrive(self, made: Request, total: float) -> Request:
        """Let one arrive whose whole output is taken for so many tokens, and be looked at."""
        self.table.totals[made.id] = total
        self.policy.observe(Arrived(made, self.now))
        self.policy.densities.settle(self.now)
        return made

    def step(self, seconds: float = TAU) -> None:
        started, self.now = self.now, self.now + seconds
        shape = BatchShape(decode_seqs=1)
        outcome = StepOutcome(self.next_step, started, self.now, shape, {"": Yield()})
        self.next_step += 1
        self.policy.observe(Stepped(outcome, self.now))

    def frame(self, count: int = 1, seconds: float = TAU) -> None:
        """Let whole frames pass."""
        number = self.policy.frames.number + count
        while self.policy.frames.number < number:
            self.step(seconds)

    def end(self, made: Request, reason: FinishReason = FinishReason.STOP) -> None:
        self.policy.observe(Finished(made.id, self.now, reason))

    def density(self, made: Request) -> float:
        return self.policy.densities.density(made)

    def view(self, running: list[Request], waiting: list[Request], slots: int = 8) -> LiteralView:
        return LiteralView(
            running,
            waiting,
            limits=Limits(64, slots, 4),
            now=self.now,
            step=self.next_step,
        )

    def plan(self, view: LiteralView) -> Plan:
        plan = self.policy.plan(view)
        check(plan, view)
        return plan

    def order(self, view: LiteralView) -> list[str]:
        return [grant.request_id for grant in self.plan(view).grants]


def preempted(plan: Plan) -> list[str]:
    return [preempt.request_id for preempt in plan.preempt]


def call(name: str, prompt: int, program: str = "p", deadline: float = 8.0) -> Request:
    """A call that is judged with its program, which opened at 0 s."""
    ref = ProgramRef(program, name, deadline=deadline)
    return Request.of(Submission(name, 0.0, prompt, slo=Program(deadline), program=ref))
