"""The waiting line: requests in order of arrival, with the counts that bound it."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

from giusto.core.request import Reason, Request
from giusto.core.slo import BestEffort


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much may wait before newcomers are refused; None is unbounded.

    Preempted requests do not count: they were accepted once.
    """

    max_num_queued_reqs: int | None = None
    max_num_queued_tokens: int | None = None


class WaitingQueue:
    """Requests sorted by (arrival, serial); look-ups by bisection.

    Those without a token so far stand in lines of their own too: best effort by the span after
    which it starves, and all who were promised more.
    """

    def __init__(self) -> None:
        self._requests: list[Request] = []
        self._unanswered: dict[float | None, list[Request]] = {}
        self._num_new = 0
        self._num_new_tokens = 0
        self.num_prefill_tokens = 0

    @property
    def requests(self) -> list[Request]:
        """The line itself, the earliest arrival first; not a copy."""
        return self._requests

    @property
    def unanswered(self) -> list[Request]:
        """The first of each line of those without a token so far."""
        return [line[0] for line in self._unanswered.values()]

    def __len__(self) -> int:
        return len(self._requests)

    def push(self, request: Request) -> None:
        insort(self._requests, request, key=_order)
        if request.first_token is None:
            insort(self._unanswered.setdefault(_span(request), []), request, key=_order)
        self._count(request, 1)

    def remove(self, request: Request) -> None:
        _remove(self._requests, request)
        if request.first_token is None:
            line = self._unanswered[_span(request)]
            _remove(line, request)
            if not line:
                del self._unanswered[_span(request)]
        self._count(request, -1)

    def refuse(self, num_requests: int, num_tokens: int, limits: QueueLimits) -> Reason | None:
        """Tell why newcomers cannot wait here; None when they can.

        A line without newcomers takes any request that fits the pool, however long its prompt.
        """
        most = limits.max_num_queued_reqs
        if most is not None and self._num_new + num_requests > most:
            return Reason.QUEUE_FULL
        most = limits.max_num_queued_tokens
        if most is not None and self._num_new and self._num_new_tokens + num_tokens > most:
            return Reason.QUEUE_TOKENS_FULL
        return None

    def _count(self, request: Request, sign: int) -> None:
        # What lies in host memory is computed already.
        self.num_prefill_tokens += sign * (request.num_tokens - request.num_computed_tokens)
        if not request.num_preemptions:
            self._num_new += sign
            self._num_new_tokens += sign * request.num_tokens


def _remove(line: list[Request], request: Request) -> None:
    index = bisect_left(line, _order(request), key=_order)
    assert line[index] is request, f"{request.id} is not where it should wait"
    del line[index]


def _span(request: Request) -> float | None:
    """Seconds after which best effort starves; None for who was promised more."""
    return request.slo.starvation if isinstance(request.slo, BestEffort) else None


def _order(request: Request) -> tuple[float, int]:
    return request.arrival, request.serial
