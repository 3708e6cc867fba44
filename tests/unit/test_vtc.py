"""Virtual token counters: what is charged, who is lifted, and the order that comes of it."""

from __future__ import annotations

import pytest

from giusto.core.errors import ConfigError
from giusto.core.events import (
    Admitted,
    Arrived,
    Finished,
    Preempted,
    Rejected,
    Resumed,
    Stepped,
)
from giusto.core.latency import BatchShape
from giusto.core.plan import Limits, StepOutcome, Yield, check
from giusto.core.request import FinishReason, Reason, Request, SamplingParams, Submission
from giusto.policies.vtc import Vtc, parse_weights
from harness import policy_named
from strategies import Hit, LiteralView

TOKEN = Yield((1,))


class House:
    """A policy and the requests it was told of, driven event by event."""

    def __init__(self, **options: object) -> None:
        policy, _ = policy_named("vtc", **options)
        assert isinstance(policy, Vtc)
        self.policy = policy
        self.requests: dict[str, Request] = {}

    def arrive(
        self, name: str, tenant: str, prompt: int = 8, *, at: float = 0.0, weight: float = 1.0
    ) -> Request:
        ask = Submission(
            name, at, prompt, tenant=tenant, weight=weight, sampling=SamplingParams(max_tokens=64)
        )
        made = self.requests[name] = Request.of(ask)
        self.policy.observe(Arrived(made, at))
        return made

    def admit(self, name: str, cached: int = 0) -> None:
        request = self.requests[name]
        event = Admitted if request.first_scheduled is None else Resumed
        request.first_scheduled = request.resident_since = 0.0
        request.num_computed_tokens = cached
        self.policy.observe(event(name, 0.0, cached))

    def step(self, tokens: dict[str, int]) -> None:
        """Compute so many tokens of each; who is then at its end emits one."""
        yields = {}
        for name, count in tokens.items():
            request = self.requests[name]
            request.launch(count)
            yields[name] = TOKEN if request.num_in_flight_outputs else Yield()
        outcome = StepOutcome(0, 0.0, 1.0, BatchShape(), yields)
        self.policy.observe(Stepped(outcome, 1.0))
        for name, count in tokens.items():
            self.requests[name].land(count, 0)
            self.requests[name].emit(yields[name].tokens, 1.0)

    def preempt(self, name: str) -> None:
        request = self.requests[name]
        request.num_computed_tokens, request.resident_since = 0, None
        self.policy.observe(Preempted(name, 1.0))

    def finish(self, name: str) -> None:
        del self.requests[name]
        self.policy.observe(Finished(name, 1.0, FinishReason.STOP))

    def serve(self, **prompts: int) -> None:
        """Let tenants, side by side, have a prompt and one token; only the counts stay."""
        for tenant, prompt in prompts.items():
            self.arrive(f"{tenant}-", tenant, prompt)
        for tenant in prompts:
            self.admit(f"{tenant}-")
        self.step({f"{tenant}-": prompt for tenant, prompt in prompts.items()})
        for tenant in prompts:
            self.finish(f"{tenant}-")

    def order(self, **view: object) -> list[str]:
        running = [r for r in self.requests.values() if r.resident_since is not None]
        waiting = [r for r in self.requests.values() if r.resident_since is None]
        seen = LiteralView(running, waiting, **view)
        plan = self.policy.plan(seen)
        check(plan, seen)
        return [grant.request_id for grant in plan.grants]


# Charges


def test_prompts_are_charged_by_the_chunk_and_output_twice() -> None:
    """A chunk counts when it is computed, not when the request is admitted."""
    house = House()
    house.arrive("r", "a", 8)
    house.admit("r")
    assert house.policy.served("a") == 0.0
    house.step({"r": 5})
    assert house.policy.served("a") == 5.0
    house.step({"r": 3})
    assert house.policy.served("a") == 8.0 + 2.0
    house.step({"r": 1})
    assert house.policy.served("a") == 8.0 + 4.0


def test_prices_are_options() -> None:
    """A prompt token, an output token and a cached one each have their own."""
    house = House(w_in="3", w_out="5", w_hit="0.5")
    house.arrive("r", "a", 8)
    house.admit("r", cached=4)
    house.step({"r": 4})
    assert house.policy.served("a") == 4 * 0.5 + 4 * 3 + 5


def test_a_cached_prefix_costs_a_tenth() -> None:
    """Hits are charged on admission, the rest as it is computed."""
    house = House()
    house.arrive("r", "a", 20)
    house.admit("r", cached=10)
    assert house.policy.served("a") == pytest.approx(1.0)
    house.step({"r": 10})
    assert house.policy.served("a") == pytest.approx(1.0 + 10.0 + 2.0)


