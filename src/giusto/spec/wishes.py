"""What decodes ask of speculation in one step: shapes of their trees, and what they are owed.

Asked by `policies.speculating` while a plan is made; they learn from events, as policies do. Each
tells how many nodes all may have together, and what each decode asks for, `shape` being the step
without candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from giusto.core.events import Stepped
from giusto.core.latency import BatchShape, LatencyModel
from giusto.core.plan import Spec, Yield
from giusto.core.request import RequestView
from giusto.core.slo import behind, is_missed, owed
from giusto.spec.select import worth_of

#: Weight of the newest step in running means, of the newest verdict in shares.
_RATE, _LEARNING = 0.1, 0.02
#: How often candidates are right of which nothing is known.
_UNKNOWN = 0.5
#: Nodes over which the price of one is taken.
_FEW = 8
#: Steps without a draft after which one is tried.
_PROBE = 50


@dataclass(slots=True)
class Fixed:
    """The same shape for everybody, whatever the load: what vLLM and SpecInfer do."""

    spec: Spec

    def specs(
        self, decodes: Sequence[RequestView], now: float, shape: BatchShape
    ) -> tuple[int, list[Spec]]:
        return self.spec.max_nodes * len(decodes), [self.spec] * len(decodes)

    def observe(self, event: object) -> None:
        """Nothing to learn."""


@dataclass(frozen=True, slots=True)
class Control:
    """AdaServe's constants: tokens of a verification and of a draft step, bounds of the beam.

    Defaults are the artifact's for Llama-3.1-70B (adaserve.md 1.6).
    """

    budget: int = 512
    draft_budget: int = 96
    max_depth: int = 8
    min_depth: int = 4
    max_width: int = 3

    def __post_init__(self) -> None:
        if min(self.budget, self.draft_budget, self.min_depth, self.max_width) < 1:
            raise ValueError("budgets, depths and widths must be at least 1")
        if self.min_depth > self.max_depth:
            raise ValueError("min_depth must not exceed max_depth")

    @classmethod
    def for_machine(cls, latency: LatencyModel) -> Control:
        """For a machine that was measured, and not published: as many tokens as double a step.

        The draft's share of them, and the bounds of the beam, are the artifact's.
        """
        one = BatchShape(decode_seqs=1)
        plain = latency.step_time(one)
        price = (latency.step_time(replace(one, nodes=_FEW)) - plain) / _FEW
        usual = cls()
        is_flat = price * usual.budget <= plain
        budget = usual.budget if is_flat else max(_FEW, int(plain / price))
        return cls(budget, max(1, budget * usual.draft_budget // usual.budget))

    def depth(self, count: int) -> int:
        """Of the beam with so many requests: eq. 8, with c1 = 0."""
        return min(max(self.budget // count - 1, self.min_depth), self.max_depth)

    def width(self, count: int) -> int:
        """Of the beam with so many requests: eq. 9, with c2 = 0."""
        return min(max(self.draft_budget // count, 1), self.max_width)


@dataclass(slots=True)
class Adaptive:
    """AdaServe: one beam for all, smaller the more there are; needs by the running mean pace.

    Source: AdaServe (arXiv 2501.12162), sections 3 and 5.2. `MARGIN` tightens all targets, as the
    predecessor's code does.
    """

    MARGIN = 1.05

    control: Control
    latency: LatencyModel
    _took: float = 0.0

    def specs(
        self, decodes: Sequence[RequestView], now: float, shape: BatchShape
    ) -> tuple[int, list[Spec]]:
        count = len(decodes)
        depth, width = self.control.depth(count), self.control.width(count)
        spec = Spec(max_nodes=depth * width, depth=depth, width=width)
        ended = now + (self._took or self.latency.step_time(shape))
        needs = [min(max(self._need(r, ended), 1.0), depth + 1.0) for r in decodes]
        return max(0, self.control.budget - count), [replace(spec, need=need) for need in needs]

    def _need(self, request: RequestView, ended: float) -> float:
        lag = behind(request.slo, request, ended)
        tokens = request.num_output_tokens - 1
        return self.MARGIN * (lag + tokens) - tokens

    def observe(self, event: object) -> None:
        if isinstance(event, Stepped) and event.outcome.shape.decode_seqs:
            took = event.outcome.ended - event.outcome.started
            self._took += (_RATE if self._took else 1.0) * (took - self._took)


@dataclass(slots=True)
class Valued:
    """Giusto's: needs by due times, and trees as deep as a draft step is worth its time.

    `nodes` is what all share, so that fewer are drafted for each the more there are; and nobody who
    is owed nothing drafts what is less likely than a node's price asks for. `right[k]` is how often
    a candidate of depth k + 1 is accepted once its parent was. With `tolls` a draft model stands
    beside look-up, which is free: the drafter is told what each of its passes must bring, and
    decides level by level.
    """

    spec: Spec
    nodes: int
    latency: LatencyModel
    tolls: bool = False
    right: list[float] = field(default_factory=list)
    _num_idle: int = 0

    def specs(
        self, decodes: Sequence[RequestView], now: float, shape: BatchShape
    ) -> tuple[int, list[Spec]]:
        each = min(self.spec.max_nodes, max(1, self.nodes // len(decodes)))
        depth, toll = self.spec.depth, 0.0
        if self.tolls:
            toll = self._toll(shape)
        else:
            depth = self._best_depth(shape, each)
        least = self._least(shape)
        calm = replace(self.spec, max_nodes=each, depth=depth, least=least, toll=toll)
        # What falls due while the next step runs must come with this one.
        until = now + 2 * self.latency.step_time(shape)
        needs = [_need(request, now, until) for request in decodes]
        specs = [calm if need <= 1 else replace(calm, need=need, least=0.0) for need in needs]
        return each * len(decodes) if depth else 0, specs

    def _least(self, shape: BatchShape) -> float:
        """How likely a node must be to be worth its time, were it the first of the step.

        Later ones must be likelier: what `select.by_value` drops is not drafted in vain.
        """
        plain = self.latency.step_time(shape)
        price = (self.latency.step_time(replace(shape, nodes=_FEW)) - plain) / _FEW
        return price * worth_of(shape) / plain

    def _toll(self, shape: BatchShape) -> float:
        """Tokens of each decode that are worth a pass of the draft model, made for all of them."""
        plain, count = self.latency.step_time(shape), shape.decode_seqs
        drafted = self.latency.step_time(replace(shape, draft_steps=1, draft_tokens=count))
        return (drafted / plain - 1) * worth_of(shape) / count

    def _best_depth(self, shape: BatchShape, each: int) -> int:
        """The depth of most tokens per second, by how far candidates were right lately."""
        plain = self.latency.step_time(shape)
        if self.latency.step_time(replace(shape, draft_steps=1)) <= plain:
            return self.spec.depth  # drafting costs nothing: look-ups
        best, best_rate = 0, 1 / plain
        expected = chance = 1.0
        for depth in range(1, self.spec.depth + 1):
            chance *= self.right[depth - 1] if depth <= len(self.right) else _UNKNOWN
            expected += chance
            nodes = shape.decode_seqs * min(each, depth)
            drafted = replace(shape, nodes=nodes, draft_steps=depth, draft_tokens=nodes)
            rate = expected / self.latency.step_time(drafted)
            if rate > best_rate:
                best, best_rate = depth, rate
        # Who never drafts never learns that it has become worth it.
        if best or self._num_idle >= _PROBE:
            return max(best, 1)
        return 0

    def observe(self, event: object) -> None:
        """Learn how often the candidates of each depth are accepted."""
        if not isinstance(event, Stepped):
            return
        has_drafted = False
        for made in event.outcome.yields.values():
            if made.selected:
                has_drafted = True
                self._learn(made)
        self._num_idle = 0 if has_drafted else self._num_idle + 1

    def _learn(self, made: Yield) -> None:
        while len(self.right) <= made.accepted:
            self.right.append(_UNKNOWN)
        for depth in range(made.accepted):
            self.right[depth] += _LEARNING * (1 - self.right[depth])
        if made.selected > made.accepted:  # something was verified beyond, and was wrong
            self.right[made.accepted] -= _LEARNING * self.right[made.accepted]


Wish = Fixed | Adaptive | Valued


def _need(request: RequestView, now: float, until: float) -> float:
    """Tokens that are due until then; one comes in any case, and a missed promise owes no more."""
    if request.is_demoted or is_missed(request.slo, request, now):
        return 1.0
    return float(max(1, owed(request.slo, request, until)))
