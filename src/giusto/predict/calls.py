"""How many calls the programs of an app make, learned from those that closed."""

from __future__ import annotations

from giusto.core.events import ProgramClosed

#: Weight of the newest program in the running mean.
RATE = 0.1


class CallCounts:
    """A running mean by app."""

    def __init__(self) -> None:
        self._means: dict[str | None, float] = {}

    def expected(self, app: str | None) -> float:
        """Calls of a program of this app; 1 before any history."""
        return self._means.get(app, 1.0)

    def observe(self, event: object) -> None:
        if isinstance(event, ProgramClosed) and event.num_calls:
            mean, count = self._means.get(event.app), event.num_calls
            self._means[event.app] = count if mean is None else mean + RATE * (count - mean)
