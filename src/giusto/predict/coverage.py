"""How often length bounds held, and how wide they were: numbers for metrics and reports."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

#: Endings that a figure is taken over: the newest of a class.
WINDOW = 2000


@dataclass(frozen=True, slots=True)
class CoverageRow:
    """Bounds of one class that were meant to hold with the chance `level`.

    Of the last `count` requests that ended by themselves the share `coverage` was no longer than
    the bound given when they arrived, which was `mean_ratio` times the length on average.
    """

    service_class: str
    level: float
    count: int
    coverage: float
    mean_ratio: float


class Coverage:
    """Sliding windows of bounds and lengths by class and level."""

    def __init__(self, window: int = WINDOW) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1 ending, got {window}")
        self._size = window
        self._windows: dict[tuple[str, float], _Window] = {}

    def add(self, service_class: str, level: float, bound: float, length: int) -> None:
        """Count a request that ended with `length` tokens, at least 1, under this bound."""
        key = (service_class, level)
        if key not in self._windows:
            self._windows[key] = _Window(self._size)
        self._windows[key].add(length <= bound, bound / length)

    def report(self) -> list[CoverageRow]:
        """A row per class and level, in order."""
        return [
            CoverageRow(
                service_class,
                level,
                len(window.endings),
                window.covered / len(window.endings),
                window.ratios / len(window.endings),
            )
            for (service_class, level), window in sorted(self._windows.items())
        ]


class _Window:
    """Sums over the last so many endings, kept up to date so that a report costs nothing."""

    __slots__ = ("_size", "covered", "endings", "ratios")

    def __init__(self, size: int) -> None:
        self.endings: deque[tuple[bool, float]] = deque()
        self.covered = 0
        self.ratios = 0.0
        self._size = size

    def add(self, is_covered: bool, ratio: float) -> None:
        self.endings.append((is_covered, ratio))
        self.covered += is_covered
        self.ratios += ratio
        if len(self.endings) > self._size:
            was_covered, old = self.endings.popleft()
            self.covered -= was_covered
            self.ratios -= old
