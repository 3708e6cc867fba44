"""Workloads at another rate, and their heads."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from giusto.core.errors import ConfigError
from giusto.workload.agents import AGENTS
from giusto.workload.arrivals import Process
from giusto.workload.records import Entry, Step
from giusto.workload.rescale import repeated, rescaled, taken


def single(name: str, at: float) -> Entry:
    return Entry(name, at, prompt_tokens=1)


def call(name: str, at: float, parents: tuple[str, ...] = ()) -> Entry:
    return Entry(f"p-{name}", at, prompt_tokens=1, step=Step("p", name, parents))


#: Two requests around a program of two roots, whose last call is dated before it opened.
SMALL = [
    single("a", 1.0),
    call("left", 3.0),
    call("right", 3.5),
    call("join", 0.0, ("left", "right")),
    single("b", 9.0),
]


def units(entries: list[Entry]) -> dict[str, float]:
    """Arrival of each unit, in the order of entries."""
    opened: dict[str, float] = {}
    for entry in entries:
        name = entry.step.program if entry.step else entry.id
        opened[name] = min(opened.get(name, math.inf), entry.arrival)
    return opened


@st.composite
def workloads(draw: st.DrawFn) -> list[Entry]:
    """Single requests and whole programs, in any order of arrival."""
    times = draw(st.lists(st.floats(0.0, 1_000.0), min_size=2, max_size=12))
    entries: list[Entry] = []
    for index, at in enumerate(times):
        agent = draw(st.sampled_from([None, *AGENTS.values()]))
        name = f"unit-{index}"
        entries += agent(name, at, random.Random(index)) if agent else [single(name, at)]
    return entries


timed = workloads().filter(
    lambda entries: max(units(entries).values()) > 1 + min(units(entries).values())
)


def contents(entries: list[Entry]) -> list[Entry]:
    return [replace(entry, arrival=0.0) for entry in entries]


def test_a_small_trace_at_twice_its_pace() -> None:
    """Three units in 8 s are 1/4 per second; calls of a program keep their distance to it."""
    arrived = [entry.arrival for entry in rescaled(SMALL, 0.5)]
    assert arrived == [0.5, 1.5, 2.0, 1.5, 4.5]


def test_a_small_trace_without_times() -> None:
    """Units take the drawn times in the order of entries."""
    drawn = Process().times(2.0, random.Random(5))
    a, p, b = (next(drawn) for _ in range(3))
    given_times = rescaled(SMALL, 2.0, rng=random.Random(5), is_timed=False)
    assert [entry.arrival for entry in given_times] == [a, p, p + 0.5, p, b]


@given(timed, st.floats(0.01, 50.0))
def test_a_timed_trace_keeps_its_shape(entries: list[Entry], rate: float) -> None:
    """The mean gap is 1 / rate, and all gaps are multiplied by one number."""
    before, after = units(entries), units(rescaled(entries, rate))
    first, last = min(after.values()), max(after.values())
    assert (len(after) - 1) / (last - first) == pytest.approx(rate)
    factor = (last - first) / (max(before.values()) - min(before.values()))
    for (_, a), (_, b) in zip(pairwise(before.values()), pairwise(after.values()), strict=True):
        assert b == pytest.approx(a * factor)
    # Rounding may make one instant of two that were next to each other; it swaps none.
    in_order = [after[unit] for unit in sorted(before, key=before.__getitem__)]
    assert in_order == sorted(in_order)


@given(timed, st.floats(0.01, 50.0), st.booleans())
def test_only_times_change(entries: list[Entry], rate: float, is_timed: bool) -> None:
    """Entries, their order and contents stay, and a program's calls arrive together."""
    result = rescaled(entries, rate, rng=random.Random(0), is_timed=is_timed)
    assert contents(result) == contents(entries)
    assert all(
        entry.arrival == pytest.approx(units(result)[entry.step.program])
        for entry in result
        if entry.step
    )


