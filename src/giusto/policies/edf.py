"""Earliest due first: the next token of a stream or the last one of a deadline, whoever is first.

What is missed is never urgent: it comes after all that can still be kept, best effort last.

Source: Liu and Layland 1973, on the due times of `core.slo`. Differs: missed requests yield, and
whoever has waited half a starvation span for a first token gets a twentieth of the step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from heapq import nsmallest
from itertools import chain

from giusto.core.pack import pack
from giusto.core.plan import Plan, View, Want
from giusto.core.request import RequestView
from giusto.core.slo import due, is_missed
from giusto.policies.base import Dependencies, Stateless, with_floor


@dataclass(frozen=True, slots=True)
class Parameters:
    """Nothing to set."""


class Edf(Stateless):
    """See the module."""

    def plan(self, view: View) -> Plan:
        now = view.now

        def urgency(request: RequestView) -> tuple[int, float, float]:
            when = due(request.slo, request)
            if when == math.inf:
                return 2, request.arrival, 0.0
            # Before its first token a request is missed once that, or its deadline, is past due.
            has_begun = request.num_output_tokens
            is_late = is_missed(request.slo, request, now) if has_begun else now > when
            return int(is_late or request.is_demoted), when, request.arrival

        # `pack` reads no further than the slots, the first that does not fit, and the floor's.
        waiting = nsmallest(view.free_slots + 2, view.waiting, key=urgency)
        order = sorted(chain(view.running, waiting), key=urgency)
        return pack(with_floor((Want(request.id) for request in order), view), view)


def make(parameters: Parameters, deps: Dependencies) -> Edf:
    return Edf()
