"""The workload `mixed` in the simulator: recorded lengths, shared prompts, promises of the idle."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from giusto import build
from giusto.core.slo import Deadline, Program, Streaming
from giusto.profiles.profile import load
from giusto.sim.load import Load
from giusto.sim.run import SimRun, promises
from giusto.sim.settings import SimSettings
from giusto.workload import mixed

PROFILE = load("smollm2-135m-cpu")
LOAD = mixed.Load(rate=2.0, seed=3, duration=60.0)


def run(policy: str, rate: float = 1.0, **settings: object) -> SimRun:
    load = Load("mixed", rate, seed=1, duration=60.0)
    return SimRun(SimSettings(PROFILE, policy, **settings), load, policy)


def test_every_entry_has_a_recorded_length_within_its_cap() -> None:
    """Counts replace texts; nothing else changes, and the same entry gets the same counts."""
    entries = mixed.entries(LOAD)
    counted = mixed.counted(entries)
    assert [e.id for e in counted] == [e.id for e in entries]
    assert counted == mixed.counted(entries)
    for before, after in zip(entries, counted, strict=True):
        assert 1 <= (after.output_tokens or 0) <= before.max_tokens
        assert (after.prompt_tokens or 0) >= len(before.messages)
        assert replace(
            after, messages=before.messages, prompt_tokens=None, output_tokens=None, pieces=()
        ) == replace(before, prompt_tokens=None)
    assert len({e.output_tokens for e in counted}) > 10


def test_the_second_call_of_a_program_goes_on_from_the_first() -> None:
    """It shares the first's prompt and answer, and is longer than both."""
    counted = mixed.counted(mixed.entries(LOAD))
    pairs = [(a, b) for a, b in pairwise(counted) if b.waits_for]
    assert pairs
    shared = 0
    for first, second in pairs:
        assert second.step.parents == ("read",)
        assert second.prompt_tokens > first.prompt_tokens
        sources = [piece.source for piece in second.pieces]
        shared += sources[:2] == [first.pieces[0].source, first.id]
    assert shared == len(pairs)


def test_promises_are_three_times_what_the_idle_machine_gives() -> None:
    """Measured in the same simulated world, whatever the policy and the noise of the run."""
    made = promises(run("giusto"), build.cluster)
    assert made == promises(run("edf", model_error=0.0), build.cluster)
    chat, tool, program = made["chat"], made["tool"], made["program"]
    assert isinstance(chat, Streaming)
    assert isinstance(tool, Deadline)
    assert isinstance(program, Program)
    doubled = promises(replace(run("giusto"), slo_scale=6.0), build.cluster)
    assert doubled["tool"].deadline == pytest.approx(2 * tool.deadline)
    step = PROFILE.slo_unit or 0.012
    assert 2 * step < chat.tpot < 6 * step


def test_an_idle_machine_keeps_its_promises_and_a_swamped_one_does_not() -> None:
    """The workload's knee lies between, and giusto is the better one beyond it."""
    kept = {
        (policy, rate): build.simulate(run(policy, rate))["attainment"]
        for policy, rate in (("fcfs", 0.1), ("fcfs", 3.0), ("giusto", 3.0))
    }
    assert kept["fcfs", 0.1] > 0.95
    assert kept["fcfs", 3.0] < 0.7
    assert kept["giusto", 3.0] > kept["fcfs", 3.0]
