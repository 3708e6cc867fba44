"""Length bounds told as events: once per arrival, or by a forest in virtual time."""

from __future__ import annotations

import pytest

from giusto import build
from giusto.core.errors import ConfigError
from giusto.core.events import LEVELS, Arrived, Finished
from giusto.core.request import FinishReason, Request, Submission
from giusto.predict.base import Constant, Oracle
from giusto.predict.conformal import Calibrated
from giusto.predict.feeds import VIRTUAL_COST, Announcer, InlineForest, virtual_cpu
from giusto.predict.histogram import Histogram
from simulated import entry, run


def arrived(name: str) -> Arrived:
    return Arrived(Request.of(Submission(name, 0.0, 4)), 0.0)


def test_each_arrival_is_told_once():
    """Bounds of whole outputs at every level, and nothing when nobody came."""
    feed = Announcer(Constant(40))
    feed.observe(arrived("a"))
    (told,) = feed.poll(1.0)
    assert (told.request_id, told.lengths, told.now) == ("a", (40.0,) * len(LEVELS), 1.0)
    assert feed.poll(2.0) == []


def test_who_is_gone_before_the_next_plan_is_not_told():
    """A request that ended at once has no bounds."""
    feed = Announcer(Constant(40))
    feed.observe(arrived("a"))
    feed.observe(Finished("a", 0.0, FinishReason.ABORT))
    assert feed.poll(1.0) == []


class FakeDesk:
    """Answers every ask with twice what was emitted, and tells of a fit."""

    def __init__(self) -> None:
        self.received = []

    def receive(self, message):
        self.received.append(message)

    def work(self, now):
        asks = [m for m in self.received if "ask" in m]
        return [{"fitted": 1, "seconds": now}] + [
            {"id": m["ask"], "lengths": [2.0 * m["emitted"]]} for m in asks
        ]


def test_a_forest_without_a_process_works_in_the_simulators_clock():
    """What the feed asks and teaches reaches the desk; of its replies only answers count."""
    desk = FakeDesk()
    client = InlineForest(desk, lambda: 3.0)
    client.learn([1.0], 17)
    client.ask("a", [1.0], 5)
    assert client.poll() == [("a", (10.0,))]
    assert desk.received[0] == {"learn": 17, "known": [1.0]}


def test_virtual_work_costs_the_same_each_time():
    """Two readings around a piece of work are one cost apart."""
    meter = virtual_cpu()
    assert [meter(), meter(), meter()] == pytest.approx([0.0, VIRTUAL_COST, 2 * VIRTUAL_COST])


class Truth:
    def output_tokens(self, request_id: str) -> int:
        return 7


def test_predictors_by_name():
    """Names make what they say; what is learned is calibrated."""
    made = build.predictor("histogram")
    assert isinstance(made, Calibrated)
    assert isinstance(made.inner, Histogram)
    assert isinstance(build.predictor("forest"), Calibrated)
    assert build.predictor("constant:99") == Constant(99.0)
    assert isinstance(build.predictor("oracle", Truth()), Oracle)


@pytest.mark.parametrize("name", ["histogramm", "histogram:3", "constant:many", "forest:1", ""])
def test_a_name_that_is_none_is_told(name):
    """The error says what there is, or what to give."""
    with pytest.raises(ConfigError, match=r"histogram, forest, constant, oracle|constant:TOKENS"):
        build.predictor(name)


def test_an_oracle_needs_a_simulator():
    """A live engine has no truth to tell."""
    with pytest.raises(ConfigError, match="only a simulator"):
        build.predictor("oracle")


@pytest.mark.parametrize("lengths", ["histogram", "constant:20", "oracle", "forest"])
def test_every_predictor_serves_a_simulated_run(lengths):
    """All requests end under each of them, alike when run again."""
    entries = [
        entry(f"r{i}", 0.05 * i, prompt=20, output=10 + i % 40, max_tokens=64) for i in range(60)
    ]
    first, again = (run(entries, policy="giusto", lengths=lengths) for _ in range(2))
    assert [r.token_times for r in first.records] == [r.token_times for r in again.records]
    assert all(r.is_answered for r in first.records)
