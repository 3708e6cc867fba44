"""The figures that a report shows: their keys in a result, their names, and their units."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure. Shares are shown in percent; `digits` are those after the point."""

    key: str
    label: str
    unit: str
    is_share: bool = False
    is_less_better: bool = False
    digits: int = 1

    @property
    def scale(self) -> float:
        return 100.0 if self.is_share else 1.0

    @property
    def title(self) -> str:
        """Name with unit, as axes and columns have it."""
        return f"{self.label}, {self.unit}"

    def show(self, value: float) -> str:
        """A value without its unit."""
        return "∞" if math.isinf(value) else f"{value * self.scale:,.{self.digits}f}"


def _share(key: str, label: str, unit: str = "%") -> Measure:
    return Measure(key, label, unit, is_share=True)


def _latency(key: str, label: str, digits: int = 0) -> Measure:
    return Measure(key, label, "ms", is_less_better=True, digits=digits)


ATTAINMENT = _share("attainment", "Attainment")
GAIN = _share("service_gain_ratio", "Service gain", "% of possible")
REQUEST_GOODPUT = Measure("slo_request_goodput", "Goodput", "requests/s", digits=2)
TOKEN_GOODPUT = Measure("slo_token_goodput", "Token goodput", "tokens/s")

#: Drawn over the request rate.
BY_RATE = (ATTAINMENT, GAIN, REQUEST_GOODPUT, TOKEN_GOODPUT)

#: Drawn by service class.
BY_CLASS = (ATTAINMENT, GAIN)

#: Differences between lines are shown for these.
COMPARED = (ATTAINMENT, GAIN)

#: Columns of the two summary tables: over what was offered, and over what was answered.
OFFERED = (
    ATTAINMENT,
    _share("attainment_without_best_effort", "Attainment without best effort"),
    _share("strict_attainment", "Strict attainment"),
    _share("adaserve_attainment", "Attainment as AdaServe counts"),
    REQUEST_GOODPUT,
    TOKEN_GOODPUT,
    GAIN,
    _share("service_gain_mean_normalised", "Service gain, mean of requests"),
    _latency("p95_ttft_offered_ms", "TTFT p95"),
    _latency("p95_e2el_offered_ms", "E2E p95"),
)
ANSWERED = (
    Measure("request_throughput", "Throughput", "requests/s", digits=2),
    Measure("output_throughput", "Output", "tokens/s"),
    Measure("request_goodput", "Goodput by --goodput", "requests/s", digits=2),
    _latency("median_ttft_ms", "TTFT median"),
    _latency("p99_ttft_ms", "TTFT p99"),
    _latency("median_tpot_ms", "TPOT median", digits=1),
    _latency("p99_tpot_ms", "TPOT p99", digits=1),
    _latency("p99_itl_ms", "ITL p99", digits=1),
    _latency("median_e2el_ms", "E2E median"),
    _latency("p99_e2el_ms", "E2E p99"),
)

#: Every key that a report takes for a number.
NUMBERS = (
    *(measure.key for measure in (*OFFERED, *ANSWERED)),
    *("offered", "duration", "client_lag_p99_ms", "service_gain_estimated_share", "num_prompts"),
)
