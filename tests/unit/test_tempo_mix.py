"""The workload `tempo-mix`, and runs whose first seconds are not counted."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import pytest

from giusto import build
from giusto.core.errors import ConfigError
from giusto.core.slo import BestEffort, Deadline, Program, Streaming
from giusto.profiles.profile import load as load_profile
from giusto.sim import load as loading
from giusto.sim.load import Load
from giusto.sim.run import SimRun
from giusto.workload import mix, records, tempo_mix
from giusto.workload.arrivals import Process
from giusto.workload.records import Entry, Piece
from giusto.workload.tempo_mix import CALLS_PER_ARRIVAL, CAP, NAME, SCALES, rows
from simulated import PROFILE, call, entry, settings

PROGRAMS = ("tree-of-thought", "deep-research")


@pytest.fixture(scope="module")
def made() -> list[Entry]:
    return mix.build(NAME, 10.0, 1)


@pytest.fixture(scope="module")
def programs(made: list[Entry]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = defaultdict(list)
    for one in made:
        if one.step is not None:
            found[one.step.program].append(one)
    return found


def of(made: list[Entry], name: str) -> list[Entry]:
    return [one for one in made if one.service_class == name]


# What arrives


def test_calls_are_thirty_thirty_thirty_ten(made: list[Entry]) -> None:
    """Of a hundred calls; half of the programs are of either kind."""
    seen = Counter(one.service_class for one in made)
    shares = {name: 100 * count / len(made) for name, count in seen.items()}
    assert shares.keys() == {"chat", "task", "batch", *PROGRAMS}
    assert shares["chat"] == pytest.approx(30, abs=2)
    assert shares["task"] == pytest.approx(30, abs=2)
    assert shares["batch"] == pytest.approx(10, abs=1.5)
    assert sum(shares[name] for name in PROGRAMS) == pytest.approx(30, abs=3)
    trees, researches = (len(of(made, name)) for name in PROGRAMS)
    assert trees / 8 == pytest.approx(researches / 6, rel=0.25)


def test_a_program_counts_as_one_arrival(made: list[Entry]) -> None:
    """At 10 per second for its own 600 s; calls are so many times as many."""
    arrived = {one.step.program if one.step else one.id for one in made}
    assert len(arrived) == pytest.approx(6_000, rel=0.04)
    assert len(made) / len(arrived) == pytest.approx(CALLS_PER_ARRIVAL, rel=0.03)
    assert pytest.approx(1.346, abs=5e-4) == CALLS_PER_ARRIVAL
    assert max(one.arrival for one in made) == pytest.approx(600, abs=2)


def test_stages_of_programs(programs: dict[str, list[Entry]]) -> None:
    """3, 1, 3, 1 calls or six of one; each call waits for the whole stage before, the last ends."""
    for calls in programs.values():
        steps = [one.step for one in calls if one.step is not None]
        stages = [sorted(s.call for s in steps if s.stage == k) for k in range(len(steps))]
        stages = [names for names in stages if names]
        kind = calls[0].service_class
        assert {step.app for step in steps} == {kind}
        expected = (3, 1, 3, 1) if kind == "tree-of-thought" else (1,) * 6
        assert tuple(map(len, stages)) == expected
        for step in steps:
            assert step.stage is not None
            assert sorted(step.parents) == (stages[step.stage - 1] if step.stage else [])
            assert step.is_final == (step.stage == len(stages) - 1)
        assert len({one.arrival for one in calls}) == 1


def test_a_research_prompt_begins_with_the_answer_before_it(
    programs: dict[str, list[Entry]],
) -> None:
    """The row's prompt stands behind it; thoughts quote nothing."""
    prompts = {prompt for prompt, _ in rows()}
    for calls in programs.values():
        for before, one in zip([None, *calls], calls, strict=False):
            quoted = 0
            if one.service_class == "deep-research" and before is not None:
                assert before.output_tokens is not None
                assert one.pieces == (Piece(before.id, 0, before.output_tokens),)
                quoted = before.output_tokens
            else:
                assert one.pieces == ()
            assert (one.prompt_tokens or 0) - quoted in prompts


def test_tools_run_between_stages(programs: dict[str, list[Entry]]) -> None:
    """Log-normal, median 1 s, sigma 1; once for all calls of a stage, never for the first."""
    tools = []
    for calls in programs.values():
        by_stage = defaultdict(set)
        for one in calls:
            assert one.step is not None
            by_stage[one.step.stage].add(one.step.tool_time)
        assert by_stage.pop(0) == {0.0}
        for (time,) in by_stage.values():
            tools.append(time)
    assert len(tools) > 1_000
    assert median(tools) == pytest.approx(1.0, rel=0.12)
    assert mean(map(math.log, tools)) == pytest.approx(0.0, abs=0.1)
    assert stdev(map(math.log, tools)) == pytest.approx(1.0, rel=0.06)


def test_promises_are_one_to_four_times_their_bases(
    made: list[Entry], programs: dict[str, list[Entry]]
) -> None:
    """Each multiple as often; a stream's two parts have the same; a program's is per stage."""
    chats = Counter(one.promise for one in of(made, "chat"))
    assert chats.keys() == {Streaming(0.8 * k, 0.08 * k) for k in SCALES}
    tasks = Counter(one.promise for one in of(made, "task"))
    assert tasks.keys() == {Deadline(8.0 * k) for k in SCALES}
    for seen in (chats, tasks):
        assert min(seen.values()) > 0.8 * seen.total() / 4
    assert {one.promise for one in of(made, "batch")} == {BestEffort()}
    for name, stages in (("tree-of-thought", 4), ("deep-research", 6)):
        promises = {one.promise for one in of(made, name)}
        assert promises == {Program(8.0 * stages * k) for k in SCALES}
    for calls in programs.values():
        assert len({one.promise for one in calls}) == 1


