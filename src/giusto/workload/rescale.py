"""Workloads at another rate, and the head of a workload.

What arrives is counted in units: a request that is in no program, or a whole program, which
arrives when the first of its calls that waits for nobody does. The order of entries never changes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace

from giusto.core.errors import ConfigError
from giusto.workload.arrivals import POISSON, Process
from giusto.workload.records import Entry

#: A unit: the program's id, or the entry's own, and which of the two it is.
_Unit = tuple[bool, str]


def rescaled(
    entries: Sequence[Entry],
    rate: float,
    *,
    rng: random.Random | None = None,
    is_timed: bool = True,
    process: Process = POISSON,
) -> list[Entry]:
    """Let units arrive `rate` times per second on average; at infinity all at once.

    A timed workload keeps its shape: arrivals are multiplied so that the mean gap is 1 / rate. An
    untimed one is given the times of `process`, drawn from `rng`, in the order of its entries.
    Calls of a program that wait for nobody keep their distance to the program's arrival, which
    does not depend on the load. Raises ConfigError when the rate is not above 0, or when a timed
    workload has no two arrivals apart.
    """
    if not rate > 0:
        raise ConfigError(f"the rate of arrivals must be above 0 per second, got {rate}")
    opened = _openings(entries)
    if is_timed:
        factor = _pace(opened) / rate
        return _placed(entries, opened, {unit: at * factor for unit, at in opened.items()})
    if rng is None:
        raise ValueError("a workload without times needs rng to draw them")
    times = process.times(rate, rng)
    return _placed(entries, opened, dict(zip(opened, times, strict=False)))


def taken(
    entries: Sequence[Entry], *, duration: float | None = None, count: int | None = None
) -> list[Entry]:
    """Keep the units that arrive within `duration` seconds, and of those the first `count`.

    Programs stay whole, however long they run.
    """
    until = math.inf if duration is None else duration
    opened = _openings(entries)
    arrived = sorted((unit for unit, at in opened.items() if at <= until), key=opened.__getitem__)
    kept = set(arrived[:count])
    return [entry for entry in entries if _unit(entry) in kept]


def repeated(entries: Sequence[Entry], count: int) -> list[Entry]:
    """Go over a list without times again and again until `count` units are there.

    Repeats are named `ID~2`, `ID~3` and so on, and have programs and answers of their own; other
    texts stay shared.
    """
    result: list[Entry] = []
    units: set[_Unit] = set()
    answers = {entry.id for entry in entries}
    lap = 0
    while len(units) < count:
        lap += 1
        for entry in entries:
            again = entry if lap == 1 else _again(entry, lap, answers)
            if len(units) < count or _unit(again) in units:
                units.add(_unit(again))
                result.append(again)
    return result


def _again(entry: Entry, lap: int, answers: Set[str]) -> Entry:
    """An entry of a later lap; it quotes the answers of its own lap."""
    step = entry.step and replace(entry.step, program=f"{entry.step.program}~{lap}")
    pieces = tuple(
        replace(piece, source=f"{piece.source}~{lap}") if piece.source in answers else piece
        for piece in entry.pieces
    )
    return replace(entry, id=f"{entry.id}~{lap}", step=step, pieces=pieces)


def _unit(entry: Entry) -> _Unit:
    return (False, entry.id) if entry.step is None else (True, entry.step.program)


def _openings(entries: Iterable[Entry]) -> dict[_Unit, float]:
    """When each unit arrives, in the order of entries."""
    opened: dict[_Unit, float] = {}
    for entry in entries:
        if not entry.waits_for:
            unit = _unit(entry)
            opened[unit] = min(entry.arrival, opened.get(unit, math.inf))
    return opened


def _pace(opened: Mapping[_Unit, float]) -> float:
    """Arrivals per second between the first and the last."""
    span = max(opened.values(), default=0.0) - min(opened.values(), default=0.0)
    if not span > 0:
        raise ConfigError(
            "all of this workload arrives at one instant, so there is no pace to change; "
            "read it as untimed to draw arrivals"
        )
    return (len(opened) - 1) / span


def _placed(
    entries: Iterable[Entry], opened: Mapping[_Unit, float], times: Mapping[_Unit, float]
) -> list[Entry]:
    """Move each unit to its time; a call that waits is never dated before its program."""
    result = []
    for entry in entries:
        unit = _unit(entry)
        offset = max(0.0, entry.arrival - opened[unit])
        result.append(replace(entry, arrival=times[unit] + offset))
    return result
