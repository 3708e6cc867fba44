"""What a request was promised, when its next token is due, whether it was met, what it was worth.

The single definition: policies, metrics, server, client and simulator all import it. Times are
seconds; `origin` is the instant from which a promise counts: the request's arrival, or for a call
that is judged with its program, the program's opening.

Sources: the service gain after Tempo (arXiv 2504.20068); the cut-off gain (`alpha` = inf) is
JITServe's goodput. Differs: due times count from arrival at the server, queueing included, and a
missed promise is a state of its own, never zero slack.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

#: One in this many tokens of a stream may be late before the stream counts as missed.
LATE_TOKENS_PER = 100


@dataclass(frozen=True, slots=True)
class Streaming:
    """Token k (from 0) is due at origin + ttft + k * tpot; at least one of the two is given."""

    ttft: float | None = None
    tpot: float | None = None

    def __post_init__(self) -> None:
        if self.ttft is None and self.tpot is None:
            raise ValueError("a streaming SLO needs ttft, tpot or both")
        _require_positive(ttft=self.ttft, tpot=self.tpot)


@dataclass(frozen=True, slots=True)
class Deadline:
    """The last token is due `deadline` seconds after the request's arrival."""

    deadline: float

    def __post_init__(self) -> None:
        _require_positive(deadline=self.deadline)


@dataclass(frozen=True, slots=True)
class Program:
    """The last token of the program's last call is due `deadline` after the program opened."""

    deadline: float

    def __post_init__(self) -> None:
        _require_positive(deadline=self.deadline)


@dataclass(frozen=True, slots=True)
class BestEffort:
    """No promise but a first token within `starvation` seconds while capacity is left."""

    starvation: float = 60.0

    def __post_init__(self) -> None:
        _require_positive(starvation=self.starvation)


SLO = Streaming | Deadline | Program | BestEffort

KINDS: dict[type, str] = {
    Streaming: "streaming",
    Deadline: "deadline",
    Program: "program",
    BestEffort: "best_effort",
}


@dataclass(frozen=True, slots=True)
class Value:
    """Prices of the service gain: per prompt token, per output token, and the decay of lateness."""

    w_prompt: float = 1.0
    w_decode: float = 2.0
    alpha: float = 1.0


SOFT = Value()
CUT_OFF = Value(alpha=math.inf)


@dataclass(frozen=True, slots=True)
class Delivery:
    """What one request received.

    `token_times` has the instant of each output token, in order. `end` is the instant of a normal
    finish, None for a request that was refused, shed, cancelled, failed or is still running.
    """

    arrival: float
    prompt_tokens: int
    token_times: Sequence[float] = ()
    end: float | None = None

    @property
    def ttft(self) -> float:
        """Seconds from arrival to the first token; inf without one.

        A normal end without any token (the model stopped at once) stands in for the token.
        """
        first = self.token_times[0] if self.token_times else self.end
        return math.inf if first is None else first - self.arrival

    @property
    def tpot(self) -> float:
        """Mean seconds per output token, the first excluded (vLLM's definition); 0 below two."""
        n = len(self.token_times)
        return (self.token_times[-1] - self.token_times[0]) / (n - 1) if n > 1 else 0.0

    @property
    def e2e(self) -> float:
        """Seconds from arrival to the last token; inf unless it ended normally."""
        if self.end is None:
            return math.inf
        return (self.token_times[-1] if self.token_times else self.end) - self.arrival


