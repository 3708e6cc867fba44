"""Earliest due first: the next token of a stream or the last one of a deadline, whoever is first.

What is missed is never urgent: it comes after all that can still be kept, best effort last.

Source: Liu and Layland 1973, on the due times of `core.slo`. Differs: missed requests yield, and
whoever has waited half a starvation span for a first token gets a twentieth of the step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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
        def urgency(request: RequestView) -> tuple[int, float, float]:
            when = due(request.slo, request)
            if math.isinf(when):
                return 2, request.arrival, 0.0
            is_lost = request.is_demoted or is_missed(request.slo, request, view.now)
            return int(is_lost), when, request.arrival

        order = sorted(chain(view.running, view.waiting), key=urgency)
        return pack(with_floor((Want(request.id) for request in order), view), view)


def make(parameters: Parameters, deps: Dependencies) -> Edf:
    return Edf()
