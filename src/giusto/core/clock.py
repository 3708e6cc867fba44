"""Clocks are owned by drivers; everything below a driver takes `now` as a number.

After trio's Clock: a random offset makes any accidental use of the raw clock visible at once.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Protocol


class Clock(Protocol):
    """Tells the time in seconds; only differences have a meaning."""

    def now(self) -> float: ...


@dataclass(frozen=True, slots=True)
class WallClock:
    """Monotonic wall time plus an offset.

    Two processes on one machine agree when they are given the same offset.
    """

    offset: float = field(default_factory=lambda: random.Random().uniform(1e4, 1e5))

    def now(self) -> float:
        return time.monotonic() + self.offset


@dataclass(slots=True)
class VirtualClock:
    """Time that moves only when told to; for the simulator and for tests."""

    time: float = 0.0

    def now(self) -> float:
        return self.time

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"time cannot go back, got {seconds}")
        self.time += seconds
