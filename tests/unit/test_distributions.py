"""Quantiles and courses by hand, and against a slow count."""

from __future__ import annotations

import json
import math
import random

import pytest

from giusto.core.request import FinishReason
from giusto.core.slo import SLO, BestEffort, Deadline, Streaming
from giusto.metrics.distributions import (
    COURSES,
    QUANTILES,
    SPANS,
    STEPS,
    distributions,
    timeline,
)
from giusto.metrics.records import Record

CHAT = Streaming(ttft=1.0, tpot=1.0)


def record(
    name: str,
    arrival: float,
    *times: float,
    slo: SLO = CHAT,
    admitted: float | None = None,
    closed: float | None = None,
    finish: FinishReason | None = FinishReason.STOP,
    service_class: str = "chat",
) -> Record:
    end = closed if closed is not None or not times else times[-1]
    return Record(
        name,
        name,
        service_class,
        slo,
        arrival,
        arrival,
        10,
        times,
        end,
        finish,
        admitted=admitted,
    )


def refused(name: str, arrival: float) -> Record:
    return record(name, arrival, closed=arrival, finish=None)


def random_records(seed: int, count: int = 60) -> list[Record]:
    """Answered, refused and running requests, some with and some without an admission."""
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        arrival = rng.uniform(0, 50)
        if rng.random() < 0.1:
            rows.append(refused(str(index), arrival))
            continue
        start = arrival + rng.expovariate(0.5)
        times = [start + 0.1 * k for k in range(1, rng.randint(2, 30))]
        is_open = rng.random() < 0.1
        rows.append(
            Record(
                str(index),
                str(index),
                rng.choice(["chat", "tool"]),
                CHAT if rng.random() < 0.5 else Deadline(3.0),
                arrival,
                arrival,
                10,
                tuple(times),
                None if is_open else times[-1],
                None if is_open else FinishReason.STOP,
                admitted=start if rng.random() < 0.5 else None,
            )
        )
    return rows


def test_quantiles_by_hand() -> None:
    """Nearest rank in milliseconds: the median of two is the lower, 100 the highest."""
    kinds = distributions([record("a", 0.0, 0.5, 1.5), record("b", 1.0, 2.0, 4.0, 6.0)])
    chat = kinds["chat"]
    assert chat == kinds["all"]
    assert chat["requests"] == 2
    assert [chat["ttft_ms"][k] for k in (0, 50, 51, 100)] == [500.0, 500.0, 1000.0, 1000.0]
    assert [chat["tpot_ms"][k] for k in (0, 100)] == [1000.0, 2000.0]
    assert [chat["e2el_ms"][k] for k in (0, 100)] == [1500.0, 5000.0]
    assert all(len(chat[name]) == STEPS + 1 for name in QUANTILES)


def test_refused_requests_are_infinite() -> None:
    """One answer of two: the upper half of every function is None."""
    kinds = distributions([record("a", 0.0, 0.5, 1.5), refused("b", 1.0)])
    for name in QUANTILES:
        curve = kinds["chat"][name]
        assert None not in curve[:51]
        assert set(curve[51:]) == {None}


def test_an_answer_of_one_token_has_no_tpot() -> None:
    """It stands in TTFT and E2E and leaves TPOT; a refused one stays there."""
    kinds = distributions([record("a", 0.0, 0.5)])
    assert kinds["chat"]["tpot_ms"] == []
    assert kinds["chat"]["ttft_ms"][0] == 500.0
    kinds = distributions([record("a", 0.0, 0.5), refused("b", 0.0)])
    assert set(kinds["chat"]["tpot_ms"]) == {None}


def test_cancelled_requests_leave() -> None:
    """What a client gave up in time is not offered; classes come by name, `all` last."""
    cancelled = record("c", 0.0, closed=0.5, finish=FinishReason.ABORT)
    kinds = distributions([cancelled, record("a", 0.0, 0.5, service_class="zeta")])
    assert list(kinds) == ["zeta", "all"]
    assert kinds["all"]["requests"] == 1
    assert timeline([cancelled, record("a", 0.0, 0.5)])["arrivals"][0] == 1


def test_nothing_has_empty_lists() -> None:
    """No records: both are there, and empty."""
    empty = {"requests": 0} | {name: [] for name in QUANTILES}
    assert distributions([]) == {"all": empty}
    assert timeline([]) == {"span_s": 0.0} | {name: [] for name in COURSES}


def test_timeline_by_hand() -> None:
    """Two requests over 120 seconds, spans of one second."""
    course = timeline(
        [
            record("a", 0.0, 2.5, 10.5, slo=Deadline(20.0), admitted=1.5),
            record("b", 100.0, 119.0, 120.0, slo=Deadline(5.0)),
        ]
    )
    assert course["span_s"] == 1.0
    assert [k for k in range(SPANS) if course["arrivals"][k]] == [0, 100]
    assert [k for k in range(SPANS) if course["attained"][k]] == [0]
    assert [k for k in range(SPANS) if course["finished"][k]] == [10, 119]
    assert [k for k in range(SPANS) if course["output_tokens"][k]] == [2, 10, 119]
    assert course["output_tokens"][119] == 2
    assert course["waiting"][:3] == [1.0, 0.5, 0.0]
    assert course["running"][:3] == [0.0, 0.5, 1.0]
    assert course["running"][9:12] == [1.0, 0.5, 0.0]
    assert course["waiting"][100:] == [1.0] * 19 + [0.0]


@pytest.mark.parametrize("seed", range(5))
def test_timeline_agrees_with_a_slow_count(seed: int) -> None:
    """Counts per span add up, and means under way are those of a fine sampling."""
    rows = random_records(seed)
    course = timeline(rows)
    span = course["span_s"]
    start = min(row.arrival for row in rows)
    assert all(len(course[name]) == SPANS for name in COURSES)
    assert sum(course["arrivals"]) == len(rows)
    assert sum(course["finished"]) == sum(row.is_answered for row in rows)
    assert sum(course["output_tokens"]) == sum(len(row.token_times) for row in rows)
    assert all(a <= b for a, b in zip(course["attained"], course["arrivals"], strict=True))
    samples = 200
    for k in range(0, SPANS, 7):
        instants = [start + span * (k + (i + 0.5) / samples) for i in range(samples)]
        waiting = running = 0
        for row in rows:
            end = math.inf if row.closed is None else row.closed
            began = row.admitted or (row.token_times[0] if row.token_times else end)
            waiting += sum(row.arrival <= now < began for now in instants)
            running += sum(began <= now < end for now in instants)
        assert course["waiting"][k] == pytest.approx(waiting / samples, abs=0.2)
        assert course["running"][k] == pytest.approx(running / samples, abs=0.2)


def test_one_instant_is_a_course_too() -> None:
    """A run without duration has spans of a second."""
    course = timeline([refused("a", 3.0), refused("b", 3.0)])
    assert course["span_s"] == 1.0
    assert course["arrivals"] == [2] + [0] * (SPANS - 1)
    assert set(course["running"]) == {0.0}


def test_both_are_small_strict_json() -> None:
    """A long run takes no more of a file than a short one."""
    rows = random_records(1, 2000)
    kinds = json.dumps(distributions(rows), allow_nan=False)
    course = json.dumps(timeline([*rows, record("x", 1.0, slo=BestEffort(), finish=None)]))
    assert len(kinds) < 15_000
    assert len(course) < 6_000
