"""One after the other, whatever they are doing."""

from __future__ import annotations

from collections.abc import Sequence

from giusto.routing.base import ReplicaView, Visitor


class RoundRobin:
    """See the module."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, visitor: Visitor, replicas: Sequence[ReplicaView]) -> int:
        chosen = self._next % len(replicas)
        self._next = chosen + 1
        return chosen
