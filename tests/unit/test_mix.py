"""Class mixes and the built-in workloads."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from giusto.core.errors import ConfigError
from giusto.core.slo import BestEffort, Deadline, Program, Streaming, kind
from giusto.workload.agents import chain, critical_path, reflection
from giusto.workload.arrivals import Process
from giusto.workload.lengths import Fixed, LogNormal
from giusto.workload.mix import (
    MIXES,
    UNIT,
    Mix,
    ProgramClass,
    ServiceClass,
    Unit,
    build,
    generate,
)
from giusto.workload.records import Entry, read, write

SMALL = ServiceClass("small", 1, Fixed(10), LogNormal(20, 60), 32, Deadline(2.0), 3.0, "t")


def roots(entries: list[Entry]) -> list[Entry]:
    return [entry for entry in entries if not entry.waits_for]


def test_a_class_gives_its_entries_all_it_says() -> None:
    """Lengths, cap, promise, weight and tenant; the answer is cut at the cap."""
    entries = generate(Mix((SMALL,)), [0.5, 1.0], random.Random(0))
    for index, entry in enumerate(entries):
        length = entry.output_tokens
        assert entry == Entry(
            id=f"small-{index}",
            arrival=[0.5, 1.0][index],
            service_class="small",
            prompt_tokens=10,
            max_tokens=32,
            output_tokens=length,
            slo=Deadline(2.0),
            weight=3.0,
            tenant="t",
        )
    sample = generate(Mix((SMALL,)), [0.0] * 400, random.Random(0))
    lengths = {entry.output_tokens or 0 for entry in sample}
    assert (min(lengths) >= 1, max(lengths)) == (True, 32)


def test_shares_are_relative() -> None:
    """Three to one, whatever the shares add up to."""
    mix = Mix((replace(SMALL, share=6), replace(SMALL, name="rare", share=2)))
    seen = Counter(e.service_class for e in generate(mix, [0.0] * 4_000, random.Random(1)))
    assert seen["small"] / seen["rare"] == pytest.approx(3.0, rel=0.1)


def test_contents_do_not_depend_on_times() -> None:
    """The k-th arrival asks the same at any rate."""

    def contents(rate: float) -> list[Entry]:
        return [replace(e, arrival=0.0) for e in build("agents", rate, 3, 100 / rate)]

    fast, slow = contents(10.0), contents(1.0)
    assert fast == slow


def test_a_program_class_promises_by_caps_and_tools() -> None:
    """The deadline is factor times the longest path with each answer at its cap."""
    unit = Unit(0.5, 0.1)
    promised = ProgramClass("agent", 1, chain, 2.0, unit, 4.0, "t")
    calls = generate(Mix((promised,)), [7.0], random.Random(0))
    path = critical_path(calls, lambda call: 0.5 + (call.max_tokens - 1) * 0.1)
    assert {call.promise for call in calls} == {Program(2.0 * path)}
    assert {(call.service_class, call.weight, call.tenant) for call in calls} == {
        ("agent", 4.0, "t")
    }
    assert {call.arrival for call in calls} == {7.0}


def test_promises_tell_nothing_of_drawn_lengths() -> None:
    """Programs of one shape without tools have one deadline, though their answers differ."""

    def one_round(name: str, now: float, rng: random.Random) -> list[Entry]:
        return reflection(name, now, rng, rounds=1)

    calls = generate(Mix((ProgramClass("p", 1, one_round),)), [0.0] * 20, random.Random(0))
    assert len({call.promise for call in calls}) == 1
    assert len({call.output_tokens for call in calls}) > 10


@pytest.mark.parametrize("classes", [(), (replace(SMALL, share=0),), (replace(SMALL, share=-1),)])
def test_a_mix_needs_classes_with_shares(classes: tuple[ServiceClass, ...]) -> None:
    """Nothing can be drawn from nothing."""
    with pytest.raises(ValueError, match="needs classes"):
        Mix(classes)


# Built-in mixes


@pytest.mark.parametrize("name", MIXES)
def test_a_built_in_mix_is_fixed_by_its_seed(name: str) -> None:
    """Equal seeds give equal workloads, others do not; arrivals are in order, ids unique."""
    first, same, other = (build(name, 4.0, seed, 60.0) for seed in (0, 0, 1))
    assert first == same
    assert first != other
    assert len({entry.id for entry in first}) == len(first)
    times = [entry.arrival for entry in roots(first)]
    assert all(a <= b for a, b in pairwise(times))
    assert times[-1] <= 60.0


@pytest.mark.parametrize("name", MIXES)
def test_a_built_in_mix_has_its_rate(name: str) -> None:
    """A program counts as one arrival."""
    arrived = {e.step.program if e.step else e.id for e in build(name, 5.0, 2, 400.0)}
    assert len(arrived) == pytest.approx(2_000, rel=0.06)


@pytest.mark.parametrize("name", MIXES)
def test_a_built_in_mix_survives_its_file(name: str, tmp_path: Path) -> None:
    """Written and read back it is equal, to the rounding of milliseconds."""

    def rounded(entry: Entry) -> Entry:
        slo, step = entry.slo, entry.step
        if isinstance(slo, Streaming):
            assert slo.ttft is not None
            assert slo.tpot is not None
            slo = Streaming(round(slo.ttft, 9), round(slo.tpot, 9))
        elif isinstance(slo, Deadline):
            slo = Deadline(round(slo.deadline, 9))
        if step is not None and step.deadline is not None:
            step = replace(step, deadline=round(step.deadline, 9))
        return replace(entry, slo=slo, step=step)

    path = tmp_path / "load.jsonl"
    entries = build(name, 4.0, 0, 30.0)
    write(path, entries)
    assert [rounded(e) for e in read(path)] == [rounded(e) for e in entries]


@pytest.mark.parametrize("name", MIXES)
def test_answers_of_a_built_in_mix_are_under_their_cap(name: str) -> None:
    """Every entry has a recorded length for executors and a cap for policies."""
    entries = build(name, 4.0, 0, 60.0)
    assert all(1 <= (entry.output_tokens or 0) <= entry.max_tokens for entry in entries)
    assert all((entry.prompt_tokens or 0) >= 1 for entry in entries)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("chat", {"streaming"}),
        ("interactive-batch", {"streaming", "best_effort"}),
        ("tenants", {"streaming"}),
        ("slo-mix", {"streaming", "deadline", "best_effort"}),
        ("agents", {"streaming", "program"}),
    ],
)
def test_a_built_in_mix_has_the_kinds_it_names(name: str, kinds: set[str]) -> None:
    """All the kinds of promises that it is made of, and no other."""
    assert {kind(entry.promise) for entry in build(name, 4.0, 0, 120.0)} == kinds


def test_one_tenant_floods() -> None:
    """The last sends five times as much as each of the three others."""
    seen = Counter(entry.tenant for entry in build("tenants", 20.0, 0, 300.0))
    assert seen.keys() == {"ada", "bela", "carl", "flood"}
    for tenant in ("ada", "bela", "carl"):
        assert seen["flood"] / seen[tenant] == pytest.approx(5.0, rel=0.2)


def test_promises_scale_with_the_unit() -> None:
    """On a machine twice as slow every promise is twice as long, tools aside."""
    slow = Unit(2 * UNIT.ttft, 2 * UNIT.tpot)
    for fast, late in zip(
        build("slo-mix", 4.0, 0, 60.0), build("slo-mix", 4.0, 0, 60.0, unit=slow), strict=True
    ):
        match fast.promise, late.promise:
            case Streaming(a, b), Streaming(c, d):
                assert (c, d) == pytest.approx((2 * (a or 0), 2 * (b or 0)))
            case Deadline(a), Deadline(b):
                assert b == pytest.approx(2 * a)
            case one, other:
                assert one == other == BestEffort()


def test_any_process_may_drive_a_mix() -> None:
    """Other times, same contents."""
    plain = build("chat", 4.0, 0, 100.0)
    waves = build("chat", 4.0, 0, 100.0, process=Process("mmpp"))
    assert [e.arrival for e in plain[:50]] != [e.arrival for e in waves[:50]]
    assert [e.prompt_tokens for e in plain[:50]] == [e.prompt_tokens for e in waves[:50]]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: build("chats", 1.0), "no workload 'chats'; there are chat, interactive-batch"),
        (lambda: build("chat", math.inf), "needs a finite rate"),
        (lambda: build("chat", 1.0, 0, math.inf), "needs a finite rate and duration, or a count"),
        (lambda: build("chat", 0.0), "must be above 0 per second"),
    ],
)
def test_senseless_loads_are_refused(ask: Callable[[], object], message: str) -> None:
    """An unknown name lists what exists; a load without end says so."""
    with pytest.raises(ConfigError, match=message):
        ask()
