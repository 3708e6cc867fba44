"""Earliest due first: the next token of a stream or the last one of a deadline, whoever is first.

What is missed is never urgent: it comes after all that can still be kept, best effort last.

Source: Liu and Layland 1973, on the due times of `core.slo`. Differs: missed requests yield, and
whoever has waited half a starvation span for a first token gets a twentieth of the step.
"""

from __future__ import annotations

from dataclasses import dataclass

from giusto.core.pack import pack
from giusto.core.plan import Plan, View, Want
from giusto.policies.base import Dependencies, Stateless, earliest_due, with_floor


@dataclass(frozen=True, slots=True)
class Parameters:
    """Nothing to set."""


class Edf(Stateless):
    """See the module."""

    def plan(self, view: View) -> Plan:
        order = earliest_due(view, view.waiting)
        return pack(with_floor((Want(request.id) for request in order), view), view)


def make(parameters: Parameters, deps: Dependencies) -> Edf:
    return Edf()
