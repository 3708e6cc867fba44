"""Which prompts to finish in time: one machine, jobs with due times, as few late as can be."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from typing import NamedTuple


class Job(NamedTuple):
    """A prompt that competes for time. Ordered by `due`, when its last chunk must be done.

    work: seconds of prefill; load: share of all time that its decoding will take; density: value
    of the promise per second of work to come.
    """

    due: float
    id: str
    work: float
    load: float
    density: float


class Supply(NamedTuple):
    """Seconds of prefill to come, by its price: so many in this step, then a share of all time.

    This step ends `step` seconds from now at the latest; `first` is what it has for prompts.
    """

    step: float
    first: float
    share: float

    def until(self, span: float, load: float) -> float:
        """Seconds of prefill within `span` seconds from now, beside `load` of further decoding."""
        first = self.first - max(0.0, self.step - span)
        return first + max(0.0, self.share - load) * max(0.0, span - self.step)


def choose(jobs: Sequence[Job], now: float, supply: Supply) -> tuple[list[Job], list[Job]]:
    """Pick the prompts to finish in time, one after another, with the time that there is.

    `jobs` in order of due time. Moore and Hodgson: take each in turn; when one comes late, drop
    the job of least density among those taken. With equal weights and no load the fewest possible
    are dropped. Returns (kept, dropped), both by due time; O(n log n).
    """
    by_density: list[tuple[float, str]] = []
    kept: dict[str, Job] = {}
    dropped: set[str] = set()
    work = load = 0.0
    for job in jobs:
        kept[job.id] = job
        heappush(by_density, (job.density, job.id))
        work += job.work
        load += job.load
        while kept and work > supply.until(job.due - now, load):
            _, worst = heappop(by_density)
            gone = kept.pop(worst)
            work -= gone.work
            load -= gone.load
            dropped.add(worst)
    return list(kept.values()), [job for job in jobs if job.id in dropped]
