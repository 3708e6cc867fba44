"""Largest service density first: what a request is worth per second of generation it still needs.

Worth is the soft service gain: all that a request could earn, less what lateness takes away. At the
start of each frame a waiting request takes the place of the least dense resident if it is denser
by more than the mean of all residents; in between, the batch is kept and free slots go by density.

Source: Tempo (arXiv 2504.20068, version 1), with `giusto.policies.density`. Differs: seconds per
token are those of recent steps, not the request's own TPOT; calls of a program share its density;
best effort evicts nobody; and whoever has waited half a starvation span for a first token gets a
twentieth of the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from giusto.core.plan import Plan, View
from giusto.core.request import RequestView
from giusto.policies.base import Dependencies
from giusto.policies.density import Densities, Ranking
from giusto.policies.frames import Frames, exchange, serve


@dataclass(frozen=True, slots=True)
class Parameters(Ranking):
    """As `Ranking`; and frame: steps from one exchange to the next; swaps: residents that may be
    exchanged at each.
    """

    w_decode: float = 2.0
    frame: int = 20
    swaps: int = 20

    def __post_init__(self) -> None:
        Ranking.__post_init__(self)
        if self.frame < 1:
            raise ValueError(f"frame must be at least 1, got {self.frame}")
        if self.swaps < 0:
            raise ValueError(f"swaps must be at least 0, got {self.swaps}")


class Tempo:
    """See the module."""

    def __init__(self, parameters: Parameters, deps: Dependencies) -> None:
        self.parameters = parameters
        self.frames = Frames(parameters.frame)
        self.densities = Densities(parameters, deps, self.frames)

    def observe(self, event: object) -> None:
        self.densities.observe(event)

    def plan(self, view: View) -> Plan:
        densities = self.densities
        densities.settle(view.now)
        if not view.running or not self.frames.is_opening(view):
            # `pack` reads no further than the slots, the first that does not fit, and the floor's.
            most = view.free_slots + 2 if view.free_slots else 0
            return serve(view, densities.rank, densities.first_waiting(view, most))
        mean = fmean(map(densities.density, view.running))

        def pays(new: RequestView, old: RequestView) -> bool:
            return densities.density(new) > densities.density(old) + mean

        entrants = densities.first_waiting(view, view.free_slots + self.parameters.swaps + 2)
        victims = sorted(densities.evictable(view), key=densities.rank, reverse=True)
        entering, leaving = exchange(view, entrants, victims, pays, self.parameters.swaps)
        return serve(view, densities.rank, entering, leaving)


def make(parameters: Parameters, deps: Dependencies) -> Tempo:
    return Tempo(parameters, deps)