def test_recomputed_tokens_are_not_charged() -> None:
    """After a preemption only what was never computed before counts, hits beyond it as hits."""
    house = House()
    house.arrive("r", "a", 30)
    house.admit("r")
    house.step({"r": 10})
    house.preempt("r")
    house.admit("r")
    house.step({"r": 10})
    assert house.policy.served("a") == 10.0
    house.preempt("r")
    house.admit("r", cached=20)
    assert house.policy.served("a") == pytest.approx(10.0 + 1.0)
    house.step({"r": 10})
    assert house.policy.served("a") == pytest.approx(11.0 + 10.0 + 2.0)
    house.preempt("r")
    house.admit("r")
    house.step({"r": 31})
    assert house.policy.served("a") == pytest.approx(23.0 + 2.0)


def test_a_cancel_pays_for_the_chunk_in_flight() -> None:
    """It is charged when the request ends; the step's own report is then no news."""
    house = House()
    house.arrive("r", "a", 8)
    house.admit("r")
    leaving = house.requests["r"]
    leaving.launch(5)
    leaving.is_leaving = True
    house.finish("r")
    assert house.policy.served("a") == 5.0
    assert house.policy.plan(LiteralView([leaving])).grants == ()
    outcome = StepOutcome(0, 0.0, 1.0, BatchShape(), {"r": Yield()})
    house.policy.observe(Stepped(outcome, 1.0))
    assert house.policy.served("a") == 5.0


# Lifts


def test_who_comes_back_starts_level_with_the_line() -> None:
    """Idleness earns no credit: the counter rises to the least of those that wait."""
    house = House()
    house.serve(a=50, b=90, c=4)
    house.arrive("b0", "b")
    house.arrive("a0", "a")
    assert house.policy.served("a") == house.policy.served("b") == 92.0
    house.arrive("a1", "a")
    house.admit("b0")
    house.step({"b0": 8})
    house.arrive("b1", "b")
    house.arrive("c0", "c")
    assert house.policy.served("b") == 102.0
    assert house.policy.served("c") == 92.0


def test_a_lift_lowers_nobody_and_comes_once() -> None:
    """Who is ahead stays ahead; who has a request in line already is not lifted again."""
    house = House()
    house.arrive("c0", "c")
    house.serve(b=90)
    house.arrive("b0", "b")
    house.arrive("c1", "c")
    assert house.policy.served("b") == 92.0
    assert house.policy.served("c") == 0.0


def test_an_empty_line_remembers_who_left_it_last() -> None:
    """With nobody waiting the newcomer starts level with the tenant that left last."""
    house = House()
    house.serve(a=20, b=50)
    house.arrive("c0", "c")
    assert house.policy.served("c") == 52.0
    house.arrive("a0", "a")
    house.admit("c0")
    house.step({"c0": 8})
    house.admit("a0")
    house.arrive("d0", "d")
    assert house.policy.served("d") == house.policy.served("a") == 52.0


def test_without_the_lift_a_counter_stays_where_it_was() -> None:
    """`lift=false` is least-counter-first."""
    house = House(lift="false")
    house.serve(a=50)
    house.arrive("a0", "a")
    house.arrive("b0", "b")
    assert house.policy.served("b") == 0.0
    assert house.order() == ["b0", "a0"]


def test_who_is_preempted_joins_the_line() -> None:
    """Its tenant is lifted as by an arrival, to a tie: it is not put behind."""
    house = House()
    house.arrive("b0", "b")
    house.admit("b0")
    house.serve(a=50)
    house.arrive("a0", "a")
    assert house.policy.served("b") == 0.0
    house.preempt("b0")
    assert house.policy.served("b") == 52.0


def test_who_was_refused_waits_no_longer() -> None:
    """A tenant turned away at the door does not hold others down."""
    house = House()
    house.serve(a=50)
    house.arrive("a0", "a")
    house.policy.observe(Arrived(Request.of(Submission("b0", 0.0, 8, tenant="b")), 0.0))
    house.policy.observe(Rejected("b0", 0.0, Reason.QUEUE_FULL))
    house.admit("a0")
    house.step({"a0": 8})
    house.arrive("a1", "a")
    house.arrive("c0", "c")
    assert house.policy.served("c") == 62.0


# Weights


def test_service_counts_by_weight() -> None:
    """The request states it, or an option by the tenant's name."""
    house = House(weights="GOLD=4, Silver=0.5")
    house.serve(a=8, GOLD=8, Silver=8)
    served = [house.policy.served(tenant) for tenant in ("a", "GOLD", "Silver")]
    assert served == [10.0, 2.5, 20.0]
    house = House()
    house.arrive("r", "b", 8, weight=2.0)
    house.admit("r")
    house.step({"r": 8})
    assert house.policy.served("b") == 5.0


def test_who_is_worth_nothing_still_has_a_share() -> None:
    """A weight of zero is a thousandth."""
    house = House()
    house.arrive("r", "a", 8, weight=0.0)
    house.admit("r")
    house.step({"r": 1})
    assert house.policy.served("a") == pytest.approx(1000.0)


