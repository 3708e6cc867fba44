"""The shape of a step, from its plan: what the latency model is asked about."""

from __future__ import annotations

from collections.abc import Callable

from giusto.core.latency import BatchShape
from giusto.core.plan import Plan
from giusto.core.request import RequestView


def shape_of(plan: Plan, request: Callable[[str], RequestView]) -> BatchShape:
    """The certain work of a plan; `request` looks one up by id.

    Single tokens count as decodes, longer runs as prompt chunks. For plans with nothing of theirs
    in flight before them.
    """
    prefill = prefill_kv = decodes = kv = 0
    for request_id, num_tokens, _ in plan.grants:
        start = request(request_id).num_computed_tokens
        if num_tokens > 1:
            prefill += num_tokens
            prefill_kv += num_tokens * start
        else:
            decodes += 1
            kv += start + 1
    return BatchShape(prefill, prefill_kv, decodes, kv)
