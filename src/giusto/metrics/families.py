"""What the `/metrics` page has: names, meanings, labels, buckets, and vLLM's names for the same."""

from __future__ import annotations

Labels = tuple[str, ...]

#: Bucket bounds in seconds, for whole requests, single tokens and decisions.
REQUEST_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 120.0)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)
PLAN_BUCKETS = (1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 0.1)

#: name: what it is, the vLLM metric that means the same, bucket bounds.
HISTOGRAMS: dict[str, tuple[str, str | None, tuple[float, ...]]] = {
    "time_to_first_token_seconds": (
        "Arrival to first token",
        "time_to_first_token_seconds",
        REQUEST_BUCKETS,
    ),
    "inter_token_latency_seconds": (
        "Gap between two tokens",
        "inter_token_latency_seconds",
        TOKEN_BUCKETS,
    ),
    "request_time_per_output_token_seconds": (
        "Mean gap of a finished request, first token excluded",
        "request_time_per_output_token_seconds",
        TOKEN_BUCKETS,
    ),
    "e2e_request_latency_seconds": (
        "Arrival to last token of a finished request",
        "e2e_request_latency_seconds",
        REQUEST_BUCKETS,
    ),
    "request_queue_time_seconds": (
        "Arrival to first residence",
        "request_queue_time_seconds",
        REQUEST_BUCKETS,
    ),
    "step_time_seconds": ("Start to end of an engine step", None, TOKEN_BUCKETS),
    "plan_time_seconds": ("Deciding one step", None, PLAN_BUCKETS),
}

#: name: what it is, its labels, the vLLM metric that means the same.
COUNTERS: dict[str, tuple[str, Labels, str | None]] = {
    "slo_met": ("Requests that met what they were promised", ("service_class", "kind"), None),
    "slo_missed": ("Requests that did not", ("service_class", "kind"), None),
    "slo_cancelled": ("Cancelled before anything was late", ("service_class", "kind"), None),
    "service_gain": ("Value delivered", ("service_class",), None),
    "service_gain_possible": ("Value if nothing had been late", ("service_class",), None),
    "requests_refused": ("Refused or shed requests", ("service_class", "reason"), None),
    "requests_demoted": ("Requests that lost their promise", ("service_class", "reason"), None),
    "requests_finished": (
        "Requests that ended otherwise",
        ("service_class", "finished_reason"),
        "request_success",
    ),
    "prompt_tokens": ("Prompt tokens of admitted requests", (), "prompt_tokens"),
    "generation_tokens": ("Output tokens", ("service_class",), "generation_tokens"),
    "prefix_cache_queries": ("Prompt tokens looked up", (), "prefix_cache_queries"),
    "prefix_cache_hits": ("Prompt tokens found", (), "prefix_cache_hits"),
    "preemptions": ("Residences lost to others", (), "num_preemptions"),
    "draft_tokens": ("Tokens drafted", ("service_class",), None),
    "verified_tokens": (
        "Drafted tokens that were verified",
        ("service_class",),
        "spec_decode_num_draft_tokens",
    ),
    "accepted_tokens": (
        "Drafted tokens accepted",
        ("service_class",),
        "spec_decode_num_accepted_tokens",
    ),
    "accepted_tokens_per_depth": (
        "Drafted tokens accepted, by their place after the last known token, from 1",
        ("service_class", "depth"),
        None,
    ),
    "step_part_seconds": ("Time of steps: plan, draft, select, forward", ("part",), None),
    "length_bounds": (
        "Bounds on output lengths that were judged",
        ("service_class", "level", "held"),
        None,
    ),
    "length_bound_ratio": ("Sum of bound over length", ("service_class", "level"), None),
    "program_forecasts": ("Forecasts of programs' tokens that were judged", ("way",), None),
    "program_forecast_error_ratio": ("Sum of error over tokens to come", ("way",), None),
}