@given(workloads(), st.sampled_from(["poisson", "mmpp", "diurnal"]), st.integers())
def test_untimed_units_arrive_in_order(entries: list[Entry], name: str, seed: int) -> None:
    """Whatever the process; equal seeds give equal times."""
    first, second = (
        rescaled(entries, 3.0, rng=random.Random(seed), is_timed=False, process=Process(name))
        for _ in range(2)
    )
    assert first == second
    times = list(units(first).values())
    assert times == sorted(times)


def test_untimed_units_have_the_rate() -> None:
    """As many per second as asked for."""
    entries = [single(str(i), 0.0) for i in range(4_000)]
    result = rescaled(entries, 8.0, rng=random.Random(0), is_timed=False)
    assert 4_000 / result[-1].arrival == pytest.approx(8.0, rel=0.05)


def test_an_infinite_rate_is_all_at_once() -> None:
    """Timed or not, every unit arrives at 0."""
    for is_timed in (True, False):
        result = rescaled(SMALL, math.inf, rng=random.Random(0), is_timed=is_timed)
        assert set(units(result).values()) == {0.0}


@pytest.mark.parametrize("rate", [0.0, -2.0, math.nan])
def test_senseless_rates_are_refused(rate: float) -> None:
    """A rate is above 0."""
    with pytest.raises(ConfigError, match="must be above 0 per second"):
        rescaled(SMALL, rate)


@pytest.mark.parametrize("entries", [[], SMALL[:1], [single("a", 2.0), single("b", 2.0)]])
def test_no_pace_no_rescaling(entries: list[Entry]) -> None:
    """Arrivals at one instant have no shape to keep; drawing needs a generator."""
    with pytest.raises(ConfigError, match="at one instant"):
        rescaled(entries, 1.0)
    with pytest.raises(ValueError, match="needs rng"):
        rescaled(entries, 1.0, is_timed=False)


@pytest.mark.parametrize(
    ("duration", "count", "ids"),
    [
        (None, None, ["a", "p-left", "p-right", "p-join", "b"]),
        (3.0, None, ["a", "p-left", "p-right", "p-join"]),
        (2.9, None, ["a"]),
        (None, 2, ["a", "p-left", "p-right", "p-join"]),
        (9.0, 1, ["a"]),
        (0.5, 5, []),
        (None, 0, []),
    ],
)
def test_heads_of_a_small_trace(duration: float | None, count: int | None, ids: list[str]) -> None:
    """A program is one arrival and stays whole, though a root of it comes after the end."""
    assert [entry.id for entry in taken(SMALL, duration=duration, count=count)] == ids


def test_the_first_are_the_earliest() -> None:
    """In a file that is not sorted, arrival counts and not the line."""
    entries = [single("late", 5.0), single("early", 1.0), single("tie", 1.0)]
    assert [entry.id for entry in taken(entries, count=1)] == ["early"]
    assert [entry.id for entry in taken(entries, count=2)] == ["early", "tie"]


@given(workloads(), st.floats(0.0, 1_000.0), st.integers(0, 12))
def test_programs_stay_whole(entries: list[Entry], duration: float, count: int) -> None:
    """Each unit is kept with all of its entries in their order, or not at all."""
    kept = taken(entries, duration=duration, count=count)
    names = set(units(kept))
    assert kept == [e for e in entries if (e.step.program if e.step else e.id) in names]
    within = [at for at in units(entries).values() if at <= duration]
    assert sorted(units(kept).values()) == sorted(within)[:count]


def test_a_list_without_times_can_be_repeated() -> None:
    """Laps have ids and programs of their own, and stop within a lap; programs stay whole."""
    two = [
        Entry("a", 0.0, prompt_tokens=4),
        Entry("b", 0.0, prompt_tokens=4, step=Step("p", "x")),
        Entry("c", 0.0, prompt_tokens=4, step=Step("p", "y", parents=("x",))),
    ]
    assert [e.id for e in repeated(two, 5)] == ["a", "b", "c", "a~2", "b~2", "c~2", "a~3"]
    assert [e.id for e in repeated(two, 1)] == ["a"]
    assert repeated(two, 4)[5].step == Step("p~2", "y", parents=("x",))
    assert repeated(two, 2) == two
