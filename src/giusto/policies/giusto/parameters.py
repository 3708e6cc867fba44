"""What was tuned, and a switch for each rule, so that its worth can be measured."""

from __future__ import annotations

from dataclasses import dataclass

_SHARES = ("headroom", "spare", "blocking")


@dataclass(frozen=True, slots=True)
class Parameters:
    """What was tuned (`docs/policies/giusto.md` says how), not what a user must set.

    headroom: share of the tightest slack that a step may use for the sake of a promise; spare: for
    other work; blocking: share of the tightest TTFT target that a step may last, for an arrival
    waits until it ends; window: how many waiting prompts are weighed against each other; level:
    chance of the bounds on lengths that deadlines are planned with; keep_up: while steps of this
    share of the tightest TPOT target keep up with what comes in, deadlines may not make them
    shorter than that takes, 0 for never.

    A rule that can be switched off: yields, who has no promise to keep gives its place to one who
    has. And on: sheds, who waits and cannot be in time, whatever is done, is refused and not served
    late.
    """

    headroom: float = 0.5
    spare: float = 0.25
    blocking: float = 0.5
    window: int = 32
    level: float = 0.4
    keep_up: float = 0.5
    yields: bool = True
    sheds: bool = False

    def __post_init__(self) -> None:
        for name in _SHARES:
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in (0, 1], got {getattr(self, name)}")
        if not 0 < self.level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {self.level}")
        if self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")
        if not 0 <= self.keep_up <= 1:
            raise ValueError(f"keep_up must lie in [0, 1], got {self.keep_up}")
