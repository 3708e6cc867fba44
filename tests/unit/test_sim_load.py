"""Who arrives: workloads by name, file and reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from giusto.core.errors import ConfigError
from giusto.core.slo import SLO, BestEffort, Deadline, Program, Streaming
from giusto.sim import load as loading
from giusto.sim.load import Load
from giusto.workload import mix, records
from giusto.workload.answers import Answers
from giusto.workload.arrivals import Process
from giusto.workload.records import Entry
from giusto.workload.samples import SAMPLES
from simulated import LATENCY, PROFILE, call, entry
from simulated import load as made_up

AZURE = "t_s,context_tokens,generated_tokens\n0,40,4\n2,50,5\n4,60,6\n6,70,7\n"


def entries(load: Load, slos: Mapping[str, SLO] | None = None) -> list[Entry]:
    return loading.entries(load, PROFILE, slos or {})


@pytest.fixture
def azure(tmp_path: Path) -> str:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)
    return f"azure:{path}"


# Names


@pytest.mark.parametrize("name", mix.MIXES)
def test_built_in_mixes(name: str) -> None:
    """Each is found by name, repeats by seed, and follows rate and duration."""
    assert name in loading.names()
    made = entries(Load(name, rate=2.0, seed=1, duration=60.0))
    assert made == entries(Load(name, rate=2.0, seed=1, duration=60.0))
    assert made != entries(Load(name, rate=2.0, seed=2, duration=60.0))
    assert all(one.output_tokens is not None and one.prompt_tokens for one in made)
    assert len(entries(Load(name, rate=8.0, seed=1, duration=60.0))) > 2 * len(made)


def test_promises_are_multiples_of_what_the_idle_machine_gives() -> None:
    """The yardstick is the profile's prompt step and decode step."""
    unit = loading.unit_of(PROFILE)
    assert unit.ttft == pytest.approx(0.01 + 256 * 5e-4)
    assert unit.tpot == pytest.approx(0.01 + 5e-4 + 256e-6)
    slow = replace(PROFILE, latency=LATENCY.scaled(3.0))
    load = Load("chat", duration=30.0)
    fast_slo, slow_slo = (loading.entries(load, p, {})[0].promise for p in (PROFILE, slow))
    assert isinstance(fast_slo, Streaming)
    assert isinstance(slow_slo, Streaming)
    assert slow_slo.ttft == pytest.approx(3 * (fast_slo.ttft or 0))
    assert slow_slo.tpot == pytest.approx(3 * (fast_slo.tpot or 0))


def test_unknown_names_list_what_exists(tmp_path: Path) -> None:
    """A misspelt name gets a hint, the built-in names and the readers."""
    for name in ("agent", "no-such", str(tmp_path / "missing.jsonl"), "azzure:file.csv"):
        with pytest.raises(ConfigError) as refusal:
            loading.check(name)
        for known in (*loading.names(), "azure", "mooncake", "claude-code"):
            assert known in str(refusal.value)
    with pytest.raises(ConfigError, match="did you mean 'agents'"):
        loading.check("agent")
    for name in (*loading.names(), f"azure:{tmp_path}/later.csv"):
        loading.check(name)


def test_a_missing_file_of_a_reader_is_named(tmp_path: Path) -> None:
    """Known reader, unknown file: the file is what is wrong."""
    with pytest.raises(ConfigError, match=r"later\.csv"):
        entries(Load(f"azure:{tmp_path}/later.csv"))


# Files and readers


def test_a_file_keeps_its_own_times(tmp_path: Path) -> None:
    """JSON Lines without a rate: arrivals, promises and programs as they are written."""
    path = tmp_path / "load.jsonl"
    written = made_up(10, seed=1)
    records.write(path, written)
    read = entries(Load(str(path)))
    assert [one.id for one in read] == [one.id for one in written]
    assert [one.arrival for one in read] == pytest.approx([one.arrival for one in written])
    assert [one.step for one in read] == [one.step for one in written]


def test_a_path_may_have_a_hash(tmp_path: Path) -> None:
    """A file that is there is read, whatever its name."""
    path = tmp_path / "load#1.jsonl"
    records.write(path, [entry("a")])
    assert [one.id for one in entries(Load(str(path)))] == ["a"]


