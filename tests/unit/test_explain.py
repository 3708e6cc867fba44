"""Why a request stands where it stands: facts that JSON can carry, without changing a thing."""

from __future__ import annotations

import json

import pytest

from giusto.core.explain import explain
from giusto.core.latency import LinearLatency
from giusto.core.plan import Limits
from giusto.core.slo import BestEffort, Deadline, Streaming
from giusto.policies import make
from giusto.policies.base import Dependencies
from giusto.predict.base import Constant
from strategies import LiteralView, decoding, request

LATENCY = LinearLatency((0.01, 0.001, 0.0, 0.0005, 0.0, 0.0, 0.0, 0.0, 0.0))
NOW = 10.0


def policy(name: str):
    return make(name, Dependencies(LATENCY, Constant(20)))


@pytest.fixture
def view():
    return LiteralView(
        limits=Limits(512, 16, 4),
        free_blocks=1000,
        now=NOW,
        running=[decoding("stream", 8, slo=Streaming(0.2, 0.04), arrival=NOW - 0.2)],
        waiting=[
            request("task", 30, slo=Deadline(5.0), arrival=NOW - 1),
            request("batch", 30, slo=BestEffort(), arrival=NOW - 0.5),
        ],
    )


def test_a_waiting_request_is_told_with_its_place_and_its_due_time(view):
    """Place in line, time left and what the next plan grants."""
    facts = explain(view, policy("edf"), "task")
    assert (facts["state"], facts["position"], facts["of"]) == ("waiting", 0, 2)
    assert facts["kind"] == "deadline"
    assert facts["due_in_ms"] == pytest.approx(4000)
    assert facts["age_ms"] == pytest.approx(1000)
    assert facts["granted_tokens"] == 30
    assert "policy" not in facts
    json.dumps(facts, allow_nan=False)


def test_best_effort_has_no_due_time(view):
    """What JSON has no number for is null."""
    facts = explain(view, policy("edf"), "batch")
    assert facts["due_in_ms"] is None
    assert facts["program"] is None


def test_an_unknown_request_is_a_key_error(view):
    with pytest.raises(KeyError):
        explain(view, policy("edf"), "nobody")


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("stream", "decodes to keep in time"),
        ("task", "prompts to finish in time"),
        ("batch", "prompts without a promise"),
    ],
)
def test_giusto_tells_the_group_that_it_puts_a_request_in(view, name, group):
    """Each group of the policy's order is named; a prompt that competes is told its price."""
    facts = explain(view, policy("giusto"), name)["policy"]
    assert facts["group"] == group
    assert facts["remaining_tokens"] > 0
    assert ("job" in facts) == (name == "task")
    json.dumps(facts, allow_nan=False)
