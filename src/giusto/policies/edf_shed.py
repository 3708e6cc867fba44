"""Earliest due first, without the lost: who can no longer make it is refused, or demoted.

A waiting request that has sent nothing is refused as soon as even an idle machine would be too
late for it; its client may try again elsewhere. One that has sent a token ends, without its
promise. Best effort is never refused.

Source: ours; the order is that of `edf` (Liu and Layland 1973), the test that of `shedding`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain

from giusto.core.pack import pack
from giusto.core.plan import Plan, View, Want
from giusto.policies.base import Dependencies, earliest_due, with_floor
from giusto.policies.shedding import Shedding, demotions


@dataclass(frozen=True, slots=True)
class Parameters:
    """Nothing to set."""


class EdfShed:
    """See the module."""

    def __init__(self, deps: Dependencies) -> None:
        self._shedding = Shedding(deps.latency)

    def observe(self, event: object) -> None:
        self._shedding.observe(event)

    def plan(self, view: View) -> Plan:
        waiting = view.waiting
        if lost := self._shedding.lost(view):
            gone = {request.id for request in lost}
            waiting = [request for request in waiting if request.id not in gone]
        wants = (Want(request.id) for request in earliest_due(view, waiting))
        refused = self._shedding.refusals(lost, waiting, view)
        plan = pack(with_floor(wants, view), view, reject=refused)
        return replace(plan, demote=demotions(chain(view.running, view.waiting), view.now))


def make(parameters: Parameters, deps: Dependencies) -> EdfShed:
    return EdfShed(deps)
