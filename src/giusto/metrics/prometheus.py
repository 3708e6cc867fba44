"""The `/metrics` page: counters and histograms from events.

Fed one `Stepped` per step on the server's event loop, so it adds to plain dictionaries and lists
and turns them into Prometheus families only when scraped. Names follow `giusto_<what>_<unit>`;
with `vllm_aliases` the figures that routers and autoscalers scrape from vLLM appear under its names
too. Memory is bounded: of a request that has ended only sums remain.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from statistics import median
from typing import Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from giusto.core.events import (
    Admitted,
    Demoted,
    Estimated,
    Event,
    Foretold,
    Preempted,
    ProgramClosed,
    Rejected,
    Stepped,
)
from giusto.core.plan import Yield
from giusto.core.request import DEFAULT_CAP
from giusto.core.slo import Program
from giusto.metrics.bounds import Bounds
from giusto.metrics.families import COUNTERS, HISTOGRAMS, Labels
from giusto.metrics.records import Record, Recorder
from giusto.metrics.verdict import Verdict, judge, judge_program

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily

MAX_LABEL_VALUES = 100
OVERFLOW_LABEL = "other"
#: Lengths remembered per class, to estimate what an unfinished request would have had.
LENGTHS_KEPT = 512
#: Programs whose calls are remembered until they close, and calls of each; beyond these the
#: oldest go unjudged.
PROGRAMS_KEPT = 10_000
CALLS_KEPT = 1_000


class Load(Protocol):
    """What the gauges show; the server's `ReplicaView` has it."""

    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def free_blocks(self) -> int: ...
    @property
    def total_blocks(self) -> int: ...


