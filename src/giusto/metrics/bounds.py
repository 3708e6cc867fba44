"""Did the length bounds that were told at arrival hold? Compared as requests end."""

from __future__ import annotations

from collections.abc import Iterator

from giusto.core.events import LEVELS, Estimated
from giusto.core.request import FinishReason
from giusto.metrics.records import Record

#: Chances whose bounds are judged.
JUDGED = (0.9, 0.95)
#: Requests whose bounds are remembered; beyond these the oldest go unjudged.
KEPT = 100_000


class Bounds:
    """Bounds of open requests, by request: the first that were told of each."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[float, ...]] = {}

    def tell(self, event: Estimated) -> None:
        """Remember what a request was expected to come to."""
        if event.request_id in self._told or len(event.lengths) != len(LEVELS):
            return
        if len(self._told) >= KEPT:
            del self._told[next(iter(self._told))]
        self._told[event.request_id] = event.lengths

    def judge(self, record: Record) -> Iterator[tuple[float, bool, float]]:
        """Yield level, whether its bound held, and bound over length, of one that has ended.

        Only where the output ended by itself: one that was cut or cancelled has no length.
        """
        told = self._told.pop(record.id, None)
        length = len(record.token_times)
        if told is None or record.finish is not FinishReason.STOP or not length:
            return
        for level in JUDGED:
            bound = told[LEVELS.index(level)]
            yield level, length <= bound, bound / length
