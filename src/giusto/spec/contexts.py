"""What followed each short run of tokens before: the memory of model-free drafting.

After prompt look-up decoding and SuffixDecoding (arXiv 2411.04975). Differs from the latter: runs
are bounded and counted in a dictionary instead of a suffix tree, which is as exact up to the bound.
"""

from __future__ import annotations

from collections.abc import Sequence

from giusto.spec.drafter import Ask

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


class Recollection:
    """Runs of each request, prompt and answer, and of what all were answered.

    An answer is shared unless its request is private; prompts never are.
    """

    def __init__(self, longest: int, shared_runs: int) -> None:
        self.longest = longest
        self._shared = Contexts(longest, shared_runs)
        self._own: dict[str, Contexts] = {}
        self._num_learned: dict[str, int] = {}

    def sources(self, ask: Ask) -> list[tuple[str, Contexts]]:
        """Where a request may look things up, by name, its own first; learns its new tokens."""
        own = self._own.setdefault(ask.request_id, Contexts(self.longest))
        tokens, start = ask.tokens, self._num_learned.get(ask.request_id, 0)
        if start < len(tokens):
            own.learn(tokens, start)
            self._num_learned[ask.request_id] = len(tokens)
            if start and not ask.is_private:
                before = max(0, start - self.longest)
                self._shared.learn(tokens[before:], start - before)
        return [("own", own)] if ask.is_private else [("own", own), ("shared", self._shared)]

    def forget(self, request_id: str) -> None:
        self._own.pop(request_id, None)
        self._num_learned.pop(request_id, None)
