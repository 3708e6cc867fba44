"""What policies share: their dependencies, the floor that keeps anyone from starving."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from giusto.core.latency import LatencyModel
from giusto.core.plan import View, Want
from giusto.core.request import RequestView
from giusto.core.slo import BestEffort
from giusto.predict.base import LengthPredictor

#: Share of a step's tokens kept for the request that has waited longest for its first token.
FLOOR_SHARE = 0.05
DEFAULT_STARVATION = BestEffort().starvation


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What a policy may be built with; one that needs more than it is given fails to build."""

    latency: LatencyModel
    lengths: LengthPredictor


class Stateless:
    """A policy that learns nothing."""

    def observe(self, event: object) -> None:
        """Nothing to learn."""


def with_floor(
    wants: Iterable[Want], view: View, *, max_tokens: int | None = None
) -> Iterator[Want]:
    """Put the request that has waited longest for a first token in front, once it is due.

    From half of its starvation span on it gets a twentieth of the step, so that its first token
    comes in time whenever arrivals leave that share of capacity. One at a time: a flood of best
    effort takes no more. A policy that counts steps in time states what a twentieth is.
    """
    starved = _starved(view)
    if starved is None:
        return iter(wants)
    if max_tokens is None:
        max_tokens = max(1, int(FLOOR_SHARE * view.limits.max_num_batched_tokens))
    floor = Want(starved.id, max_tokens)
    return chain([floor], (want for want in wants if want.request_id != starved.id))


def _starved(view: View) -> RequestView | None:
    """Who is due for the floor: best effort, which was promised it, before missed promises."""
    due = [r for r in view.running if r.first_token is None and r.num_remaining_tokens]
    due = [r for r in due if _is_due(r, view.now)]
    for request in view.waiting:
        if request.first_token is None:
            if not _is_due(request, view.now):
                break
            due.append(request)
            if isinstance(request.slo, BestEffort):
                break
    return min(due, key=lambda r: (not isinstance(r.slo, BestEffort), r.arrival), default=None)


def _is_due(request: RequestView, now: float) -> bool:
    slo = request.slo
    span = slo.starvation if isinstance(slo, BestEffort) else DEFAULT_STARVATION
    return now - request.arrival > span / 2
