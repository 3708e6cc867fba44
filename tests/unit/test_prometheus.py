"""Events onto the metrics page."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families

from giusto.core.events import (
    LEVELS,
    Admitted,
    Arrived,
    Demoted,
    Estimated,
    Event,
    Finished,
    Foretold,
    Preempted,
    ProgramClosed,
    ProgramOpened,
    Rejected,
    Stepped,
)
from giusto.core.latency import BatchShape
from giusto.core.plan import StepOutcome, StepTimes, Yield
from giusto.core.request import FinishReason, ProgramRef, Reason, Request, Submission
from giusto.core.slo import SLO, BestEffort, Program, Streaming
from giusto.metrics import bounds, prometheus
from giusto.metrics.prometheus import PrometheusMetrics

CHAT = Streaming(ttft=1.0, tpot=1.0)


@dataclass(frozen=True)
class Load:
    running: int = 3
    waiting: int = 5
    free_blocks: int = 25
    total_blocks: int = 100


def page(metrics: PrometheusMetrics) -> dict[str, float]:
    """The page as `name{label=value,...}` to number, without the model's label."""
    content, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    samples = {}
    for family in text_string_to_metric_families(content.decode()):
        for sample in family.samples:
            assert sample.labels.pop("model_name") == "m"
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


def arrived(
    request_id: str, at: float, slo: SLO = CHAT, service_class: str = "chat", program: str = ""
) -> Arrived:
    ref = ProgramRef(program, request_id) if program else None
    ask = Submission(request_id, at, 10, slo=slo, service_class=service_class, program=ref)
    return Arrived(Request.of(ask), at)


def stepped(ended: float, yields: dict[str, Yield]) -> Stepped:
    times = StepTimes(plan=2e-4, draft=1e-3)
    return Stepped(StepOutcome(0, ended - 0.02, ended, BatchShape(), yields, times), ended)


ONE = Yield((7,))


@pytest.fixture
def metrics() -> PrometheusMetrics:
    return PrometheusMetrics("m")


def feed(metrics: PrometheusMetrics, *events: Event) -> dict[str, float]:
    for event in events:
        metrics.observe(event)
    return page(metrics)


def test_one_request_from_arrival_to_end(metrics: PrometheusMetrics) -> None:
    """All of its times, tokens, its verdict and its gain appear under its class."""
    seen = feed(
        metrics,
        arrived("a", 10.0),
        Admitted("a", 10.04, cached_tokens=4),
        stepped(10.5, {"a": ONE}),
        stepped(10.54, {"a": Yield((1, 2), drafted=3, selected=2, accepted=1)}),
        Preempted("a", 10.6),
        Finished("a", 10.54, FinishReason.STOP),
    )
    expected = {
        "giusto_time_to_first_token_seconds_sum{service_class=chat}": 0.5,
        "giusto_time_to_first_token_seconds_bucket{le=0.35,service_class=chat}": 0,
        "giusto_time_to_first_token_seconds_bucket{le=0.5,service_class=chat}": 1,
        "giusto_time_to_first_token_seconds_bucket{le=+Inf,service_class=chat}": 1,
        "giusto_inter_token_latency_seconds_count{service_class=chat}": 2,
        "giusto_inter_token_latency_seconds_sum{service_class=chat}": 0.04,
        "giusto_request_time_per_output_token_seconds_sum{service_class=chat}": 0.02,
        "giusto_e2e_request_latency_seconds_sum{service_class=chat}": 0.54,
        "giusto_request_queue_time_seconds_sum{service_class=chat}": 0.04,
        "giusto_step_time_seconds_count": 2,
        "giusto_step_time_seconds_sum": 0.04,
        "giusto_plan_time_seconds_sum": 4e-4,
        "giusto_slo_met_total{kind=streaming,service_class=chat}": 1,
        "giusto_service_gain_total{service_class=chat}": 16,
        "giusto_service_gain_possible_total{service_class=chat}": 16,
        "giusto_requests_finished_total{finished_reason=stop,service_class=chat}": 1,
        "giusto_generation_tokens_total{service_class=chat}": 3,
        "giusto_prompt_tokens_total": 10,
        "giusto_prefix_cache_queries_total": 10,
        "giusto_prefix_cache_hits_total": 4,
        "giusto_preemptions_total": 1,
        "giusto_draft_tokens_total{service_class=chat}": 3,
        "giusto_verified_tokens_total{service_class=chat}": 2,
        "giusto_accepted_tokens_total{service_class=chat}": 1,
        "giusto_accepted_tokens_per_depth_total{depth=1,service_class=chat}": 1,
        "giusto_step_part_seconds_total{part=plan}": 4e-4,
        "giusto_step_part_seconds_total{part=draft}": 2e-3,
    }
    assert {name: seen[name] for name in expected} == pytest.approx(expected)
    assert not any("slo_missed" in name for name in seen)
    assert not any(name.startswith("vllm") for name in seen)


