"""The pin: the oldest resident, which is never preempted and never passed over for long."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from giusto.core.plan import Pin, Plan
from giusto.core.request import Request

#: The pin goes first after this many steps that served only others, or this many seconds.
PATIENCE_STEPS = 8
PATIENCE_S = 1.0


@dataclass(slots=True)
class PinWatch:
    """Remembers how long the oldest resident was passed over while it had something to do."""

    _id: str | None = None
    _passed: int = 0
    _served: float = 0.0

    def look(self, running: Iterable[Request], now: float) -> Pin | None:
        """Name the pin of this step."""
        oldest = next(iter(running), None)
        if oldest is None:
            self._id = None
            return None
        if self._id != oldest.id or not oldest.num_remaining_tokens:
            self._id, self._passed, self._served = oldest.id, 0, now
        is_overdue = self._passed >= PATIENCE_STEPS or now - self._served >= PATIENCE_S
        return Pin(oldest.id, is_overdue)

    def count(self, plan: Plan, now: float) -> None:
        """Book a plan: did it serve the pin, or others only?"""
        if any(grant.request_id == self._id for grant in plan.grants):
            self._passed, self._served = 0, now
        elif plan.grants:
            self._passed += 1
