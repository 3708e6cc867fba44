"""Shortest true remaining work first (simulator only): an upper reference, not a policy to serve.

It knows how long each answer will be, which nobody does. What it gains over `sjf` is what better
length predictions could gain.

Source: Schrage 1968: shortest remaining processing time has the least mean response time on one
machine. Differs: nobody in the queue takes a resident's place, for what that had computed would be
lost, and whoever has waited half a starvation span for a first token gets a twentieth of the step;
a batch is not one machine either, so this is a reference and no proven bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import nsmallest
from itertools import chain

from giusto.core.pack import pack
from giusto.core.plan import Plan, View, Want
from giusto.core.request import RequestView
from giusto.policies.base import Dependencies, Stateless, TrueLengths, with_floor

#: It sees what no policy may: tests of that rule leave it out, drivers other than a simulator fail.
IS_ORACLE = True


@dataclass(frozen=True, slots=True)
class Parameters:
    """Nothing to set."""


class SrptOracle(Stateless):
    """See the module."""

    def __init__(self, truth: TrueLengths) -> None:
        self.truth = truth

    def plan(self, view: View) -> Plan:
        # `pack` reads no further than the slots, the first that does not fit, and the floor's.
        waiting = nsmallest(view.free_slots + 2, view.waiting, key=self._work)
        order = chain(sorted(view.running, key=self._work), waiting)
        return pack(with_floor((Want(request.id) for request in order), view), view)

    def _work(self, request: RequestView) -> tuple[int, float]:
        """Tokens to come, in truth; ties by arrival."""
        left = self.truth.output_tokens(request.id) - request.num_output_tokens
        return request.num_remaining_tokens + left, request.arrival


def make(parameters: Parameters, deps: Dependencies) -> SrptOracle:
    if deps.truth is None:
        raise ValueError("only the simulator knows true lengths; serve with another, such as sjf")
    return SrptOracle(deps.truth)
