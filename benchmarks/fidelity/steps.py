"""Steps of an engine, real or simulated, as its events tell them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from itertools import pairwise
from pathlib import Path

from giusto.core.events import Arrived, Event, Finished, Rejected, Stepped
from giusto.core.plan import StepOutcome


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds on the engine's clock; `plan` is what deciding it took.

    `num_open` requests were there when it had ended, before anybody else came.
    """

    started: float
    ended: float
    plan: float
    num_open: int

    @property
    def seconds(self) -> float:
        return self.ended - self.started


class StepLog:
    """Subscriber of events that hands each step to `sink` once it is known who is left."""

    def __init__(self, sink: Callable[[Step], None]) -> None:
        self._sink = sink
        self._last: StepOutcome | None = None
        self._num_open = 0

    def observe(self, event: Event) -> None:
        match event:
            case Stepped(outcome):
                self.settle()
                self._last = outcome
            case Arrived():
                self.settle()
                self._num_open += 1
            case Finished() | Rejected():
                self._num_open -= 1

    def settle(self) -> None:
        """Hand over the last step."""
        if self._last is not None:
            last = self._last
            self._sink(Step(last.started, last.ended, last.times.plan, self._num_open))
            self._last = None


def gaps(steps: Iterable[Step]) -> list[float]:
    """Seconds between steps while somebody waited for the next: booking, sending, planning."""
    return [b.started - a.ended for a, b in pairwise(steps) if a.num_open]


def to_line(step: Step) -> str:
    return json.dumps(astuple(step)) + "\n"


def read(path: Path) -> list[Step]:
    return [Step(*json.loads(line)) for line in path.read_text().splitlines()]
