"""How many calls the programs of an app make, learned from those that closed."""

from __future__ import annotations

from giusto.core.events import Arrived, ProgramClosed

#: Weight of the newest program in the running mean.
RATE = 0.1


class CallCounts:
    """A running mean by app."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[str | None, int]] = {}
        self._means: dict[str | None, float] = {}

    def expected(self, app: str | None) -> float:
        """Calls of a program of this app; 1 before any history."""
        return self._means.get(app, 1.0)

    def observe(self, event: object) -> None:
        if isinstance(event, Arrived) and event.request.program is not None:
            program = event.request.program
            self._open[program] = (event.request.app, self._open.get(program, (None, 0))[1] + 1)
        elif isinstance(event, ProgramClosed):
            app, count = self._open.pop(event.program_id, (None, 0))
            mean = self._means.get(app)
            if count:
                self._means[app] = count if mean is None else mean + RATE * (count - mean)