def test_weights_are_read_from_text() -> None:
    """Names may hold an equals sign; nothing is no weights; a semicolon is as good as a comma."""
    assert parse_weights("") == {}
    assert parse_weights("a=b=2;Gold = 3 ") == {"a=b": 2.0, "Gold": 3.0}


@pytest.mark.parametrize("text", ["gold", "gold=", "=3", "gold=0", "gold=-1", "gold=inf", "a=1,b"])
def test_bad_weights_name_what_they_should_be(text: str) -> None:
    """A weight is a number above zero with a name."""
    with pytest.raises(ConfigError, match="policy vtc: weights must look like gold=4,silver=2"):
        policy_named("vtc", weights=text)


@pytest.mark.parametrize("option", ["w_in", "w_out", "w_hit"])
@pytest.mark.parametrize("value", ["-1", "inf", "nan"])
def test_prices_are_not_negative(option: str, value: str) -> None:
    """Nor infinite; the error names the option."""
    with pytest.raises(ConfigError, match=f"policy vtc: {option} must be at least 0"):
        policy_named("vtc", **{option: value})


# Order


def test_the_least_served_goes_first() -> None:
    """Residents and the line each by their tenant's counter, residents before the line."""
    house = House()
    for name in ("a0", "b0", "a1", "b1"):
        house.arrive(name, name[0])
    house.admit("a0")
    house.admit("b0")
    house.step({"a0": 6, "b0": 2})
    assert house.order() == ["b0", "a0", "b1", "a1"]


def test_a_line_is_charged_as_it_is_read() -> None:
    """One tenant's flood does not take a step: two prompts of four against one of eight."""
    house = House()
    for i in range(4):
        house.arrive(f"a{i}", "a", 4)
    for i in range(3):
        house.arrive(f"b{i}", "b", 8)
    assert house.order() == ["a0", "b0", "a1", "a2", "b1", "a3", "b2"]


def test_a_hit_makes_a_prompt_cheap_in_line_too() -> None:
    """What the cache holds is charged at its price when the line is read."""
    house = House()
    house.arrive("a0", "a", 9)
    house.arrive("a1", "a", 9)
    house.arrive("b0", "b", 2)
    house.arrive("b1", "b", 2)
    assert house.order() == ["a0", "b0", "b1", "a1"]
    hits = {"a0": Hit(2, 2)}
    assert house.order(hits=hits) == ["a0", "b0", "a1", "b1"]


def test_within_a_tenant_and_at_a_tie_the_earlier_arrival_goes_first() -> None:
    """First come, first served where counters do not decide."""
    house = House(w_in=0)
    house.arrive("b0", "b", at=1.0)
    house.arrive("a0", "a", at=2.0)
    house.arrive("b1", "b", at=3.0)
    assert house.order() == ["b0", "a0", "b1"]


def test_chunks_in_flight_count_before_they_are_reported() -> None:
    """With lookahead the next plan is made before any event tells of the last one."""
    house = House()
    house.arrive("a0", "a", 8)
    house.arrive("a1", "a", 8)
    house.arrive("b0", "b", 8, at=1.0)
    assert house.order() == ["a0", "b0", "a1"]
    house.admit("a0")
    house.requests["a0"].launch(8)
    assert house.order() == ["a0", "b0", "a1"]
    assert house.policy.served("a") == 0.0


def test_a_prompt_does_not_stall_the_streams_of_others() -> None:
    """The least served tenant's prompt comes first, and leaves each decode its token."""
    house = House()
    house.arrive("b0", "b", 60)
    for i in range(3):
        house.arrive(f"a{i}", "a")
        house.admit(f"a{i}")
        house.step({f"a{i}": 8})
    house.admit("b0")
    house.step({"b0": 4})
    view = LiteralView(list(house.requests.values()), limits=Limits(16, 8, 4))
    grants = [(g.request_id, g.num_tokens) for g in house.policy.plan(view).grants]
    assert grants == [("b0", 13), ("a0", 1), ("a1", 1), ("a2", 1)]


def test_strangers_are_forgotten_without_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters at or below the lift's level go; whoever returns is lifted to it anyway."""
    monkeypatch.setattr("giusto.policies.vtc.REMEMBERED", 5)
    house = House()
    house.arrive("runs", "house", 8)
    house.admit("runs")
    house.step({"runs": 8})
    house.arrive("waits", "house", 8)
    for number in range(20):
        house.serve(**{f"t{number}": 1})
        house.step({"runs": 1})
        house.step({"runs": 1})
    assert len(house.policy._served) < 12
    assert house.policy.served("house") == 8 + 2 + 20 * 4
    house.arrive("again", "t0", 1)
    assert house.policy.served("t0") == house.policy.served("house")
