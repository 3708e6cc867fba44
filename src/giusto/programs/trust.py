"""Whether likeness has told more than counting calls: the quantiles check the match.

While a program runs, both say at a few moments how many output tokens are still to come; when it
has ended, both are compared with what came. An app's match is used unless its median relative error
over the last of these, each counting for the calls until the next, is well above the quantiles'.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import NamedTuple

from giusto.programs.match import weighted_median

#: Errors remembered an app, apps remembered, and errors before which the match is trusted.
WINDOW, APPS, ENOUGH = 1000, 32, 50
#: The match is left for a median error this many times the quantiles'. Less may be chance, for the
#: errors of one program go together: a thousand are of some tens of programs.
MARGIN = 1.5
#: The ways: by likeness to programs of history, by the app's quantiles after as many calls.
MATCHED, COUNTED = "matched", "counted"


@dataclass(slots=True)
class Claim:
    """What was said of the output tokens to come when so many had come, and for how many calls."""

    tokens: int
    matched: float
    counted: float
    calls: int = 1


class Judged(NamedTuple):
    """One claim of one way: the output tokens that it told, and those that came."""

    way: str
    told: float
    came: float


@dataclass(slots=True)
class _Errors:
    matched: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    counted: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    is_in_use: bool = True


class Trust:
    """Per app; bounded. After a restart every app's match is trusted again."""

    def __init__(self) -> None:
        self._apps: OrderedDict[str | None, _Errors] = OrderedDict()

    def in_match(self, app: str | None) -> bool:
        """Whether the match is to be used for this app."""
        errors = self._apps.get(app)
        return errors is None or errors.is_in_use

    def judge(self, app: str | None, claims: list[Claim], tokens: int) -> list[Judged]:
        """Compare what was said of a program with the tokens that it had in the end.

        Returns what can be judged: nothing of a moment after which no token came.
        """
        judged = []
        errors = self._apps.setdefault(app, _Errors())
        self._apps.move_to_end(app)
        for claim in claims:
            left = tokens - claim.tokens
            if left > 0:
                errors.matched.append((abs(claim.matched - left) / left, claim.calls))
                errors.counted.append((abs(claim.counted - left) / left, claim.calls))
                judged += [Judged(MATCHED, claim.matched, left)]
                judged += [Judged(COUNTED, claim.counted, left)]
        if len(errors.matched) >= ENOUGH:
            matched = weighted_median(list(errors.matched))
            errors.is_in_use = matched <= MARGIN * weighted_median(list(errors.counted))
        while len(self._apps) > APPS:
            self._apps.popitem(last=False)
        return judged