class ProgressView(Protocol):
    """How far a request has come; what `due`, `slack` and `is_missed` need. A request is one.

    `cap` bounds the output length: the class's cap, never the true length.
    """

    @property
    def origin(self) -> float: ...
    @property
    def first_token(self) -> float | None: ...
    @property
    def num_output_tokens(self) -> int: ...
    @property
    def late_tokens(self) -> int: ...
    @property
    def cap(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Progress:
    """A `ProgressView` of its own, for those who have no request at hand."""

    origin: float
    first_token: float | None = None
    num_output_tokens: int = 0
    late_tokens: int = 0
    cap: int = 2048


def kind(slo: SLO) -> str:
    """Name the kind: streaming, deadline, program or best_effort."""
    return KINDS[type(slo)]


def token_due(slo: Streaming, k: int, origin: float, first_token: float | None) -> float:
    """Tell when token k (from 0) of a stream is due; inf when nothing is promised for it."""
    if slo.ttft is None:
        if k == 0 or first_token is None or slo.tpot is None:
            return math.inf
        return first_token + k * slo.tpot
    if k == 0:
        return origin + slo.ttft
    return math.inf if slo.tpot is None else origin + slo.ttft + k * slo.tpot


def due(slo: SLO, progress: ProgressView) -> float:
    """Tell when the next useful unit is due: the next token of a stream, else the last token."""
    # Asked of ten thousand waiting requests a step: plain tests are twice as fast as `match`.
    if isinstance(slo, Streaming):
        return token_due(slo, progress.num_output_tokens, progress.origin, progress.first_token)
    if isinstance(slo, BestEffort):
        return math.inf
    return progress.origin + slo.deadline


def owed(slo: SLO, progress: ProgressView, by: float) -> int:
    """Count the tokens that fall due until `by` and are not there; 0 for all but streams."""
    if not isinstance(slo, Streaming):
        return 0
    first = due(slo, progress)
    if first > by:
        return 0
    if slo.tpot is None or progress.first_token is None:
        return 1
    return 1 + math.floor((by - first) / slo.tpot)


def behind(slo: SLO, progress: ProgressView, by: float) -> float:
    """Tokens by which a stream's mean pace would lag its TPOT at `by`, were none to come until
    then; below 0 for one that is ahead, and for all that promise no pace.

    Differs from `owed`: the pace counts from the first token, whenever that came (AdaServe's A(r)).
    """
    if not isinstance(slo, Streaming) or slo.tpot is None or progress.first_token is None:
        return -math.inf
    return (by - progress.first_token) / slo.tpot - (progress.num_output_tokens - 1)


def is_missed(slo: SLO, progress: ProgressView, now: float) -> bool:
    """Tell whether the promise can no longer be kept, whatever is done from `now` on."""
    match slo:
        case Streaming(ttft):
            if ttft is not None:
                first = now if progress.first_token is None else progress.first_token
                if first > progress.origin + ttft:
                    return True
            return progress.late_tokens > progress.cap // LATE_TOKENS_PER
        case Deadline(deadline) | Program(deadline):
            return now > progress.origin + deadline
        case BestEffort():
            return False


def slack(slo: SLO, progress: ProgressView, now: float, work: float = 0.0) -> float | None:
    """Seconds to spare before work of `work` seconds must start; inf for best effort.

    None says that the promise is missed: a state of its own, so that no order by slack can
    mistake it for the most urgent. Negative slack says that it will be late, unless faster.
    """
    if is_missed(slo, progress, now):
        return None
    return due(slo, progress) - now - work


def late_tokens(slo: SLO, delivery: Delivery) -> int:
    """Count the tokens of a stream that came after they were due; 0 for other kinds."""
    if not isinstance(slo, Streaming):
        return 0
    times = delivery.token_times
    first = times[0] if times else None
    return sum(t > token_due(slo, k, delivery.arrival, first) for k, t in enumerate(times))


def is_attained(slo: SLO, delivery: Delivery, origin: float | None = None) -> bool:
    """Tell whether the promise was kept; `origin` is the program's opening for a `Program`."""
    if delivery.end is None:
        return False
    start = delivery.arrival if origin is None else origin
    match slo:
        case Streaming(ttft):
            if ttft is not None and delivery.ttft > _allowed(ttft, delivery.arrival):
                return False
            return late_tokens(slo, delivery) <= len(delivery.token_times) // LATE_TOKENS_PER
        case Deadline(deadline) | Program(deadline):
            last = delivery.token_times[-1] if delivery.token_times else delivery.end
            return last <= start + deadline
        case BestEffort():
            return True


def is_strictly_attained(slo: SLO, delivery: Delivery, origin: float | None = None) -> bool:
    """As `is_attained`, but a stream is judged by TTFT <= T and mean TPOT <= P."""
    if not isinstance(slo, Streaming):
        return is_attained(slo, delivery, origin)
    return (
        delivery.end is not None
        and (slo.ttft is None or delivery.ttft <= _allowed(slo.ttft, delivery.arrival))
        and (slo.tpot is None or _keeps_pace(slo.tpot, delivery.token_times))
    )


def is_adaserve_attained(slo: SLO, delivery: Delivery, origin: float | None = None) -> bool:
    """As AdaServe counts: mean TPOT <= P and nothing else, where a P was promised."""
    if not isinstance(slo, Streaming) or slo.tpot is None:
        return is_attained(slo, delivery, origin)
    return delivery.end is not None and _keeps_pace(slo.tpot, delivery.token_times)


def lateness_factor(allowed: float, took: float, alpha: float) -> float:
    """late(x, y): 1 when in time, else (x / y) ** alpha, 0 under cut-off gain."""
    if took <= allowed:
        return 1.0
    if math.isinf(alpha) or math.isinf(took):
        return 0.0
    return float((allowed / took) ** alpha)


def service_gain(slo: SLO, delivery: Delivery, value: Value = SOFT, weight: float = 1.0) -> float:
    """Value delivered to one request that is judged alone; best effort and program calls earn 0.

    A stream earns for the tokens that it got, even when it was cut short; a deadline only for a
    normal end. Calls of a program earn together: `program_gain`.
    """
    match slo:
        case Streaming():
            return weight * _stream_gain(slo, delivery, value)
        case Deadline(deadline):
            size = _size(delivery.prompt_tokens, len(delivery.token_times), value)
            allowed = _allowed(deadline, delivery.arrival)
            return weight * size * lateness_factor(allowed, delivery.e2e, value.alpha)
        case Program() | BestEffort():
            return 0.0


def possible_gain(
    slo: SLO, prompt_tokens: int, output_tokens: float, value: Value = SOFT, weight: float = 1.0
) -> float:
    """The gain with all factors 1; a program's call states its share, best effort has none."""
    if isinstance(slo, BestEffort):
        return 0.0
    return weight * _size(prompt_tokens, output_tokens, value)


def program_gain(
    slo: Program,
    opened: float,
    ended: float | None,
    calls: Iterable[tuple[int, int]],
    value: Value = SOFT,
    weight: float = 1.0,
) -> float:
    """Value of a program: the sum over its calls of (prompt, output) tokens, times its lateness.

    `ended` is its last call's end, None for a program that did not end normally.
    """
    took = math.inf if ended is None else ended - opened
    size = sum(_size(prompt, output, value) for prompt, output in calls)
    return weight * size * lateness_factor(_allowed(slo.deadline, opened), took, value.alpha)


@dataclass(frozen=True, slots=True)
class Bounds:
    """The tightest promise that a key may claim; None leaves a target free."""

    ttft: float | None = None
    tpot: float | None = None
    deadline: float | None = None
    weight: float | None = None


def bound(slo: SLO, bounds: Bounds) -> SLO:
    """Raise each target of `slo` to the operator's bound; the same when nothing is tighter."""
    match slo:
        case Streaming(ttft, tpot):
            return replace(slo, ttft=_raise(ttft, bounds.ttft), tpot=_raise(tpot, bounds.tpot))
        case Deadline(deadline) | Program(deadline):
            return replace(slo, deadline=max(deadline, bounds.deadline or 0.0))
        case BestEffort():
            return slo


def _raise(target: float | None, floor: float | None) -> float | None:
    return target if target is None or floor is None else max(target, floor)


def _allowed(target: float, start: float) -> float:
    """Seconds from `start` to the instant `start + target`, as rounding leaves it.

    Due times are instants and a policy may aim at them: what comes exactly then is in time.
    """
    return (start + target) - start


def _keeps_pace(tpot: float, times: Sequence[float]) -> bool:
    """Whether the mean gap is within `tpot`, compared as instants for the same reason."""
    return not times or times[-1] <= times[0] + (len(times) - 1) * tpot


def _size(prompt_tokens: int, output_tokens: float, value: Value) -> float:
    return value.w_prompt * prompt_tokens + value.w_decode * output_tokens


def _stream_gain(slo: Streaming, delivery: Delivery, value: Value) -> float:
    times = delivery.token_times
    if not times:
        return 0.0
    allowed = math.inf if slo.ttft is None else _allowed(slo.ttft, delivery.arrival)
    gain = value.w_prompt * delivery.prompt_tokens
    gain *= lateness_factor(allowed, delivery.ttft, value.alpha)
    for k, at in enumerate(times):
        promised = token_due(slo, k, delivery.arrival, times[0]) - delivery.arrival
        gain += value.w_decode * lateness_factor(promised, at - delivery.arrival, value.alpha)
    return gain


def _require_positive(**targets: float | None) -> None:
    for name, target in targets.items():
        if target is not None and not (0 < target < math.inf):
            raise ValueError(f"{name} must be a positive, finite number of seconds, got {target}")
