"""What an app's programs still had before them after so many calls: no matching, no likeness.

The answer where history has nothing alike, and the yardstick for what matching says. An app is
known from its first ended program on. Counts of calls are told apart up to a number, then by their
logarithm, so that what is kept does not grow with a program's length.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from math import log

from giusto.programs.graph import CALLS, MEASURES, Graph, Row

#: Up to so many calls each count is told apart; then a bucket spans a sixteenth of itself.
EXACT = 48
RATIO = 1.06
#: Programs remembered a bucket, and apps remembered at all, the longest unused forgotten first.
WINDOW, APPS = 50, 32


def bucket(calls: int) -> int:
    """The bucket of a number of calls done."""
    if calls <= EXACT:
        return calls
    return EXACT + 1 + int(log(calls / (EXACT + 1)) / log(RATIO))


class Quantiles:
    """Per app and bucket the rows of the last programs that came there.

    A program is in a bucket with what it had left on entering it. The app None has every app's.
    """

    def __init__(self) -> None:
        self._apps: OrderedDict[str | None, dict[int, deque[Row]]] = OrderedDict()

    def observe(self, graph: Graph) -> None:
        """Learn from a program that ended."""
        entered: dict[int, Row] = {}
        for done, row in enumerate(graph.rows(), start=1):
            entered.setdefault(bucket(done), row)
        for app in dict.fromkeys((graph.app, None)):
            buckets = self._apps.setdefault(app, {})
            self._apps.move_to_end(app)
            for number, row in entered.items():
                buckets.setdefault(number, deque(maxlen=WINDOW)).append(row)
        while len(self._apps) > APPS:
            self._apps.popitem(last=False)

    def rows(self, app: str | None, done: int, *, going_on: bool = False) -> list[Row]:
        """What programs of an app had left after `done` calls; with `going_on` those with any.

        Where none made so many calls: of the bucket that the longest ones reached.
        """
        buckets = self._apps.get(app, {})
        for number in range(bucket(max(1, done)), 0, -1):
            rows = buckets.get(number, ())
            found = [row for row in rows if row[CALLS] > 0] if going_on else list(rows)
            if found:
                return found
        return []

    def ahead(
        self, app: str | None, done: int, *, quantile: float = 0.5, going_on: bool = False
    ) -> Row | None:
        """The quantile of each measure, or None where nothing is known of the app."""
        rows = self.rows(app, done, going_on=going_on)
        if not rows:
            return None
        return tuple(
            middle(sorted(row[measure] for row in rows), quantile)
            for measure in range(len(MEASURES))
        )


def middle(values: list[float], quantile: float) -> float:
    """The quantile of sorted values, between two where it falls between them."""
    place = quantile * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])