def test_a_reader_reads(azure: str) -> None:
    """`reader:path` gives the trace's lengths at the trace's times."""
    read = entries(Load(azure))
    assert [one.arrival for one in read] == [0.0, 2.0, 4.0, 6.0]
    assert [one.output_tokens for one in read] == [4, 5, 6, 7]


def test_a_rate_squeezes_a_trace(azure: str) -> None:
    """A timed trace keeps its shape at another rate."""
    assert [one.arrival for one in entries(Load(azure, rate=2.0))] == [0.0, 0.5, 1.0, 1.5]


def test_duration_and_count_cut(azure: str) -> None:
    """After squeezing: what arrives within the time, and of that the first so many."""
    assert len(entries(Load(azure, duration=4.0))) == 3
    assert len(entries(Load(azure, rate=2.0, duration=1.0))) == 3
    assert len(entries(Load(azure, count=2))) == 2
    with pytest.raises(ConfigError, match="duration must be above 0 and finite, got -1"):
        entries(Load(azure, duration=-1.0))


def test_untimed_traces_get_arrivals(tmp_path: Path) -> None:
    """ShareGPT has no times: they come from process and seed, one per second if nothing is said."""
    path = tmp_path / "lengths.csv"
    path.write_text("input_tokens,output_tokens\n" + "30,5\n" * 200)
    first = entries(Load(f"sharegpt:{path}", seed=1))
    assert 150 < first[-1].arrival < 260
    assert first == entries(Load(f"sharegpt:{path}", seed=1))
    assert first != entries(Load(f"sharegpt:{path}", seed=2))
    bursty = Process("gamma", 0.1)
    assert first != entries(Load(f"sharegpt:{path}", seed=1, process=bursty))


def test_hidden_lengths_depend_on_row_and_seed_alone(tmp_path: Path) -> None:
    """A trace with caps: the same rows are as long at every rate and for every arrival seed."""
    path = tmp_path / "capped.jsonl"
    path.write_text(
        "".join(
            f'{{"id": "r{k}", "arrival_s": {k}, "prompt_tokens": 9, "max_tokens": 256}}\n'
            for k in range(40)
        )
    )

    def lengths(**more: object) -> list[int | None]:
        load = Load(str(path), answers=Answers(0.5), **more)  # type: ignore[arg-type]
        return [one.output_tokens for one in entries(load)]

    assert lengths() == lengths(rate=9.0) == lengths(seed=4) == lengths(count=40)
    assert lengths() != lengths(answers_seed=1)
    assert lengths(count=5) == lengths()[:5]


def test_promises_fill_gaps_only(tmp_path: Path) -> None:
    """Classes without an SLO get what the run promises them; what has one keeps it."""
    path = tmp_path / "load.jsonl"
    own = entry("own", slo=Deadline(9.0), service_class="chat")
    records.write(path, [own, entry("open", service_class="chat"), call("p", "a", deadline=5.0)])
    slos = {"chat": Streaming(1.0, 0.1), "default": Deadline(7.0)}
    promised = {one.id: one.promise for one in entries(Load(str(path)), slos)}
    assert promised == {"own": Deadline(9.0), "open": Streaming(1.0, 0.1), "p.a": Program(5.0)}
    assert entries(Load(str(path)))[1].promise == BestEffort()


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_of_traces_ship_with_the_package(name: str) -> None:
    """Each can be simulated by its name alone, at its own pace or another."""
    made = loading.entries(Load(name, count=20), PROFILE, {})
    assert len(made) == 20
    assert all(entry.prompt_tokens and entry.output_tokens for entry in made)
    quick = loading.entries(Load(name, rate=100.0, count=20), PROFILE, {})
    assert max(entry.arrival for entry in quick) < 2.0


@pytest.mark.parametrize("name", ["chat", "agents"])
def test_a_count_lifts_the_time_limit(name: str) -> None:
    """More arrivals than fit the default duration are generated when they are asked for."""
    made = loading.entries(Load(name, rate=1.0, count=500), PROFILE, {})
    assert max(entry.arrival for entry in made) > mix.DURATION
    programs = {entry.step.program if entry.step else entry.id for entry in made}
    assert len(programs) == 500
