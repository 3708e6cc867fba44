"""Orders by length: `sjf` and `ltr` on predictions, `srpt-oracle` on the truth, nobody else."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from giusto.core.errors import ConfigError
from giusto.core.events import Arrived, Finished, Stepped
from giusto.core.latency import BatchShape
from giusto.core.plan import Limits, Policy, StepOutcome, Yield, check
from giusto.core.request import FinishReason, Request, RequestView
from giusto.policies import REGISTRY, make
from giusto.policies.base import RENEWAL, Dependencies, Remembered
from harness import HONEST, LATENCY, Truth
from strategies import LiteralView, decoding, request

POLICIES = ("sjf", "ltr", "srpt-oracle")


@dataclass
class Table:
    """A predictor that is told whole lengths, and counts how often it is asked."""

    totals: dict[str, float]
    asked: list[str] = field(default_factory=list)

    def remaining(self, request: RequestView) -> float:
        self.asked.append(request.id)
        return max(1.0, self.totals[request.id] - request.num_output_tokens)

    def observe(self, event: object) -> None:
        """Nothing to learn."""


def built(name: str, totals: dict[str, int], **options: object) -> Policy:
    """A policy to which these lengths are predictions and truth alike."""
    return make(name, Dependencies(LATENCY, Table(dict(totals)), Truth(totals)), options)


def order(policy: Policy, view: LiteralView) -> list[str]:
    plan = policy.plan(view)
    check(plan, view)
    return [grant.request_id for grant in plan.grants]


# All three


@pytest.mark.parametrize("name", POLICIES)
def test_the_shortest_in_the_queue_is_admitted_first(name: str) -> None:
    """By what is to come, ties by arrival."""
    waiting = [request(name) for name in "abcd"]
    policy = built(name, {"a": 50, "b": 9, "c": 30, "d": 9})
    assert order(policy, LiteralView([], waiting)) == ["b", "d", "c", "a"]


@pytest.mark.parametrize("name", POLICIES)
def test_nobody_takes_the_place_of_a_resident(name: str) -> None:
    """With all slots taken a shorter request waits."""
    view = LiteralView([decoding("a")], [request("b")], limits=Limits(64, 1, 4))
    assert order(built(name, {"a": 90, "b": 2}), view) == ["a"]


@pytest.mark.parametrize("name", POLICIES)
def test_the_floor_comes_first(name: str) -> None:
    """The longest job gets its twentieth of a step when it has waited half its span."""
    view = LiteralView([decoding("a")], [request("b"), request("c", arrival=5.0)], now=31.0)
    assert order(built(name, {"a": 9, "b": 90, "c": 9}), view)[0] == "b"


# sjf


def test_sjf_counts_the_prompt() -> None:
    """A long prompt with a short answer is no short job."""
    view = LiteralView([], [request("a", 40), request("b", 4)])
    assert order(built("sjf", {"a": 5, "b": 30}), view) == ["b", "a"]


def test_sjf_serves_residents_in_order_of_residence() -> None:
    """Who is in stays in front, whatever its length."""
    view = LiteralView([decoding("a"), decoding("b")], [request("c")])
    assert order(built("sjf", {"a": 90, "b": 9, "c": 2}), view) == ["a", "b", "c"]


def test_preemptive_sjf_lets_the_shorter_take_a_place() -> None:
    """The resident with most to come makes room; without anyone shorter all stay."""
    residents = [decoding("a"), decoding("b")]
    view = LiteralView(residents, [request("c", 4)], limits=Limits(64, 2, 4))
    policy = built("sjf", {"a": 30, "b": 90, "c": 5}, preemptive=True)
    plan = policy.plan(view)
    check(plan, view)
    assert [grant.request_id for grant in plan.grants] == ["c", "a"]
    assert [preempt.request_id for preempt in plan.preempt] == ["b"]
    policy = built("sjf", {"a": 30, "b": 40, "c": 80}, preemptive=True)
    assert order(policy, view) == ["a", "b"]


# ltr


def test_ltr_ranks_by_the_rest_of_the_answer() -> None:
    """Prompts do not count, residents come first, and what was emitted has been done."""
    far = decoding("a")
    far.num_output_tokens, far.num_computed_tokens = 40, 47
    view = LiteralView([decoding("b"), far], [request("c", 40), request("d", 4)])
    assert order(built("ltr", {"a": 50, "b": 20, "c": 5, "d": 30}), view) == ["a", "b", "c", "d"]


def stepped(step: int, *served: str) -> Stepped:
    """A step that gave each of these requests a token."""
    outcome = StepOutcome(step, 0.0, 0.0, BatchShape(), {name: Yield((1,)) for name in served})
    return Stepped(outcome, 0.0)


class Waiting:
    """Two requests, and a policy with a threshold of five steps and a quantum of two."""

    def __init__(self) -> None:
        self.policy = built("ltr", {"a": 9, "b": 90}, threshold=5, quantum=2)
        self.requests = [decoding("a"), decoding("b")]
        for each in self.requests:
            self.policy.observe(Arrived(each, 0.0))

    def serve(self, step: int, *names: str) -> None:
        self.policy.observe(stepped(step, *names))

    def first(self, step: int) -> str:
        """Who is served first in a step."""
        return order(self.policy, LiteralView(self.requests, step=step))[0]


def test_ltr_promotes_who_was_passed_over_for_long() -> None:
    """After the threshold, not before, and only who had no service."""
    case = Waiting()
    for step in range(5):
        assert case.first(step) == "a"
        case.serve(step, "a")
    assert case.first(5) == "b"


def test_ltr_demotes_after_the_quantum_of_service() -> None:
    """Two steps of its own, then it takes its rank again and the count begins anew."""
    case = Waiting()
    for step in range(5):
        case.serve(step, "a")
    case.serve(5, "b")
    assert case.first(6) == "b"
    case.serve(6, "a")
    assert case.first(7) == "b", "a step without service does not use up the quantum"
    case.serve(7, "a", "b")
    for step in range(8, 13):
        assert case.first(step) == "a"
        case.serve(step, "a")
    assert case.first(13) == "b"


def test_ltr_forgets_who_has_ended() -> None:
    """Also when its last step commits after its end."""
    case = Waiting()
    case.serve(9, "b")
    for each in case.requests:
        case.policy.observe(Finished(each.id, 0.0, FinishReason.ABORT))
    case.serve(10, "a", "b")
    assert case.policy._idle_since == case.policy._quanta == {}


@pytest.mark.parametrize("option", ["threshold", "quantum"])
def test_ltr_wants_at_least_a_step(option: str) -> None:
    """Nothing below one makes sense."""
    with pytest.raises(ConfigError, match=f"policy ltr: {option} must be at least 1, got 0"):
        built("ltr", {}, **{option: 0})


# srpt-oracle


def test_the_oracle_goes_by_the_truth() -> None:
    """Residents and queue each by what is truly to come, prompts included."""
    far = decoding("a")
    far.num_output_tokens, far.num_computed_tokens = 40, 47
    view = LiteralView([decoding("b"), far], [request("c", 40), request("d", 4)])
    truth = Truth({"a": 45, "b": 20, "c": 5, "d": 30})
    policy = make("srpt-oracle", Dependencies(LATENCY, Table({}), truth))
    assert order(policy, view) == ["a", "b", "d", "c"]


def test_the_oracle_needs_what_only_the_simulator_has() -> None:
    """Without true lengths it is not built, and the error says why and what to do."""
    words = "policy srpt-oracle: only the simulator knows true lengths; serve with another"
    with pytest.raises(ConfigError, match=words):
        make("srpt-oracle", Dependencies(LATENCY, Table({})))


def test_the_oracle_is_labelled() -> None:
    """It is the only one of its kind, and the first line that users read says so."""
    assert [name for name in REGISTRY if name not in HONEST] == ["srpt-oracle"]
    assert "(simulator only)" in REGISTRY["srpt-oracle"].__doc__.splitlines()[0]


@pytest.mark.parametrize("name", HONEST)
def test_nobody_else_asks_for_the_truth(name: str) -> None:
    """Every other policy is built without it."""
    make(name, Dependencies(LATENCY, Table({})))


# Predictions, remembered


def grown(name: str, output: int) -> Request:
    made = decoding(name)
    made.num_output_tokens = output
    return made


def test_a_prediction_is_asked_for_once() -> None:
    """What was emitted since is deducted."""
    table = Table({"a": 20})
    lengths = Remembered(table)
    assert [lengths.remaining(grown("a", n)) for n in (0, 5, 19)] == [20, 15, 1]
    assert lengths.total(grown("a", 5)) == 20
    assert table.asked == ["a"]


def test_an_outlived_prediction_is_asked_for_again() -> None:
    """At the latest when nothing of it is left."""
    table = Table({"a": 20})
    lengths = Remembered(table)
    lengths.remaining(grown("a", 0))
    table.totals["a"] = 32
    assert lengths.remaining(grown("a", 20)) == 12
    assert table.asked == ["a", "a"]


def test_predictions_are_renewed_as_requests_end() -> None:
    """A few with each ending, the oldest first, so that no step asks for all; in the end each."""
    names = [f"r{k}" for k in range(4 * RENEWAL)]
    table = Table(dict.fromkeys(names, 20))
    lengths = Remembered(table)

    def ask() -> list[str]:
        table.asked.clear()
        for name in names:
            lengths.total(grown(name, 0))
        return list(table.asked)

    assert ask() == names
    assert ask() == []
    for count in range(RENEWAL):
        lengths.observe(Finished(f"gone {count}", 0.0, FinishReason.STOP))
        assert ask() == names[4 * count : 4 * count + 4]


def test_predictions_of_who_has_ended_are_forgotten() -> None:
    table = Table({"a": 20})
    lengths = Remembered(table)
    lengths.total(grown("a", 0))
    lengths.observe(Finished("a", 0.0, FinishReason.STOP))
    lengths.total(grown("a", 0))
    assert table.asked == ["a", "a"]
