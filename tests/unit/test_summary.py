"""Records into figures, by hand."""

from __future__ import annotations

import json
import math

import pytest

from giusto.core.request import FinishReason
from giusto.core.slo import SLO, BestEffort, Deadline, Program, Streaming
from giusto.metrics.records import ProgramCall, Record
from giusto.metrics.summary import Goodput, length_of, percentile, run_time, summarize

CHAT = Streaming(ttft=1.0, tpot=1.0)
VLLM_KEYS = {
    "duration",
    "completed",
    "failed",
    "total_input_tokens",
    "total_output_tokens",
    "request_throughput",
    "output_throughput",
    "total_token_throughput",
    *(
        f"{statistic}_{name}_ms"
        for statistic in ("mean", "median", "std", "p99")
        for name in ("ttft", "tpot", "itl", "e2el")
    ),
}
OWN_KEYS = {
    "offered",
    "attainment",
    "strict_attainment",
    "adaserve_attainment",
    "slo_request_goodput",
    "slo_token_goodput",
    "service_gain",
    "service_gain_possible",
}


def answered(
    request_id: str,
    *times: float,
    arrival: float = 0.0,
    slo: SLO = CHAT,
    service_class: str = "chat",
    program: ProgramCall | None = None,
) -> Record:
    return Record(
        request_id,
        request_id,
        service_class,
        slo,
        arrival,
        program.opened if program else arrival,
        prompt_tokens=10,
        token_times=times,
        closed=times[-1],
        finish=FinishReason.STOP,
        program=program,
    )


def refused(request_id: str, arrival: float = 0.0, slo: SLO = CHAT) -> Record:
    return Record(
        request_id, request_id, "chat", slo, arrival, arrival, 10, closed=arrival, refused="busy"
    )


def test_figures_by_hand() -> None:
    """Two answers, one late, and a refusal over ten seconds."""
    figures = summarize(
        [
            answered("a", 1.0, 2.0, 3.0),
            answered("b", 9.0, 10.0, arrival=5.0),
            refused("c", 5.0),
        ]
    )
    expected = {
        "duration": 10.0,
        "completed": 2,
        "failed": 1,
        "refused": 1,
        "cancelled": 0,
        "total_input_tokens": 20,
        "total_output_tokens": 5,
        "request_throughput": 0.2,
        "output_throughput": 0.5,
        "total_token_throughput": 2.5,
        "offered": 3,
        "attained": 1,
        "attainment": 1 / 3,
        "strict_attainment": 1 / 3,
        "adaserve_attainment": 2 / 3,
        "slo_request_goodput": 0.1,
        "slo_token_goodput": 0.3,
        "mean_ttft_ms": 2500.0,
        "median_ttft_ms": 2500.0,
        "std_ttft_ms": 1500.0,
        "mean_tpot_ms": 1000.0,
        "mean_itl_ms": 1000.0,
        "mean_e2el_ms": 4000.0,
        "p95_ttft_offered_ms": None,
        "p95_e2el_offered_ms": None,
        # Tokens at 4 and 5 s were due at 1 and 2.
        "service_gain": pytest.approx(16 + 10 / 4 + 2 * (1 / 4 + 2 / 5)),
        # The refused one would have had 2.5 tokens, the median of its class.
        "service_gain_possible": pytest.approx(16 + 14 + 15),
        "service_gain_estimated_share": pytest.approx(15 / 45),
    }
    assert {name: figures[name] for name in expected} == expected


def test_the_keys_are_there_for_every_class_and_all() -> None:
    """One flat object; `by_class` has the same keys, and rates over the whole run."""
    figures = summarize(
        [answered("a", 1.0), answered("b", 4.0, service_class="tool", slo=Deadline(9.0))]
    )
    by_class = figures.pop("by_class")
    assert figures.keys() >= VLLM_KEYS | OWN_KEYS
    assert "request_goodput" not in figures
    assert list(by_class) == ["chat", "tool", "all"]
    assert by_class["all"] == figures
    for row in by_class.values():
        assert row.keys() == figures.keys()
        assert row["duration"] == 4.0
    assert [by_class[name]["offered"] for name in by_class] == [1, 1, 2]


def test_an_empty_run_has_all_keys_and_is_strict_json() -> None:
    """Nothing offered: zeros where vLLM has them, null where there is nothing to say."""
    figures = summarize([])
    assert figures.keys() >= VLLM_KEYS | OWN_KEYS
    assert figures["attainment"] is None
    assert figures["p95_ttft_offered_ms"] is None
    assert figures["mean_ttft_ms"] == 0.0
    json.dumps(figures, allow_nan=False)


def test_infinite_figures_are_null() -> None:
    """A percentile over offered requests that reaches the refused ones is null."""
    some = [answered(f"a{k}", 0.5) for k in range(95)]
    few = summarize([*some, *(refused(f"r{k}") for k in range(5))])
    many = summarize([*some, *(refused(f"r{k}") for k in range(6))])
    assert few["p95_ttft_offered_ms"] == 500.0
    assert many["p95_ttft_offered_ms"] is None
    json.dumps(many, allow_nan=False)


