"""A program's deadline split over its stages, and the time that a stage is taken to need.

A stage's time is an estimate of work, not a recorded duration: the seconds of its tools, and the
tokens of its longest call at the present seconds per token. What a call took in history depends on
the load of that day, on its queue and on who ran beside it; its tokens do not.

Source: Tempo (arXiv 2504.20068; JITServe), section 4.2. Differs: tools count; a stage weighs by
its work at today's speed, not by its recorded time; the present stage is included, as in the paper
and unlike its code, which gives the first stage no time at all.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence

#: A prompt token's work in output tokens. Prefill makes tens to hundreds of tokens in the time of a
#: decode step, and most of an agent's prompt is in the prefix cache.
PROMPT_WEIGHT = 0.01
#: Seconds per output token before a call has ended, and how many of the last calls are remembered.
FIRST_GUESS = 0.03
WINDOW = 101


def share(done: float, ahead: float) -> float:
    """The part of the whole that is done; 1 where there is nothing to divide."""
    whole = done + ahead
    return done / whole if done > 0 and whole > 0 else 1.0


def cumulative(times: Sequence[float]) -> list[float]:
    """For each stage the share of the whole time that has passed once it ends, the last one's 1."""
    shares, done, whole = [], 0.0, sum(times)
    for time in times:
        done += time
        shares.append(share(done, max(0.0, whole - done)))
    return shares


def sub_deadline(opened: float, deadline: float, part: float) -> float:
    """When a stage is due that ends once `part` of the program's time has passed.

    An instant on the clock of `opened`; it may lie in the past, which is for the caller to see.
    """
    return opened + part * deadline


class TokenTime:
    """Seconds per output token: the median over the last calls that ended, waits left out."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    @property
    def seconds(self) -> float:
        return self._sorted[len(self._sorted) // 2] if self._sorted else FIRST_GUESS

    def observe(self, first: float | None, last: float | None, tokens: int) -> None:
        """Learn from a call whose tokens came from `first` to `last`; one token teaches nothing."""
        if first is None or last is None or tokens < 2 or not 0 < last - first < float("inf"):
            return
        if len(self._recent) == WINDOW:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        seconds = (last - first) / (tokens - 1)
        self._recent.append(seconds)
        insort(self._sorted, seconds)
