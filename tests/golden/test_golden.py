"""Schedules replayed: each policy's plans on a small starved load are the recorded ones.

After a change that is meant to move them, in the repository's root:

    PYTHONPATH=tests python -m golden.regenerate [policy ...]
"""

from __future__ import annotations

import json

import pytest

from giusto.policies import REGISTRY
from golden.regenerate import path_of, record


@pytest.mark.parametrize("name", REGISTRY)
def test_plans_are_the_recorded_ones(name: str) -> None:
    """Step by step, grants, preemptions, refusals and pauses equal the golden trace."""
    golden = path_of(name).read_text().splitlines()
    plans = record(name)
    for number, (expected, actual) in enumerate(zip(golden, plans, strict=False)):
        assert json.loads(expected) == json.loads(actual), f"plan {number} differs"
    assert len(golden) == len(plans)
