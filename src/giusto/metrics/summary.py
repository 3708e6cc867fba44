"""Records into one flat dictionary of figures, ready for strict JSON.

Keys that vLLM's `bench serve` has keep its names and meaning: they are over requests that ended
normally, with 0 where there is none. Figures over *offered* requests count one that never answered
as infinite, written as `None` (JSON null). Attainment counts units: a request with its samples, or
a program with its calls, is one. Rates are per second from first arrival to last answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from giusto.core.slo import SOFT, Program, Value
from giusto.metrics.records import Record
from giusto.metrics.verdict import LengthOf, Verdict, verdicts

Summary = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Goodput:
    """Bounds of `--goodput`, in seconds; vLLM's definition: a request meets every one given."""

    ttft: float | None = None
    tpot: float | None = None
    e2el: float | None = None

    def is_met(self, record: Record) -> bool:
        """Whether a request ended normally within all bounds; one token has a TPOT of 0."""
        delivery = record.delivery
        return record.is_answered and all(
            bound is None or value <= bound
            for bound, value in (
                (self.ttft, delivery.ttft),
                (self.tpot, delivery.tpot),
                (self.e2el, delivery.e2e),
            )
        )


def length_of(records: Iterable[Record], recorded: Mapping[str, int] | None = None) -> LengthOf:
    """Output lengths of unfinished requests: recorded by id, else the median of the class.

    Without a finished request in the class the median of all stands in, then the request's cap.
    """
    finished: dict[str, list[int]] = {}
    for record in records:
        if record.is_answered:
            finished.setdefault(record.service_class, []).append(len(record.token_times))
    medians = {name: float(median(lengths)) for name, lengths in finished.items()}
    pooled = [length for lengths in finished.values() for length in lengths]
    overall = float(median(pooled)) if pooled else None
    known = recorded or {}

    def length(record: Record) -> tuple[float, bool]:
        if record.id in known:
            return float(known[record.id]), False
        expected = medians.get(record.service_class, overall)
        return float(record.cap) if expected is None else expected, True

    return length


def summarize(
    records: Sequence[Record],
    *,
    value: Value = SOFT,
    goodput: Goodput | None = None,
    recorded: Mapping[str, int] | None = None,
) -> Summary:
    """Summarize a run; `recorded` has the true output lengths of a replay or simulation, by id.

    `by_class` holds the same keys for each class and for `all`, with rates over the whole run.
    """
    judged = verdicts(records, length_of(records, recorded), value)
    duration = run_time(records)
    total = _figures(records, judged, duration, goodput)
    by_class = {
        name: _figures(
            [r for r in records if r.service_class == name],
            [v for v in judged if v.service_class == name],
            duration,
            goodput,
        )
        for name in sorted({r.service_class for r in records})
    }
    return {**total, "by_class": {**by_class, "all": total}}


def run_time(records: Iterable[Record]) -> float:
    """Seconds from the first arrival to the last answer, or the last end where none answered."""
    rows = list(records)
    ends = [r.arrival + r.delivery.e2e for r in rows if r.is_answered]
    ends = ends or [r.closed for r in rows if r.closed is not None]
    return max(0.0, max(ends) - min(r.arrival for r in rows)) if ends else 0.0


def _figures(
    records: Sequence[Record], judged: Sequence[Verdict], duration: float, goodput: Goodput | None
) -> Summary:
    figures = {"duration": duration} | _throughput(records, duration)
    if goodput is not None:
        good = sum(goodput.is_met(record) for record in records)
        figures["request_goodput"] = _ratio(good, duration) or 0.0
    counted = [v for v in judged if not v.is_cancelled]
    figures |= _attainment(counted, duration)
    figures["cancelled"] = len(judged) - len(counted)
    figures |= _gain(counted)
    figures |= _latencies(records)
    figures |= _offered(records, counted)
    return figures


def _throughput(records: Sequence[Record], duration: float) -> Summary:
    """vLLM's counts; tokens are those of requests that ended normally, as there."""
    done = [r for r in records if r.is_answered]
    prompts = sum({r.group: r.prompt_tokens for r in done}.values())
    outputs = sum(len(r.token_times) for r in done)
    cancelled = sum(r.is_cancelled for r in records)
    return {
        "completed": len(done),
        "failed": len(records) - len(done) - cancelled,
        "total_input_tokens": prompts,
        "total_output_tokens": outputs,
        "request_throughput": _ratio(len(done), duration) or 0.0,
        "output_throughput": _ratio(outputs, duration) or 0.0,
        "total_token_throughput": _ratio(prompts + outputs, duration) or 0.0,
    }


