"""Discrete events in total order on a virtual clock."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum
from heapq import heappop, heappush
from itertools import count


class Order(IntEnum):
    """Who goes first among events of one instant: what ends, what arrives, what is decided."""

    END = 0
    ARRIVAL = 1
    PLAN = 2


class Kernel:
    """A heap of (time, order, number, action). The same calls give the same run."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, int, Callable[[], None]]] = []
        self._numbers = count()

    def at(self, time: float, order: Order, action: Callable[[], None]) -> None:
        """Call `action` at `time`, seconds; what is past happens now."""
        heappush(self._heap, (max(time, self.now), order, next(self._numbers), action))

    def run(self, until: float = math.inf) -> None:
        """Let time pass until nothing is left to happen, or the next event lies after `until`."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, _, action = heappop(heap)
            action()
