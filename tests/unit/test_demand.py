"""Keeping up: the pace that arrivals ask of the machine, and deadlines that may not break it."""

from __future__ import annotations

from math import ceil

import pytest

from giusto.core.events import Admitted, Arrived, Finished
from giusto.core.latency import LinearLatency
from giusto.core.plan import Limits
from giusto.core.request import FinishReason, Request
from giusto.core.slo import SLO, BestEffort, Deadline, Streaming
from giusto.policies import make
from giusto.policies.base import Dependencies
from giusto.policies.giusto import Giusto
from giusto.policies.giusto.cost import Cost
from giusto.policies.giusto.demand import Demand
from giusto.predict.base import Constant
from strategies import LiteralView, decoding, request

#: 10 ms a step, 1 ms a prompt token, 0.5 ms a decoding sequence.
LATENCY = LinearLatency((0.01, 0.001, 0.0, 0.0005, 0.0, 0.0, 0.0, 0.0, 0.0))
COST = Cost.of(LATENCY, [])
LONG = 0.25
SECONDS = 120


def arrivals(rate: int, prompt: int, output: int, slo: SLO | None = None) -> list[object]:
    """Two minutes of requests at a steady rate, each answered at once."""
    events: list[object] = []
    for number in range(SECONDS * rate):
        now = (number + 1) / rate
        made = answered(f"r{number}", prompt, output, slo or BestEffort(), now)
        events += [Arrived(made, now), Finished(made.id, now, FinishReason.STOP)]
    return events


def answered(name: str, prompt: int, output: int, slo: SLO, now: float) -> Request:
    return request(name, prompt, computed=prompt, output=output, slo=slo, arrival=now)


def demand_of(events: list[object]) -> Demand:
    made = Demand()
    for event in events:
        made.observe(event)
    return made


@pytest.mark.parametrize(
    ("rate", "prompt", "output", "stride"), [(2, 100, 20, 1.0), (5, 40, 100, 1.0), (5, 40, 100, 2)]
)
def test_the_pace_is_where_a_step_computes_what_came_in_meanwhile(
    rate: int, prompt: int, output: int, stride: float
) -> None:
    """The shortest of all steps, tried one by one, that is no longer than its work's arrival."""
    pace = demand_of(arrivals(rate, prompt, output)).pace(COST, stride, LONG, float(SECONDS))

    def takes(seconds: float) -> float:
        num_tokens, num_decodes = rate * prompt * seconds, rate * output / stride * seconds
        return 0.01 + 0.001 * ceil(num_tokens) + 0.0005 * ceil(num_decodes)

    tried = (step / 10_000 for step in range(10_000))
    shortest = next(seconds for seconds in tried if takes(seconds) <= seconds)
    # Rates fade: what came last counts a little more.
    assert pace == pytest.approx(shortest, rel=0.1, abs=LONG / 2**7)


def test_who_cannot_keep_up_has_no_pace() -> None:
    """Prompts of 1.2 s of work a second; and steps that would have to last too long."""
    late = float(SECONDS)
    assert demand_of(arrivals(12, 100, 20)).pace(COST, 1.0, LONG, late) == 0.0
    light = demand_of(arrivals(2, 100, 20))
    assert light.pace(COST, 1.0, 0.011, late) == 0.0
    assert light.pace(COST, 1.0, 0.02, late) > 0.0


def test_nothing_is_told_before_a_second_has_passed_and_asking_changes_nothing() -> None:
    """A rate of one arrival in no time is none."""
    made = demand_of(arrivals(2, 500, 20)[:2])
    assert made.pace(COST, 1.0, LONG, 0.6) == 0.0
    assert Demand().pace(COST, 1.0, LONG, 5.0) == 0.0
    first = made.pace(COST, 1.0, LONG, 3.0)
    assert made.pace(COST, 1.0, LONG, 90.0) < first
    assert made.pace(COST, 1.0, LONG, 3.0) == first


def test_what_a_cache_had_is_not_computed() -> None:
    """With nine tenths of the prompts found the pace is that of the tenth."""
    events = arrivals(2, 100, 20)
    found = [
        part
        for event in events
        for part in (
            (event, Admitted(event.request.id, event.now, 90))
            if isinstance(event, Arrived)
            else (event,)
        )
    ]
    late = float(SECONDS)
    cached = demand_of(found).pace(COST, 1.0, LONG, late)
    assert cached == demand_of(arrivals(2, 10, 20)).pace(COST, 1.0, LONG, late)


def busy(**options: object) -> tuple[Giusto, LiteralView]:
    """Arrivals that ask for steps of 25 ms; streams bear 100; a deadline needs a token each 15."""
    made = make("giusto", Dependencies(LATENCY, Constant(20)), options)
    assert isinstance(made, Giusto)
    for event in arrivals(6, 80, 40, Streaming(0.5, 0.1)):
        made.observe(event)
    now = float(SECONDS)
    tight = decoding("tight", slo=Deadline(1.0), arrival=now + 22 * 0.015 - 1.0)
    stream = decoding("stream", slo=Streaming(0.5, 0.1), arrival=now - 0.5)
    view = LiteralView([stream, tight], free_blocks=1000, limits=Limits(512, 16, 4), now=now)
    return made, view


def group(made: Giusto, view: LiteralView, name: str) -> object:
    return made.explain(view, name)["group"]


def test_a_deadline_may_not_hold_the_machine_below_what_comes_in() -> None:
    """It is served as if without a promise; the stream is kept; without the rule, both are."""
    made, view = busy()
    assert group(made, view, "tight") == "decodes without a promise"
    assert group(made, view, "stream") == "decodes to keep in time"
    made, view = busy(keep_up=0)
    assert group(made, view, "tight") == "decodes to keep in time"


def test_where_streams_bear_no_such_steps_the_deadline_is_kept() -> None:
    """Within a tenth of 100 ms the machine does not keep up: nothing is won by giving it up."""
    made, view = busy(keep_up=0.1)
    assert group(made, view, "tight") == "decodes to keep in time"


def test_a_prompt_that_would_need_shorter_steps_is_not_chosen() -> None:
    """Nor does a deadline that waits get a place for it."""
    made, view = busy()
    ask = request("ask", 8, slo=Deadline(0.4), arrival=view.now)
    view.waiting = [ask]
    assert group(made, view, "ask") == "prompts without a promise"
    made, view = busy(keep_up=0)
    view.waiting = [ask]
    assert group(made, view, "ask") == "prompts to finish in time"