def _attainment(counted: Sequence[Verdict], duration: float) -> Summary:
    promised = [v for v in counted if not v.is_best_effort]
    attained = [v for v in counted if v.is_attained]
    tokens = sum(v.output_tokens for v in attained)
    return {
        "offered": len(counted),
        "attained": len(attained),
        "attainment": _ratio(len(attained), len(counted)),
        "attainment_without_best_effort": _ratio(
            sum(v.is_attained for v in promised), len(promised)
        ),
        "strict_attainment": _ratio(sum(v.is_strict for v in counted), len(counted)),
        "adaserve_attainment": _ratio(sum(v.is_adaserve for v in counted), len(counted)),
        "slo_request_goodput": _ratio(len(attained), duration) or 0.0,
        "slo_token_goodput": _ratio(tokens, duration) or 0.0,
    }


def _gain(counted: Sequence[Verdict]) -> Summary:
    gain = sum(v.gain for v in counted)
    possible = sum(v.possible for v in counted)
    shares = [v.gain / v.possible for v in counted if v.possible > 0]
    return {
        "service_gain": gain,
        "service_gain_possible": possible,
        "service_gain_ratio": _ratio(gain, possible),
        "service_gain_cutoff": sum(v.cutoff for v in counted),
        "service_gain_mean_normalised": _ratio(sum(shares), len(shares)),
        "service_gain_estimated_share": _ratio(sum(v.estimated for v in counted), possible),
    }


def _latencies(records: Sequence[Record]) -> Summary:
    """vLLM's statistics: TPOT of answers of two tokens and more, ITL over all gaps."""
    done = [r for r in records if r.is_answered]
    samples = {
        "ttft": [r.delivery.ttft for r in done],
        "tpot": [r.delivery.tpot for r in done if len(r.token_times) > 1],
        "itl": [gap for r in done for gap in r.gaps],
        "e2el": [r.delivery.e2e for r in done],
    }
    figures: Summary = {}
    for name, seconds in samples.items():
        ms = np.asarray(seconds or [0.0]) * 1000
        figures |= {
            f"mean_{name}_ms": float(ms.mean()),
            f"median_{name}_ms": float(np.median(ms)),
            f"std_{name}_ms": float(ms.std()),
            f"p99_{name}_ms": float(np.percentile(ms, 99)),
        }
    return figures


def _offered(records: Sequence[Record], counted: Sequence[Verdict]) -> Summary:
    """Figures that cannot hide a queue, and what stands beside the gain."""
    offered = [r for r in records if not r.is_cancelled]
    programs = [v.took for v in counted if isinstance(v.slo, Program)]
    idle = [v for v in counted if v.is_best_effort]
    until = max((r.closed or r.arrival for r in records), default=0.0)
    waits = [r.wait(until) for v in idle for r in v.records]
    queued = [q for r in offered if (q := r.queue_time) is not None]
    return {
        "p95_ttft_offered_ms": _ms(percentile([r.delivery.ttft for r in offered], 95)),
        "p95_e2el_offered_ms": _ms(percentile([r.delivery.e2e for r in offered], 95)),
        "median_program_ms": _ms(percentile(programs, 50)),
        "p95_program_ms": _ms(percentile(programs, 95)),
        "best_effort_output_tokens": sum(v.output_tokens for v in idle),
        "best_effort_longest_wait_s": max(waits, default=None),
        "median_queue_time_ms": _ms(percentile(queued, 50)),
        "demoted": sum(r.demoted is not None for r in offered),
        "refused": sum(r.refused is not None for r in offered),
        "preemptions": sum(r.preemptions for r in offered),
        "cached_tokens": sum(r.cached_tokens for r in offered),
    }


def percentile(values: Sequence[float], q: float) -> float | None:
    """Nearest-rank percentile, which stands infinities; None of nothing."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(len(values) * q / 100) - 1)]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None or math.isinf(seconds) else seconds * 1000


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
