"""What a driver runs beside its scheduler so that length bounds are told as events.

A feed is subscribed to the scheduler; before each plan the driver passes what `poll` returns to
`Scheduler.inform`. `forest_client.ForestFeed` is one too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Protocol

from giusto.core.events import LEVELS, Arrived, Estimated, Finished, Rejected
from giusto.core.request import RequestView
from giusto.predict.base import LengthPredictor
from giusto.predict.forest_client import Answer

#: Seconds of a core that a fit or an answer is taken to cost in virtual time.
VIRTUAL_COST = 0.01


class Announcer:
    """Tells the bounds of a predictor that is asked on the spot, once per arrival; for metrics."""

    def __init__(self, lengths: LengthPredictor) -> None:
        self._lengths = lengths
        self._new: dict[str, RequestView] = {}

    def observe(self, event: object) -> None:
        match event:
            case Arrived(request):
                self._new[request.id] = request
            case Finished(request_id) | Rejected(request_id):
                self._new.pop(request_id, None)

    def poll(self, now: float) -> list[Estimated]:
        if not self._new:
            return []
        told = [Estimated(r.id, self._bounds(r), now) for r in self._new.values()]
        self._new.clear()
        return told

    def _bounds(self, request: RequestView) -> tuple[float, ...]:
        emitted = request.num_output_tokens
        return tuple(emitted + self._lengths.remaining(request, level) for level in LEVELS)


class Desk(Protocol):
    """What `InlineForest` needs of `forest_worker.Desk`."""

    def receive(self, message: dict[str, Any]) -> None: ...
    def work(self, now: float) -> list[dict[str, Any]]: ...


class InlineForest:
    """The worker's desk without a process, in the clock of a simulator: a `ForestFeed`'s client."""

    def __init__(self, desk: Desk, now: Callable[[], float]) -> None:
        self._desk = desk
        self._now = now

    def ask(self, request_id: str, known: Sequence[float], emitted: int = 0) -> None:
        self._desk.receive({"ask": request_id, "emitted": emitted, "known": known})

    def learn(self, known: Sequence[float], length: int) -> None:
        self._desk.receive({"learn": length, "known": known})

    def poll(self) -> list[Answer]:
        replies = self._desk.work(self._now())
        return [(reply["id"], tuple(reply["lengths"])) for reply in replies if "id" in reply]


def virtual_cpu() -> Callable[[], float]:
    """A meter of a core that runs `VIRTUAL_COST` seconds further each time it is read."""
    ticks = count()
    return lambda: VIRTUAL_COST * next(ticks)
