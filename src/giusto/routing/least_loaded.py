"""Whoever has taken on the fewest requests; ties by queued prompt tokens, then in order."""

from __future__ import annotations

from collections.abc import Sequence

from giusto.routing.base import ReplicaView, Visitor, load


class LeastLoaded:
    """See the module."""

    def choose(self, visitor: Visitor, replicas: Sequence[ReplicaView]) -> int:
        order = range(len(replicas))
        return min(order, key=lambda i: (load(replicas[i]), replicas[i].queued_tokens))
