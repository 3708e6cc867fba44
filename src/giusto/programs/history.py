"""Programs that ended, at most so many: which to keep is settled by use and by kind.

Each has a popularity, 1 when it ends, more whenever one that ends later was like it, a tenth less
with every hour. Beyond the capacity the least popular one goes, medoids last: of each app's
programs the medoids stand for the kinds there are, so that a rare kind outlives a flood of others.

The medoids are kept up one program at a time: a new one joins the medoid it is most like, and takes
its place if it is more like the latest of that group. So an ending costs a bounded number of
comparisons, where clustering all of history anew would hold up a step.

Source: Tempo (arXiv 2504.20068; JITServe), section 4.2. Differs: medoids are swapped one proposal
at a time, decide what is kept, and are per app; running programs are compared with all that is
kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from giusto.programs.graph import Graph
from giusto.programs.match import Neighbours, kernel

CAPACITY = 500
#: What is left of a popularity after an hour.
HOURLY = 0.9
#: An app has one medoid, and one more for so many of its programs.
PER_MEDOID, MOST_MEDOIDS = 100, 6
#: Calls that are compared of two whole programs, and members of a group that judge its medoid.
COMPARED, JUDGES = 16, 16


@dataclass(slots=True)
class Past:
    """A program of history. `popularity` is as of `stamp`, None until the clock is known."""

    graph: Graph
    popularity: float = 1.0
    stamp: float | None = None

    def popularity_at(self, now: float) -> float:
        """What is left of it; a clock that jumped back takes nothing off."""
        hours = 0.0 if self.stamp is None else max(0.0, now - self.stamp) / 3600
        return self.popularity * float(HOURLY**hours)

    def settle(self, now: float, more: float = 0.0) -> None:
        """Bring it up to `now` and add to it."""
        self.popularity = self.popularity_at(now) + more
        self.stamp = now


@dataclass(slots=True)
class _Group:
    """A medoid and the latest that joined it."""

    medoid: Graph
    latest: deque[Graph] = field(default_factory=lambda: deque(maxlen=JUDGES))


class History:
    """Bounded; iterates over what it keeps, oldest first."""

    def __init__(self, past: Iterable[Past] = (), *, capacity: int = CAPACITY) -> None:
        if capacity < 1:
            raise ValueError(f"a history holds at least one program, got capacity {capacity}")
        self.capacity = capacity
        self._past: dict[Graph, Past] = {}
        self._groups: dict[str | None, list[_Group]] = {}
        self._counts: dict[str | None, int] = {}
        self._is_clock_known = False
        for each in past:
            self._insert(each, 0.0 if each.stamp is None else each.stamp)

    def __len__(self) -> int:
        return len(self._past)

    def past(self, now: float | None = None) -> list[Past]:
        """All that is kept; with `now`, as copies with popularities as of then and no stamp."""
        if now is None:
            return list(self._past.values())
        return [Past(each.graph, each.popularity_at(now)) for each in self._past.values()]

    def candidates(self, app: str | None) -> list[Graph]:
        """Those that a program of this app may be like: not where both state an app and differ."""
        return [g for g in self._past if app is None or g.app is None or g.app == app]

    def medoids(self, app: str | None) -> list[Graph]:
        """The programs that stand for an app's kinds."""
        return [group.medoid for group in self._groups.get(app, ())]

    def add(self, graph: Graph, now: float) -> None:
        """Keep a program that ended."""
        self._wake(now)
        self._insert(Past(graph, 1.0, now), now)

    def credit(self, neighbours: Neighbours, now: float) -> None:
        """Share one popularity among those that a program was like, by their weights."""
        self._wake(now)
        whole = sum(weight for _, weight in neighbours)
        for graph, weight in neighbours:
            past = self._past.get(graph)
            if past is not None and whole > 0:
                past.settle(now, weight / whole)

    def _wake(self, now: float) -> None:
        """Those read from a file have been popular since the clock began to be known."""
        if not self._is_clock_known:
            self._is_clock_known = True
            for past in self._past.values():
                past.stamp = now if past.stamp is None else past.stamp

    def _insert(self, past: Past, now: float) -> None:
        app = past.graph.app
        self._past[past.graph] = past
        self._counts[app] = self._counts.get(app, 0) + 1
        self._join(past.graph)
        while len(self._past) > self.capacity:
            self._forget(self._least(now, past.graph))

    def _join(self, graph: Graph) -> None:
        groups = self._groups.setdefault(graph.app, [])
        allowed = min(MOST_MEDOIDS, 1 + self._counts[graph.app] // PER_MEDOID)
        if len(groups) < allowed:
            groups.append(_Group(graph))
            return
        group = max(groups, key=lambda each: similarity(each.medoid, graph))
        now, then = (
            sum(similarity(medoid, other) for other in group.latest)
            for medoid in (graph, group.medoid)
        )
        group.latest.append(graph)
        if now > then:
            group.medoid = graph

    def _least(self, now: float, newest: Graph) -> Graph:
        kept = {group.medoid for groups in self._groups.values() for group in groups}
        kept.add(newest)
        spare = [past for past in self._past.values() if past.graph not in kept]
        if not spare:
            spare = [past for past in self._past.values() if past.graph is not newest]
        least = min(spare, key=lambda past: past.popularity_at(now))
        return least.graph

    def _forget(self, graph: Graph) -> None:
        del self._past[graph]
        self._counts[graph.app] -= 1
        groups = [group for group in self._groups[graph.app] if group.medoid is not graph]
        if groups:
            self._groups[graph.app] = groups
        elif not self._counts[graph.app]:
            del self._groups[graph.app], self._counts[graph.app]
        else:
            self._groups[graph.app] = []


def similarity(one: Graph, other: Graph) -> float:
    """Of two whole programs: their first calls compared, times the ratio of their stage counts."""
    count = min(COMPARED, one.num_calls, other.num_calls)
    total = 0.0
    for index in range(count):
        total += kernel(one.log_prompts[index] - other.log_prompts[index])
        total += kernel(one.log_outputs[index] - other.log_outputs[index])
    few, many = sorted((one.num_stages, other.num_stages))
    return total / (2 * count) * few / many
