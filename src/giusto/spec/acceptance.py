"""How often candidates of a kind are the target's own token, learned as they are verified."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from giusto.spec.tree import TokenTree

#: How many verdicts a prior stands for.
_PRIOR_WEIGHT = 4.0
#: Beyond so many verdicts the older ones fade, so that a change of workload shows.
_MEMORY = 400.0


@dataclass(slots=True)
class _Tally:
    tried: float
    right: float


class Acceptance:
    """Chances by kind: the mean of a prior and of recent verdicts.

    A chance is conditional: of a candidate whose parent was right. Calibrated by construction, as
    long as the kinds tell apart what differs (AdaServe takes the drafter's own probabilities as
    they are; adaserve.md 6.2.6).
    """

    def __init__(self) -> None:
        self._tallies: dict[Hashable, _Tally] = {}

    def chance(self, kind: Hashable, prior: float) -> float:
        """How likely a candidate of this kind is right once its parent is, in (0, 1)."""
        tally = self._tallies.get(kind)
        if tally is None:
            return prior
        return (tally.right + prior * _PRIOR_WEIGHT) / (tally.tried + _PRIOR_WEIGHT)

    def learn(self, tree: TokenTree, drawn: Sequence[int]) -> None:
        """Take the verdicts on a tree's candidates: `drawn` is what the target drew after it."""
        for node, is_right in tree.verdicts(drawn):
            tally = self._tallies.setdefault(tree.kinds[node], _Tally(0.0, 0.0))
            if tally.tried >= _MEMORY:
                tally.tried *= 0.5
                tally.right *= 0.5
            tally.tried += 1
            tally.right += is_right
