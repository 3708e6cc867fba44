"""Records into what a plot needs and a mean hides: quantile functions, and the course of a run.

Both are plain lists, small enough for every run of a result file, whatever its length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from giusto.core.slo import is_attained
from giusto.metrics.records import Record

#: A quantile function has this many steps, hence one point more.
STEPS = 100

#: Spans of equal length in a timeline.
SPANS = 120

#: The quantile functions of a class.
QUANTILES = ("ttft_ms", "tpot_ms", "e2el_ms")

#: What a timeline tells of each span.
COURSES = ("arrivals", "attained", "finished", "output_tokens", "running", "waiting")

#: Times looked at together; bounds the memory of a long run.
CHUNK = 1 << 20

Floats = npt.NDArray[np.float64]
Timeline = dict[str, Any]


def distributions(records: Iterable[Record]) -> dict[str, dict[str, Any]]:
    """Per class, and for `all`: requests offered, and quantiles 0 to 100 of TTFT, TPOT and E2E.

    Milliseconds, nearest rank, over offered requests: what was refused or not answered counts as
    infinite, given as None. An answer of fewer than two tokens has no TPOT and is not among those
    of `tpot_ms`. Lists are empty where nothing is left.
    """
    offered = [record for record in records if not record.is_cancelled]
    classes: dict[str, list[Record]] = {}
    for record in offered:
        classes.setdefault(record.service_class, []).append(record)
    return {name: _quantiles(rows) for name, rows in [*sorted(classes.items()), ("all", offered)]}


def timeline(records: Sequence[Record]) -> Timeline:
    """The course of a run in `SPANS` spans of `span_s` seconds from the first arrival on.

    `arrivals` are the requests offered, by arrival, and `attained` those of them that were in time
    in the end (a program's call against the program's deadline); `finished` and `output_tokens`
    go by their own time. `running` and `waiting` are means over the span. A request waits until it
    is admitted; a client, which cannot see that, takes the first token for it.
    """
    if not records:
        return {"span_s": 0.0} | {name: [] for name in COURSES}
    arrived = _array(r.arrival for r in records)
    closed = _array(math.inf if r.closed is None else r.closed for r in records)
    start = float(arrived.min())
    end = max(float(arrived.max()), max((_last(r) for r in records), default=start))
    span = (end - start) / SPANS or 1.0
    edges: Floats = start + span * np.arange(SPANS + 1.0)
    closed = np.minimum(closed, edges[-1])
    began = np.minimum(_array(_began(r) for r in records), closed)

    def count(times: Iterable[float]) -> list[int]:
        return _histogram(times, start, span)

    offered = [r for r in records if not r.is_cancelled]
    return {
        "span_s": span,
        "arrivals": count(r.arrival for r in offered),
        "attained": count(r.arrival for r in offered if is_attained(r.slo, r.delivery, r.origin)),
        "finished": count(r.arrival + r.delivery.e2e for r in records if r.is_answered),
        "output_tokens": count(chain.from_iterable(r.token_times for r in records)),
        "running": _mean_under_way(began, closed, edges),
        "waiting": _mean_under_way(arrived, began, edges),
    }


def _quantiles(records: Sequence[Record]) -> dict[str, Any]:
    measures: tuple[Callable[[Record], float | None], ...] = (
        lambda record: record.delivery.ttft,
        _tpot,
        lambda record: record.delivery.e2e,
    )
    quantiles: dict[str, Any] = {"requests": len(records)}
    for name, measure in zip(QUANTILES, measures, strict=True):
        ordered = sorted(value for r in records if (value := measure(r)) is not None)
        ranks = [max(0, math.ceil(len(ordered) * k / STEPS) - 1) for k in range(STEPS + 1)]
        quantiles[name] = [_ms(ordered[rank]) for rank in ranks] if ordered else []
    return quantiles


def _tpot(record: Record) -> float | None:
    if not record.is_answered:
        return math.inf
    return record.delivery.tpot if len(record.token_times) > 1 else None


def _ms(seconds: float) -> float | None:
    """To the microsecond: more digits are noise, and most of the file."""
    return None if math.isinf(seconds) else round(seconds * 1000, 3)


def _began(record: Record) -> float:
    """When it stopped waiting; inf when it only ever waited."""
    if record.admitted is not None:
        return record.admitted
    return record.token_times[0] if record.token_times else math.inf


def _last(record: Record) -> float:
    last = record.token_times[-1] if record.token_times else record.arrival
    return last if record.closed is None else max(last, record.closed)


def _histogram(times: Iterable[float], start: float, span: float) -> list[int]:
    counts = np.zeros(SPANS, dtype=np.int64)
    for chunk in _chunks(times):
        spans = ((chunk - start) / span).astype(np.int64)
        counts += np.bincount(np.clip(spans, 0, SPANS - 1), minlength=SPANS)
    return [int(count) for count in counts]


def _chunks(times: Iterable[float]) -> Iterator[Floats]:
    rest = iter(times)
    while (chunk := _array(islice(rest, CHUNK))).size:
        yield chunk


def _mean_under_way(since: Floats, until: Floats, edges: Floats) -> list[float]:
    """Mean number of intervals open in each span: the growth of their summed lengths."""
    grown = np.diff(_elapsed(since, edges) - _elapsed(until, edges))
    return [round(float(mean), 2) + 0.0 for mean in grown / np.diff(edges)]


def _elapsed(times: Floats, edges: Floats) -> Floats:
    """For each edge the sum of its distances from all earlier `times`."""
    ordered = np.sort(times) - edges[0]
    count = np.searchsorted(ordered, edges - edges[0], side="right")
    sums: Floats = np.concatenate(([0.0], np.cumsum(ordered)))
    elapsed: Floats = count * (edges - edges[0]) - sums[count]
    return elapsed


def _array(values: Iterable[float]) -> Floats:
    return np.fromiter(values, dtype=np.float64)
