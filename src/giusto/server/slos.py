"""Which promise a request gets: from body, `vllm_xargs`, headers, classes and the key's bounds.

Order: operator's bounds, then the body (`slo`, `program`, then flat `vllm_xargs`, then
`service_tier`), then headers. Targets are taken whole from the first source that states any, so
that two halves never mix into an SLO that nobody asked for; class and weight come each from the
first source that has them. Ids of programs are scoped by the API key.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers

from giusto.config import ApiKey, ServerSettings, ServiceClass, make_slo, nearest
from giusto.core.errors import InvalidRequest
from giusto.core.request import ProgramRef
from giusto.core.slo import SLO, BestEffort, bound
from giusto.server.errors import ApiError
from giusto.server.openai import MAX_ID, MAX_TARGET_MS, ProgramPart, Sampled, Slo, validate

TTFT_HEADERS = ("x-llm-d-slo-ttft-ms", "x-slo-ttft-ms")
TPOT_HEADERS = ("x-llm-d-slo-tpot-ms", "x-slo-tpot-ms")
DEADLINE_HEADER = "x-giusto-deadline-ms"
PROGRAM_DEADLINE_HEADER = "x-giusto-program-deadline-ms"
#: Code of the refusals of what only an admin key may do.
ADMIN_NEEDED = "admin_key_required"
ELAPSED_HEADER = "x-giusto-elapsed-ms"
CLASS_HEADERS = ("x-llm-d-inference-objective", "x-gateway-inference-objective")
TENANT_HEADERS = ("x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id")
FINAL_HEADER = "x-dynamo-session-final"
SESSION_HEADERS = (
    "x-session-id",
    "x-dynamo-session-id",
    "x-claude-code-session-id",
    "session-id",
    "session_id",
    "x-session-affinity",
)

#: OpenAI's other names for the tiers that an operator maps to classes.
TIER_ALIASES = {"auto": "default", "scale": "default", "fast": "priority"}


@dataclass(frozen=True, slots=True)
class Promise:
    """What a request is promised, and how it came to that."""

    service: ServiceClass
    slo: SLO
    weight: float
    is_own: bool
    is_raised: bool
    tier: str | None
    priority: int
    program: ProgramRef | None


def resolve(
    wire: Sampled, headers: Headers, key: ApiKey, settings: ServerSettings, call: str
) -> Promise:
    """Find the promise of a request; `call` names it within its program unless it says so."""
    flat = _flat(wire.vllm_xargs or {})
    sources = [wire.slo, validate(Slo, flat["slo"], "vllm_xargs.slo_"), _header_slo(headers)]
    stated = [slo for slo in sources if slo is not None]
    service, tier = _service(stated, wire.service_tier, headers, key, settings)
    own = _own_slo(stated)
    asked = service.slo if own is None else own
    slo = bound(asked, key.bounds)
    if key.best_effort_only and not isinstance(asked, BestEffort):
        slo = BestEffort()
    weights = [slo.weight for slo in stated if slo.weight is not None]
    wanted = weights[0] if weights else service.weight
    limit = math.inf if key.bounds.weight is None else key.bounds.weight
    priority = service.priority if wire.priority is None else wire.priority
    program, program_raised = _program(wire, flat["program"], headers, key, call, service)
    return Promise(
        service=service,
        slo=slo,
        weight=min(wanted, limit),
        is_own=own is not None,
        is_raised=slo != asked or wanted > limit or priority < key.min_priority or program_raised,
        tier=tier,
        priority=max(priority, key.min_priority),
        program=program,
    )


def arrival(headers: Headers, key: ApiKey, now: float) -> float:
    """When the request arrived: `now`, less what a trusted router says it has spent already."""
    elapsed = _number(headers, (ELAPSED_HEADER,), least=0.0)
    if elapsed is None:
        return now
    if not key.is_admin:
        raise ApiError(403, f"{ELAPSED_HEADER} needs an admin key", ELAPSED_HEADER, ADMIN_NEEDED)
    return now - elapsed / 1000


def tenant(headers: Headers, key: ApiKey) -> str:
    """Who is charged: the key's tenant; by header only where nobody can hide behind many names."""
    name = _text(headers, TENANT_HEADERS)
    return name if name and (key.is_admin or not key.name) else key.tenant


def scoped(key: ApiKey, program_id: str) -> str:
    """A program's id as the scheduler knows it: clients of two keys never share one."""
    return f"{key.name}/{program_id}"