class _Histogram:
    """Counts per bucket and a sum; many equal values cost what one does."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def add(self, other: _Histogram) -> None:
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.total += other.total

    def buckets(self) -> list[tuple[str, float]]:
        cumulative, rows = 0, []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            cumulative += count
            rows.append((bound, float(cumulative)))
        return rows


class PrometheusMetrics(Collector):
    """Subscriber of events that renders the metrics page; for one thread.

    `load` is asked at each scrape for the gauges.
    """

    def __init__(
        self,
        model_name: str,
        *,
        vllm_aliases: bool = False,
        load: Callable[[], Load] | None = None,
    ) -> None:
        self.model_name = model_name
        self.vllm_aliases = vllm_aliases
        self.load = load
        self.registry = CollectorRegistry(auto_describe=False)
        self._recorder = Recorder(self._close)
        self._histograms: dict[str, dict[str, _Histogram]] = {
            name: defaultdict(lambda bounds=bounds: _Histogram(bounds))  # type: ignore[misc]
            for name, (_, _, bounds) in HISTOGRAMS.items()
        }
        self._counters: dict[str, dict[Labels, float]] = {
            # A series without labels exists from the start, at 0.
            name: defaultdict(float, {} if labels else {(): 0.0})
            for name, (_, labels, _) in COUNTERS.items()
        }
        self._classes: set[str] = set()
        self._lengths: dict[str, deque[int]] = defaultdict(lambda: deque(maxlen=LENGTHS_KEPT))
        self._bounds = Bounds()
        self._programs: dict[str, deque[tuple[Record, ...]]] = {}
        self.registry.register(self)

    def observe(self, event: Event) -> None:
        """Learn from one event."""
        match event:
            case Stepped():
                self._step(event)
            case Admitted(request_id, now, cached_tokens):
                self._admit(request_id, now, cached_tokens)
            case Estimated():
                self._bounds.tell(event)
            case Foretold(way, told, came):
                self._counters["program_forecasts"][(way,)] += 1
                self._counters["program_forecast_error_ratio"][(way,)] += abs(told - came) / came
            case Preempted():
                self._counters["preemptions"][()] += 1
            case Demoted(request_id, _, reason):
                self._counters["requests_demoted"][self._class_of(request_id), reason] += 1
            case Rejected(request_id, _, reason):
                self._counters["requests_refused"][self._class_of(request_id), reason] += 1
            case ProgramClosed(program_id):
                if calls := self._programs.pop(program_id, None):
                    self._count(judge_program(calls, self._length_of))
            case _:
                pass
        self._recorder.observe(event)

    def render(self) -> tuple[bytes, str]:
        """The page and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Family]:
        """Yield all families; the registry calls it at each scrape."""
        yield from self._histogram_families()
        yield from self._counter_families()
        yield from self._gauge_families()

    # Learning

    def _step(self, event: Stepped) -> None:
        outcome = event.outcome
        ended = outcome.ended
        self._histogram("step_time_seconds").observe(ended - outcome.started)
        self._histogram("plan_time_seconds").observe(outcome.times.plan)
        for part in ("plan", "draft", "select", "forward"):
            if seconds := getattr(outcome.times, part):
                self._counters["step_part_seconds"][(part,)] += seconds
        # In a batch that decodes together the gap is the same for most: one entry each, counted.
        gaps: dict[tuple[str, float], int] = {}
        made: dict[str, int] = {}
        requests = self._recorder.open
        for request_id, tokens in outcome.yields.items():
            num_tokens = len(tokens.tokens)
            request = requests.get(request_id)
            if not num_tokens or request is None:
                continue
            name = self._label(request.arrived.service_class)
            made[name] = made.get(name, 0) + num_tokens
            if request.times:
                key = (name, ended - request.times[-1])
                gaps[key] = gaps.get(key, 0) + 1
            else:
                ttft = ended - request.arrived.arrival
                self._histogram("time_to_first_token_seconds", name).observe(ttft)
            if num_tokens > 1:
                gaps[name, 0.0] = gaps.get((name, 0.0), 0) + num_tokens - 1
            if tokens.drafted:
                self._speculate(name, tokens)
        for (name, gap), times in gaps.items():
            self._histogram("inter_token_latency_seconds", name).observe(gap, times)
        for name, num_tokens in made.items():
            self._counters["generation_tokens"][(name,)] += num_tokens

    def _speculate(self, name: str, made: Yield) -> None:
        """Count what was guessed for one request in one step, and what of it was right."""
        self._counters["draft_tokens"][(name,)] += made.drafted
        self._counters["verified_tokens"][(name,)] += made.selected
        self._counters["accepted_tokens"][(name,)] += made.accepted
        for depth in range(1, made.accepted + 1):
            self._counters["accepted_tokens_per_depth"][name, str(depth)] += 1

    def _admit(self, request_id: str, now: float, cached_tokens: int) -> None:
        request = self._recorder.open.get(request_id)
        if request is None:
            return
        record = request.arrived
        queued = now - record.arrival
        self._histogram("request_queue_time_seconds", self._label(record.service_class)).observe(
            queued
        )
        self._counters["prompt_tokens"][()] += record.prompt_tokens
        self._counters["prefix_cache_queries"][()] += record.prompt_tokens
        self._counters["prefix_cache_hits"][()] += cached_tokens

    def _close(self, samples: tuple[Record, ...]) -> None:
        """All samples of a request have ended."""
        for record in samples:
            name = self._label(record.service_class)
            for level, held, ratio in self._bounds.judge(record):
                self._counters["length_bounds"][name, str(level), str(held).lower()] += 1
                self._counters["length_bound_ratio"][name, str(level)] += ratio
            if record.finish is not None:
                self._counters["requests_finished"][name, record.finish] += 1
            if record.is_answered:
                self._lengths[name].append(len(record.token_times))
                delivery = record.delivery
                self._histogram("e2e_request_latency_seconds", name).observe(delivery.e2e)
                if len(record.token_times) > 1:
                    self._histogram("request_time_per_output_token_seconds", name).observe(
                        delivery.tpot
                    )
        first = samples[0]
        if first.program is not None:
            self._keep_call(first.program.id, samples)
        if not isinstance(first.slo, Program):
            self._count(judge(samples, self._length_of))

    def _keep_call(self, program_id: str, samples: tuple[Record, ...]) -> None:
        """Remember a call of a program that has a deadline, until the program closes."""
        calls = self._programs.get(program_id)
        if calls is None:
            if not isinstance(samples[0].slo, Program):
                return
            if len(self._programs) >= PROGRAMS_KEPT:
                del self._programs[next(iter(self._programs))]
            calls = self._programs[program_id] = deque(maxlen=CALLS_KEPT)
        calls.append(samples)

    def _count(self, verdict: Verdict) -> None:
        name = self._label(verdict.service_class)
        if verdict.is_cancelled:
            self._counters["slo_cancelled"][name, verdict.kind] += 1
            return
        outcome = "slo_met" if verdict.is_attained else "slo_missed"
        self._counters[outcome][name, verdict.kind] += 1
        if not verdict.is_best_effort:
            self._counters["service_gain"][(name,)] += verdict.gain
            self._counters["service_gain_possible"][(name,)] += verdict.possible

    def _length_of(self, record: Record) -> tuple[float, bool]:
        lengths = self._lengths.get(self._label(record.service_class))
        return (float(median(lengths)) if lengths else float(min(record.cap, DEFAULT_CAP))), True

    def _class_of(self, request_id: str) -> str:
        request = self._recorder.open.get(request_id)
        return self._label(request.arrived.service_class) if request else OVERFLOW_LABEL

    def _label(self, service_class: str) -> str:
        """The class, or `other` once there are too many: a label must not grow without bound."""
        if service_class in self._classes:
            return service_class
        if len(self._classes) >= MAX_LABEL_VALUES:
            return OVERFLOW_LABEL
        self._classes.add(service_class)
        return service_class

    def _histogram(self, name: str, service_class: str = "") -> _Histogram:
        return self._histograms[name][service_class]

    # Rendering

    def _histogram_families(self) -> Iterator[Family]:
        for name, (text, alias, bounds) in HISTOGRAMS.items():
            is_per_class = not name.startswith(("step", "plan"))
            names = ["model_name", *(["service_class"] if is_per_class else [])]
            family = HistogramMetricFamily(f"giusto_{name}", text, labels=names)
            everything = _Histogram(bounds)
            for service_class, histogram in self._histograms[name].items():
                labels = [self.model_name, *([service_class] if is_per_class else [])]
                family.add_metric(labels, histogram.buckets(), histogram.total)
                everything.add(histogram)
            yield family
            if self.vllm_aliases and alias:
                family = HistogramMetricFamily(f"vllm:{alias}", text, labels=["model_name"])
                family.add_metric([self.model_name], everything.buckets(), everything.total)
                yield family

    def _counter_families(self) -> Iterator[Family]:
        for name, (text, label_names, alias) in COUNTERS.items():
            series = self._counters[name]
            family = CounterMetricFamily(
                f"giusto_{name}", text, labels=["model_name", *label_names]
            )
            for labels, total in series.items():
                family.add_metric([self.model_name, *labels], total)
            yield family
            if self.vllm_aliases and alias:
                yield self._alias(name, alias, text, series)

    def _alias(self, name: str, alias: str, text: str, series: dict[Labels, float]) -> Family:
        """The vLLM form of a counter: summed over classes, by reason where vLLM has it so."""
        by_reason = name == "requests_finished"
        names = ["model_name", *(["finished_reason"] if by_reason else [])]
        family = CounterMetricFamily(f"vllm:{alias}", text, labels=names)
        sums: dict[Labels, float] = {} if by_reason else {(): 0.0}
        for labels, total in series.items():
            key = labels[1:] if by_reason else ()
            sums[key] = sums.get(key, 0.0) + total
        for labels, total in sums.items():
            family.add_metric([self.model_name, *labels], total)
        return family

    def _gauge_families(self) -> Iterator[Family]:
        if self.load is None:
            return
        now = self.load()
        used = 1 - now.free_blocks / now.total_blocks if now.total_blocks else 0.0
        rows: Iterable[tuple[str, str, str, float]] = (
            ("num_requests_running", "num_requests_running", "Resident requests", now.running),
            ("num_requests_waiting", "num_requests_waiting", "Queued requests", now.waiting),
            ("kv_cache_usage_ratio", "kv_cache_usage_perc", "KV blocks held, 0 to 1", used),
        )
        for name, alias, text, number in rows:
            full_names = [f"giusto_{name}", *([f"vllm:{alias}"] if self.vllm_aliases else [])]
            for full_name in full_names:
                family = GaugeMetricFamily(full_name, text, labels=["model_name"])
                family.add_metric([self.model_name], number)
                yield family