def told(request_id: str, tokens: float) -> Estimated:
    return Estimated(request_id, (tokens,) * len(LEVELS), 0.0)


def test_length_bounds_are_judged_as_requests_end(metrics: PrometheusMetrics) -> None:
    """The first bound told of a request counts, and only where the output ended by itself."""
    bound = "giusto_length_bounds_total{held=%s,level=0.95,service_class=chat}"
    seen = feed(
        metrics,
        *(arrived(name, 0.0) for name in ("short", "long", "cut", "untold")),
        told("short", 4),
        told("short", 1),
        told("long", 1),
        told("cut", 1),
        stepped(0.5, dict.fromkeys(("short", "long", "cut", "untold"), Yield((1, 2)))),
        Finished("short", 0.6, FinishReason.STOP),
        Finished("long", 0.6, FinishReason.STOP),
        Finished("cut", 0.6, FinishReason.LENGTH),
        Finished("untold", 0.6, FinishReason.STOP),
    )
    assert (seen[bound % "true"], seen[bound % "false"]) == (1, 1)
    assert seen["giusto_length_bound_ratio_total{level=0.95,service_class=chat}"] == 2 + 0.5


def test_forecasts_of_programs_are_counted_with_their_errors(metrics: PrometheusMetrics) -> None:
    """By way, so that likeness can be held against counting."""
    seen = feed(
        metrics,
        Foretold("matched", 50.0, 100.0, 1.0),
        Foretold("matched", 125.0, 100.0, 1.0),
        Foretold("counted", 100.0, 100.0, 1.0),
    )
    assert seen["giusto_program_forecasts_total{way=matched}"] == 2
    assert seen["giusto_program_forecast_error_ratio_total{way=matched}"] == 0.75
    assert seen["giusto_program_forecast_error_ratio_total{way=counted}"] == 0


