"""What followed each short run of tokens before: the memory of model-free drafting.

After prompt look-up decoding and SuffixDecoding (arXiv 2411.04975). Differs from the latter: runs
are bounded and counted in a dictionary instead of a suffix tree, which is as exact up to the bound.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Followers of one run that are remembered; a run with more tells nothing.
_MOST_FOLLOWERS = 16
#: A single follower is kept as one integer, token and count: most runs have no other.
_SHIFT = 24
_COUNT = (1 << _SHIFT) - 1

#: By the hash of a run: one follower with its count, or counts by token, the latest last. Two runs
#: of one hash are taken for each other, which costs a wrong guess and nothing else.
Memory = dict[int, int | dict[int, int]]


class Contexts:
    """Counts of the tokens that followed each run of 1 to `longest` tokens.

    `most` bounds the runs that are kept: they live in two generations of half as many, the older
    of which is dropped when the younger is full; what is seen again grows young. None keeps all.
    """

    def __init__(self, longest: int, most: int | None = None) -> None:
        self.longest = longest
        self._half = None if most is None else max(1, most // 2)
        self._young: Memory = {}
        self._old: Memory = {}

    def learn(self, tokens: Sequence[int], start: int) -> None:
        """Count what the tokens from `start` on followed; those before it were counted."""
        for place in range(max(start, 1), len(tokens)):
            token = tokens[place]
            for length in range(1, min(self.longest, place) + 1):
                self._count(hash(tuple(tokens[place - length : place])), token)

    def after(self, tail: Sequence[int]) -> tuple[int, dict[int, int]]:
        """What followed the longest known run at the end of `tail`, and that run's length.

        Counts by token, the most recently seen last; (0, {}) where nothing is known.
        """
        young, old = self._young, self._old
        for length in range(min(self.longest, len(tail)), 0, -1):
            key = hash(tuple(tail[len(tail) - length :]))
            known = young.get(key)
            if known is None and (known := old.get(key)) is None:
                continue
            if isinstance(known, int):
                known = {known >> _SHIFT: known & _COUNT}
            return length, known
        return 0, {}

    def _count(self, key: int, token: int) -> None:
        young = self._young
        known = young.get(key)
        if known is None:
            known = self._old.pop(key, None)
            if self._half is not None and len(young) >= self._half:
                self._old, self._young = young, {}
                young = self._young
        if known is None:
            young[key] = token << _SHIFT | 1
        elif isinstance(known, int):
            other, count = known >> _SHIFT, known & _COUNT
            young[key] = known + 1 if other == token else {other: count, token: 1}
        else:
            # The latest goes last: among equal counts it is the likelier.
            known[token] = known.pop(token, 0) + 1
            if len(known) > _MOST_FOLLOWERS:
                del known[next(iter(known))]
            young[key] = known
