"""Why a request stands where it stands, in words and numbers that JSON can carry; for operators."""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

from giusto.core.plan import Policy, View
from giusto.core.request import RequestView
from giusto.core.slo import due, is_missed, kind


@runtime_checkable
class Explains(Protocol):
    """A policy that can tell what it thinks of a request; decides and changes nothing."""

    def explain(self, view: View, request_id: str) -> dict[str, Any]: ...


def explain(view: View, policy: Policy, request_id: str) -> dict[str, Any]:
    """State where a request is, what it was promised, and what the next plan would give it.

    Times in milliseconds from now, None where there is none. `position` counts from 0 along the
    queue, or the residents. KeyError for a request that is not in the view.
    """
    request = view.request(request_id)
    line = view.waiting if request.resident_since is None else view.running
    plan = policy.plan(view)
    granted = next((g.num_tokens for g in plan.grants if g.request_id == request_id), 0)
    when = due(request.slo, request)
    facts = {
        "id": request.id,
        "now": view.now,
        "state": "waiting" if request.resident_since is None else "running",
        "position": next((i for i, r in enumerate(line) if r.id == request_id), None),
        "of": len(line),
        "service_class": request.service_class,
        "kind": kind(request.slo),
        "missed": is_missed(request.slo, request, view.now),
        "demoted": request.is_demoted,
        "age_ms": _ms(view.now - request.arrival),
        "due_in_ms": _ms(when - view.now),
        "prompt_tokens": request.num_prompt_tokens,
        "computed_tokens": request.num_computed_tokens,
        "output_tokens": request.num_output_tokens,
        "late_tokens": request.late_tokens,
        "preemptions": request.num_preemptions,
        "blocks": view.held(request.id),
        "granted_tokens": granted,
    }
    facts["program"] = _program(view, request)
    if isinstance(policy, Explains):
        facts["policy"] = policy.explain(view, request_id)
    return facts


def _program(view: View, request: RequestView) -> dict[str, Any] | None:
    program = view.program(request.program) if request.program else None
    if program is None:
        return None
    deadline = math.inf if program.deadline is None else program.opened + program.deadline
    return {
        "app": program.app,
        "age_ms": _ms(view.now - program.opened),
        "due_in_ms": _ms(deadline - view.now),
        "missed": program.is_missed,
        "calls_finished": program.num_finished_calls,
        "calls_active": program.num_active_calls,
    }


def _ms(seconds: float) -> float | None:
    return round(1000 * seconds, 3) if math.isfinite(seconds) else None