def test_bounds_of_open_requests_are_bounded(
    metrics: PrometheusMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond so many the oldest go unjudged."""
    monkeypatch.setattr(bounds, "KEPT", 1)
    seen = feed(
        metrics,
        arrived("a", 0.0),
        arrived("b", 0.0),
        told("a", 4),
        told("b", 4),
        stepped(0.5, dict.fromkeys("ab", ONE)),
        Finished("a", 0.6, FinishReason.STOP),
        Finished("b", 0.6, FinishReason.STOP),
    )
    assert seen["giusto_length_bounds_total{held=true,level=0.9,service_class=chat}"] == 1


def test_a_busy_batch_is_counted_whole(metrics: PrometheusMetrics) -> None:
    """Gaps that many requests share are counted once for each."""
    names = [f"r{k}" for k in range(32)]
    events: list[Event] = [arrived(name, 0.0) for name in names]
    events += [stepped(0.1 * k, dict.fromkeys(names, ONE)) for k in (1, 2, 3)]
    seen = feed(metrics, *events)
    assert seen["giusto_inter_token_latency_seconds_count{service_class=chat}"] == 64
    assert seen["giusto_inter_token_latency_seconds_sum{service_class=chat}"] == pytest.approx(6.4)
    assert seen["giusto_time_to_first_token_seconds_count{service_class=chat}"] == 32
    assert seen["giusto_generation_tokens_total{service_class=chat}"] == 96


def test_misses_refusals_demotions_and_cancels(metrics: PrometheusMetrics) -> None:
    """Each has its counter; a refusal is a miss of what was promised."""
    seen = feed(
        metrics,
        arrived("a", 0.0),
        Rejected("a", 0.5, Reason.QUEUE_FULL),
        arrived("b", 0.0, BestEffort(), "flex"),
        Demoted("b", 1.0, Reason.DEADLINE_UNREACHABLE),
        Finished("b", 1.0, FinishReason.ERROR),
        arrived("c", 0.0),
        Finished("c", 0.1, FinishReason.ABORT),
        Rejected("never seen", 0.0, Reason.DRAINING),
    )
    expected = {
        "giusto_requests_refused_total{reason=queue_full,service_class=chat}": 1,
        "giusto_requests_refused_total{reason=draining,service_class=other}": 1,
        "giusto_requests_demoted_total{reason=deadline_unreachable,service_class=flex}": 1,
        "giusto_slo_missed_total{kind=streaming,service_class=chat}": 1,
        "giusto_slo_missed_total{kind=best_effort,service_class=flex}": 1,
        "giusto_slo_cancelled_total{kind=streaming,service_class=chat}": 1,
        "giusto_service_gain_total{service_class=chat}": 0,
    }
    assert {name: seen[name] for name in expected} == expected
    assert "giusto_service_gain_total{service_class=flex}" not in seen


def test_the_possible_gain_of_a_refusal_uses_the_median_length(metrics: PrometheusMetrics) -> None:
    """What it would have got is what its class usually gets."""
    seen = feed(
        metrics,
        arrived("a", 0.0),
        stepped(0.5, {"a": Yield((1, 2, 3))}),
        Finished("a", 0.5, FinishReason.STOP),
        arrived("b", 0.0),
        Rejected("b", 0.5, Reason.QUEUE_FULL),
    )
    assert seen["giusto_service_gain_possible_total{service_class=chat}"] == 2 * (10 + 2 * 3)


def test_a_program_counts_when_it_closes(metrics: PrometheusMetrics) -> None:
    """Once for all of its calls; nothing of it is kept after."""
    first = arrived("a", 0.0, Program(9.0), "agent", "p")
    second = arrived("b", 0.0, Program(9.0), "agent", "p")
    alone = arrived("c", 0.0, CHAT, "chat", "p")
    events = [ProgramOpened("p", 0.0, 9.0), first, second, alone]
    events += [Finished(name, 1.0, FinishReason.STOP) for name in "abc"]
    met = "giusto_slo_met_total{kind=program,service_class=agent}"
    assert met not in feed(metrics, *events)
    seen = feed(metrics, ProgramClosed("p", 1.0, 1.0, True), ProgramClosed("p", 1.0, 1.0, True))
    assert seen[met] == 1
    assert seen["giusto_service_gain_total{service_class=agent}"] == 20
    assert seen["giusto_slo_met_total{kind=streaming,service_class=chat}"] == 1
    assert not metrics._programs


def test_open_programs_are_bounded(
    metrics: PrometheusMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients that never close their programs cost no memory without end."""
    monkeypatch.setattr(prometheus, "PROGRAMS_KEPT", 3)
    for k in range(9):
        metrics.observe(arrived(f"a{k}", 0.0, Program(9.0), "agent", f"p{k}"))
        metrics.observe(Finished(f"a{k}", 1.0, FinishReason.STOP))
    assert list(metrics._programs) == ["p6", "p7", "p8"]


def test_nothing_is_kept_of_what_has_ended(metrics: PrometheusMetrics) -> None:
    """A finished request leaves sums behind."""
    feed(metrics, arrived("a", 0.0), Finished("a", 1.0, FinishReason.STOP))
    assert not metrics._recorder.open
    assert not metrics._recorder.records


def test_class_labels_are_bounded(metrics: PrometheusMetrics) -> None:
    """Past a hundred classes the rest share one label."""
    for k in range(150):
        metrics.observe(arrived(f"a{k}", 0.0, service_class=f"c{k}"))
        metrics.observe(Finished(f"a{k}", 0.1, FinishReason.STOP))
    seen = page(metrics)
    ends = [name for name in seen if name.startswith("giusto_requests_finished")]
    assert len(ends) == 101
    assert seen["giusto_requests_finished_total{finished_reason=stop,service_class=other}"] == 50


def test_gauges_ask_at_each_scrape() -> None:
    """Load is read when the page is made; a server without blocks has none in use."""
    seen = page(PrometheusMetrics("m", load=Load))
    assert seen["giusto_num_requests_running"] == 3
    assert seen["giusto_num_requests_waiting"] == 5
    assert seen["giusto_kv_cache_usage_ratio"] == 0.75
    empty = page(PrometheusMetrics("m", load=lambda: Load(total_blocks=0)))
    assert empty["giusto_kv_cache_usage_ratio"] == 0.0


def test_vllm_names_on_request() -> None:
    """Routers and autoscalers find vLLM's names, summed over classes."""
    metrics = PrometheusMetrics("m", vllm_aliases=True, load=Load)
    seen = feed(
        metrics,
        arrived("a", 0.0),
        arrived("b", 0.0, service_class="tool"),
        stepped(0.5, {"a": ONE, "b": ONE}),
        Finished("a", 0.5, FinishReason.STOP),
        Finished("b", 0.5, FinishReason.LENGTH),
    )
    expected = {
        "vllm:num_requests_running": 3,
        "vllm:num_requests_waiting": 5,
        "vllm:kv_cache_usage_perc": 0.75,
        "vllm:time_to_first_token_seconds_count": 2,
        "vllm:e2e_request_latency_seconds_sum": 1.0,
        "vllm:request_success_total{finished_reason=stop}": 1,
        "vllm:request_success_total{finished_reason=length}": 1,
        "vllm:generation_tokens_total": 2,
        "vllm:prompt_tokens_total": 0,
        "vllm:num_preemptions_total": 0,
    }
    assert {name: seen[name] for name in expected} == expected


def test_names_follow_the_conventions() -> None:
    """Our names start with the product and say their unit; nothing ends in a bare number."""
    metrics = PrometheusMetrics("m", load=Load)
    metrics.observe(arrived("a", 0.0))
    content, _ = metrics.render()
    families = list(text_string_to_metric_families(content.decode()))
    assert families
    for family in families:
        assert family.name.startswith("giusto_")
        assert family.documentation
        assert family.type != "histogram" or family.name.endswith("_seconds")
