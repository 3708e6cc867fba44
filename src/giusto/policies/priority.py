"""Static priority: smaller is more urgent, ties by arrival; running requests before waiting ones.

The least urgent resident loses its blocks when memory runs out. The client states the priority,
or its service class does.

Source: vLLM V1 scheduler, policy `priority`. Differs: residents are served in order of priority
too, and whoever has waited half a starvation span for a first token gets a twentieth of the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import nsmallest
from itertools import chain

from giusto.core.pack import pack
from giusto.core.plan import Plan, View, Want
from giusto.core.request import RequestView
from giusto.policies.base import Dependencies, Stateless, with_floor


@dataclass(frozen=True, slots=True)
class Parameters:
    """Nothing to set."""


class Priority(Stateless):
    """See the module."""

    def plan(self, view: View) -> Plan:
        # `pack` reads no further than the slots, the first that does not fit, and the floor's.
        waiting = nsmallest(view.free_slots + 2, view.waiting, key=_urgency)
        order = chain(sorted(view.running, key=_urgency), waiting)
        return pack(with_floor((Want(request.id) for request in order), view), view)


def _urgency(request: RequestView) -> tuple[int, float]:
    return request.priority, request.arrival


def make(parameters: Parameters, deps: Dependencies) -> Priority:
    return Priority()