def test_nothing_that_policies_see_tells_of_the_drawn_lengths(made: list[Entry]) -> None:
    """One cap for all; the mean answer is the same under every promise."""
    assert {one.max_tokens for one in made} == {CAP}
    for name in ("chat", "task"):
        by_promise: dict[Any, list[int]] = defaultdict(list)
        for one in of(made, name):
            by_promise[one.promise].append(one.output_tokens or 0)
        means = [mean(lengths) for lengths in by_promise.values()]
        assert max(means) / min(means) < 1.3


def test_lengths_are_rows_of_sharegpt(made: list[Entry]) -> None:
    """Pairs of the shipped sample, many of them, none cut at the cap."""
    pairs = {
        (one.prompt_tokens, one.output_tokens) for one in made if one.service_class in ("chat",)
    }
    assert pairs <= set(rows())
    assert len(set(rows())) > 3_000
    assert len({(e.prompt_tokens, e.output_tokens) for e in made}) > 2_000
    assert max(output for _, output in rows()) <= CAP


def test_contents_do_not_depend_on_the_arrivals() -> None:
    """Slow, fast or bursty: the k-th arrival asks the same."""

    def contents(rate: float, process: Process) -> list[Entry]:
        entries = mix.build(NAME, rate, 3, math.inf, count=200, process=process)
        return [replace(one, arrival=0.0) for one in entries]

    bursty = Process("gamma", 1 / 9)
    assert contents(1.0, Process()) == contents(20.0, Process()) == contents(5.0, bursty)


def test_its_machine() -> None:
    """The profile that it is made for takes 256 sequences, and the blocks for as many."""
    profile = load_profile("llama-3.1-8b-a100")
    assert profile.max_num_seqs == 256
    typical = 256 * mean(prompt + output for prompt, output in rows())
    assert profile.num_blocks * profile.block_size > 2 * typical


def test_it_lasts_ten_minutes_unless_told() -> None:
    """In the simulator too; a count lifts the limit."""
    entries = loading.entries(Load(NAME, rate=0.5, seed=1), PROFILE, {})
    assert 500 < max(one.arrival for one in entries) <= tempo_mix.DURATION
    many = loading.entries(Load(NAME, rate=0.1, count=100), PROFILE, {})
    assert max(one.arrival for one in many) > tempo_mix.DURATION


# What is counted


@pytest.fixture
def early_and_late(tmp_path: Path) -> str:
    """Two requests and a program that begin before 10 s, and one of each after."""
    path = tmp_path / "load.jsonl"
    made = [entry("early", 1.0, service_class="a"), entry("edge", 10.0, service_class="b")]
    for name, at in (("p", 9.0), ("q", 11.0)):
        first = call(name, "x", arrival=at, deadline=30.0)
        last = call(name, "y", ("x",), 5.0, arrival=at, deadline=30.0)
        made += [first, last]
    records.write(path, [*made, entry("late", 20.0, service_class="b")])
    return str(path)


def simulated(workload: str, warmup: float | None) -> dict[str, Any]:
    run = SimRun(settings(), Load(workload), "fcfs", warmup=warmup)
    return build.simulate(run)


def test_what_arrives_in_the_warmup_is_served_but_not_counted(early_and_late: str) -> None:
    """A program goes by its opening: no call of one that opened early counts, however late."""
    whole, part = simulated(early_and_late, None), simulated(early_and_late, 10.0)
    assert (whole["offered"], whole["completed"], whole["num_prompts"]) == (5, 7, 7)
    assert (part["offered"], part["completed"], part["num_prompts"]) == (3, 4, 7)
    assert part["by_class"].keys() == {"all", "b", "default"}
    assert part["distributions"]["all"]["requests"] == 4
    assert part["num_steps"] == whole["num_steps"]
    assert sum(part["timeline"]["arrivals"]) == 7
    assert (whole["warmup"], part["warmup"]) == (None, 10.0)


def test_the_rest_is_served_as_if_all_counted(early_and_late: str) -> None:
    """The figures of what is left are those of a run that counts everything."""
    whole, part = simulated(early_and_late, 0.0), simulated(early_and_late, 10.0)
    for key in ("p95_ttft_offered_ms", "attained", "service_gain"):
        assert part["by_class"]["b"][key] == whole["by_class"]["b"][key]


def test_tempo_mix_brings_its_own_warmup() -> None:
    """A minute, unless it is told another; other workloads count all."""
    own = SimRun(settings(), Load(NAME), "fcfs")
    assert own.about["warmup"] == own.uncounted == 60.0
    assert SimRun(settings(), Load(NAME), "fcfs", warmup=0.0).about["warmup"] is None
    assert SimRun(settings(), Load("chat"), "fcfs").about["warmup"] is None


def test_warmups_that_cannot_be(early_and_late: str) -> None:
    """Negative, endless, or longer than the run."""
    for bad in (-1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="warmup must be at least 0 and finite"):
            SimRun(settings(), Load("chat"), "fcfs", warmup=bad)
    with pytest.raises(ConfigError, match="nothing arrives after the first 100 s"):
        simulated(early_and_late, 100.0)
