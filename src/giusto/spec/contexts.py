"""What followed each short run of tokens before: the memory of model-free drafting.

After prompt look-up decoding and SuffixDecoding (arXiv 2411.04975). Differs from the latter: runs
are bounded and counted in a dictionary instead of a suffix tree, which is as exact up to the bound.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

#: Followers of one run that are remembered; a run with more tells nothing.
_MOST_FOLLOWERS = 16

Run = tuple[int, ...]


class Contexts:
    """Counts of the tokens that followed each run of 1 to `longest` tokens.

    `most` bounds the runs that are kept, the least recently seen going first; None keeps all.
    """

    def __init__(self, longest: int, most: int | None = None) -> None:
        self.longest = longest
        self._most = most
        self._followers: OrderedDict[Run, dict[int, int]] = OrderedDict()

    def learn(self, tokens: Sequence[int], start: int) -> None:
        """Count what the tokens from `start` on followed; those before it were counted."""
        followers = self._followers
        for place in range(max(start, 1), len(tokens)):
            token = tokens[place]
            for length in range(1, min(self.longest, place) + 1):
                run = tuple(tokens[place - length : place])
                counts = followers.get(run)
                if counts is None:
                    followers[run] = {token: 1}
                    continue
                # The latest goes last: among equal counts it is the likelier.
                counts[token] = counts.pop(token, 0) + 1
                if len(counts) > _MOST_FOLLOWERS:
                    del counts[next(iter(counts))]
                if self._most is not None:
                    followers.move_to_end(run)
        if self._most is not None:
            while len(followers) > self._most:
                followers.popitem(last=False)

    def after(self, tail: Sequence[int]) -> tuple[int, dict[int, int]]:
        """What followed the longest known run at the end of `tail`, and that run's length.

        Counts by token, the most recently seen last; (0, {}) where nothing is known.
        """
        for length in range(min(self.longest, len(tail)), 0, -1):
            counts = self._followers.get(tuple(tail[len(tail) - length :]))
            if counts is not None:
                return length, counts
        return 0, {}