def _own_slo(stated: Iterable[Slo]) -> SLO | None:
    for slo in stated:
        targets = (slo.ttft_ms, slo.tpot_ms, slo.deadline_ms)
        if any(t is not None for t in targets):
            try:
                return make_slo(*(None if t is None else t / 1000 for t in targets))
            except ValueError as error:
                raise InvalidRequest(str(error), "slo.deadline_ms", "conflicting_slo") from None
    return None


def _service(
    stated: Iterable[Slo],
    tier: str | None,
    headers: Headers,
    key: ApiKey,
    settings: ServerSettings,
) -> tuple[ServiceClass, str | None]:
    """The class, and the tier to echo when one was asked for."""
    classes = settings.classes
    named = [slo.service_class for slo in stated if slo.service_class]
    if named and named[0] not in classes:
        raise InvalidRequest(
            f"unknown class '{named[0]}'{nearest(named[0], classes)}", "slo.class", "unknown_class"
        )
    default = key.default_class or settings.default_class
    if named:
        used = [t for t, name in settings.tiers.items() if name == named[0]]
        return classes[named[0]], None if tier is None else (used or ["default"])[0]
    if tier is not None:
        canonical = TIER_ALIASES.get(tier, tier)
        own_default = canonical == "default" and key.default_class
        return classes[default if own_default else settings.tiers[canonical]], canonical
    # An objective that is not one of ours belongs to the gateway that sent it.
    objective = _text(headers, CLASS_HEADERS) or default
    return classes[objective if objective in classes else default], None


def _program(
    wire: Sampled,
    flat: Mapping[str, Any],
    headers: Headers,
    key: ApiKey,
    call: str,
    service: ServiceClass,
) -> tuple[ProgramRef | None, bool]:
    """The call's place in its program, and whether the program's deadline was raised.

    A program that states no deadline has its class's; a session that is no more is left as it is.
    """
    part = wire.program or ProgramPart()
    if flat and part == ProgramPart():
        part = validate(ProgramPart, flat, "vllm_xargs.program_")
    deadline_ms = part.deadline_ms
    if deadline_ms is None:
        deadline_ms = _number(headers, (PROGRAM_DEADLINE_HEADER,))
    name = part.id or wire.session_id or _text(headers, SESSION_HEADERS)
    if not name:
        if part.final or part.call or part.parents or deadline_ms is not None:
            raise InvalidRequest("'program.id' is required", "program.id", "missing_field")
        return None, False
    deadline = None if deadline_ms is None else deadline_ms / 1000
    if deadline is None and part.id:
        deadline = service.program_deadline
    raised = None if deadline is None else max(deadline, key.bounds.deadline or 0.0)
    is_final = part.final
    if is_final is None:
        is_final = (headers.get(FINAL_HEADER) or "").lower() in ("1", "true")
    ref = ProgramRef(
        id=scoped(key, name),
        call=part.call or call,
        parents=tuple(part.parents or ()),
        stage=part.stage,
        final=is_final,
        app=part.app,
        deadline=None if key.best_effort_only else raised,
    )
    return ref, ref.deadline != deadline


def _flat(xargs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Fold `slo_ttft_ms`, `program_id` and their like into objects; the rest is not ours."""
    folded: dict[str, dict[str, Any]] = {"slo": {}, "program": {}}
    for name, value in xargs.items():
        head, _, rest = name.partition("_")
        if head in folded and rest:
            folded[head][rest] = value
    return folded


def _header_slo(headers: Headers) -> Slo:
    read = {
        "ttft_ms": _number(headers, TTFT_HEADERS),
        "tpot_ms": _number(headers, TPOT_HEADERS),
        "deadline_ms": _number(headers, (DEADLINE_HEADER,)),
    }
    return validate(Slo, read, "")


def _number(headers: Headers, names: Iterable[str], least: float = 1e-3) -> float | None:
    for name in names:
        text = headers.get(name)
        if not text:
            continue
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= MAX_TARGET_MS:
            raise InvalidRequest(
                f"'{name}' must be a number of milliseconds between {least} and {MAX_TARGET_MS}",
                name,
                "invalid_value",
            )
        return value
    return None


def _text(headers: Headers, names: Iterable[str]) -> str | None:
    for name in names:
        if text := headers.get(name):
            if len(text) > MAX_ID:
                raise InvalidRequest(
                    f"'{name}' must have at most {MAX_ID} characters", name, "invalid_value"
                )
            return text
    return None