def test_request_goodput_is_vllms() -> None:
    """Requests that end within every bound, per second; one token has a TPOT of 0."""
    records = [
        answered("fast", 0.5, 1.0),
        answered("slow", 0.5, 9.0),
        answered("one", 10.0),
        refused("none"),
    ]
    assert summarize(records, goodput=Goodput(tpot=1.0))["request_goodput"] == 0.2
    both = summarize(records, goodput=Goodput(ttft=1.0, tpot=1.0))
    assert both["request_goodput"] == both["by_class"]["chat"]["request_goodput"] == 0.1
    assert summarize(records, goodput=Goodput(e2el=100.0))["request_goodput"] == 0.3


def test_best_effort_stands_beside() -> None:
    """It counts in attainment, not in the figure without it; its tokens and waits are shown."""
    idle = BestEffort()
    figures = summarize(
        [
            answered("late", 5.0),
            answered("b", 7.0, 8.0, slo=idle, service_class="flex"),
            refused("c", 1.0, slo=idle),
        ]
    )
    assert figures["attainment"] == 1 / 3
    assert figures["attainment_without_best_effort"] == 0.0
    assert figures["best_effort_output_tokens"] == 2
    assert figures["best_effort_longest_wait_s"] == 7.0
    assert figures["by_class"]["flex"]["service_gain_ratio"] is None


def test_the_longest_wait_counts_those_still_waiting() -> None:
    """A best effort request that never got a token has waited until the end of the run."""
    waiting = Record("w", "w", "flex", BestEffort(), 2.0, 2.0, 10)
    figures = summarize([waiting, answered("a", 50.0)])
    assert figures["best_effort_longest_wait_s"] == 48.0
    assert figures["by_class"]["flex"]["offered"] == 1


def test_cancelled_requests_leave_the_count() -> None:
    """They are reported, neither offered nor failed."""
    gone = Record("g", "g", "chat", CHAT, 0.0, 0.0, 10, closed=0.5, finish=FinishReason.ABORT)
    figures = summarize([answered("a", 1.0), gone])
    assert (figures["offered"], figures["cancelled"], figures["failed"]) == (1, 1, 0)
    assert figures["attainment"] == 1.0


def test_programs_count_once() -> None:
    """Two calls are two answers and one unit, with the program's own time."""
    slo = Program(10.0)
    calls = [ProgramCall("p", name, 0.0, 10.0) for name in ("a", "b")]
    figures = summarize(
        [
            answered("a", 2.0, slo=slo, program=calls[0], service_class="agent"),
            answered("b", 8.0, arrival=3.0, slo=slo, program=calls[1], service_class="agent"),
        ]
    )
    assert (figures["completed"], figures["offered"], figures["attainment"]) == (2, 1, 1.0)
    assert figures["median_program_ms"] == 8000.0
    assert figures["mean_e2el_ms"] == pytest.approx((2000 + 5000) / 2)


def test_samples_share_their_prompt() -> None:
    """Input tokens of one submission count once."""
    first = answered("a", 1.0)
    second = Record(
        "a#1", "a", "chat", CHAT, 0.0, 0.0, 10, (1.0,), closed=1.0, finish=FinishReason.LENGTH
    )
    figures = summarize([first, second])
    assert (figures["total_input_tokens"], figures["offered"]) == (10, 1)


def test_recorded_lengths_are_no_estimate() -> None:
    """A replay knows what a refused request would have had."""
    figures = summarize([refused("a", slo=Deadline(1.0))], recorded={"a": 45})
    assert figures["service_gain_possible"] == 100.0
    assert figures["service_gain_estimated_share"] == 0.0


def test_expected_lengths_fall_back() -> None:
    """The median of the class, of all, or the cap."""
    record = refused("x")
    other = answered("b", 1.0, 2.0, 3.0, service_class="tool")
    assert length_of([record])(record) == (2048.0, True)
    assert length_of([record, other])(record) == (3.0, True)
    assert length_of([record, other, answered("c", 1.0)])(record) == (1.0, True)


def test_the_mean_gain_weighs_requests_alike() -> None:
    """A long prompt that is served late hides a short one in the total, not in the mean."""
    figures = summarize([answered("a", 1.0), refused("b")])
    assert figures["service_gain_mean_normalised"] == 0.5


def test_run_time_spans_first_arrival_to_last_answer() -> None:
    """A refusal after the last answer does not lengthen the run, unless nothing was answered."""
    assert run_time([answered("a", 3.0, arrival=1.0), refused("b", 9.0)]) == 2.0
    assert run_time([refused("a", 1.0), refused("b", 9.0)]) == 8.0
    assert run_time([]) == 0.0


def test_percentile_is_by_nearest_rank() -> None:
    """It is a value that occurred, and stands infinities."""
    assert percentile([], 95) is None
    assert percentile([3.0, 1.0, 2.0, 4.0], 50) == 2.0
    assert percentile([1.0, math.inf], 50) == 1.0
    assert percentile([1.0, math.inf], 51) == math.inf
