"""What happened, told to whoever asked: policy, predictor, programs, metrics, the SSE stream.

Frozen plain data. Times are seconds on the driver's clock. One `Stepped` per step carries the
whole batch as tuples; there is no object per token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from giusto.core.plan import PreemptHow, StepOutcome
from giusto.core.request import FinishReason, Reason, RequestView


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request came, its `slo` and `origin` resolved; it waits, unless a `Rejected` follows.

    `request` is a window on the live one: who keeps it sees its progress until it ends.
    """

    request: RequestView
    now: float


#: Chances at which length bounds are told.
LEVELS = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Estimated:
    """How long a request's whole output may be, by a model off the step path; told by `inform`.

    `lengths` are tokens: quantiles of the whole output, never falling, at the chances `LEVELS`.
    """

    request_id: str
    lengths: tuple[float, ...]
    now: float


@dataclass(frozen=True, slots=True)
class Foretold:
    """What was said of a program under way, and what came; told by `inform` when it has ended.

    `way` is how it was foretold; `told` and `came` are output tokens from then on.
    """

    way: str
    told: float
    came: float
    now: float


class Feed(Protocol):
    """Where a driver gets what predictors found out; asked before each plan, it never waits."""

    def poll(self, now: float) -> Iterable[Estimated | Foretold]: ...


@dataclass(frozen=True, slots=True)
class Admitted:
    """A waiting request became resident for the first time; `cached_tokens` came from a prefix."""

    request_id: str
    now: float
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Resumed:
    """A preempted request became resident again.

    `cached_tokens` came from a prefix, or with its blocks from host memory.
    """

    request_id: str
    now: float
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Preempted:
    """A resident request lost its blocks; `how` says whether what they held is lost too."""

    request_id: str
    now: float
    how: PreemptHow = PreemptHow.RECOMPUTE


@dataclass(frozen=True, slots=True)
class Stepped:
    """A step was committed; the outcome has its shape, its times and every token."""

    outcome: StepOutcome
    now: float


@dataclass(frozen=True, slots=True)
class Demoted:
    """A request that has sent a token goes on without its promise."""

    request_id: str
    now: float
    reason: Reason


@dataclass(frozen=True, slots=True)
class Finished:
    """A request ended with an answer, a cancel or an error; `message` says what the error was."""

    request_id: str
    now: float
    reason: FinishReason
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A request was refused: at the door, or shed before its first token."""

    request_id: str
    now: float
    reason: Reason
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class ProgramOpened:
    """The first call of a program with this id arrived."""

    program_id: str
    now: float
    deadline: float | None


@dataclass(frozen=True, slots=True)
class ProgramClosed:
    """A program ended: `ended` is its last call's end; `met` is None without a deadline.

    `num_calls` is how many of its calls were answered.
    """

    program_id: str
    now: float
    ended: float
    met: bool | None
    app: str | None = None
    num_calls: int = 0


Event = (
    Arrived
    | Estimated
    | Foretold
    | Admitted
    | Resumed
    | Preempted
    | Stepped
    | Demoted
    | Finished
    | Rejected
    | ProgramOpened
    | ProgramClosed
)
