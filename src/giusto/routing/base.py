"""What a router sees of replicas and of a request, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class ReplicaView(Protocol):
    """A replica from outside; what `/load` tells, and the simulator. Counts are of requests."""

    @property
    def index(self) -> int: ...
    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def queued_tokens(self) -> int:
        """Prompt tokens that waiting requests have yet to compute."""
        ...

    @property
    def free_blocks(self) -> int: ...
    @property
    def step_time(self) -> float:
        """Seconds of a step, lately."""
        ...


@dataclass(frozen=True, slots=True)
class Visitor:
    """What a router may know of a request: its size, and what it might share with others.

    `session`: the program or session it belongs to; `prefix`: a name of how its prompt begins.
    """

    id: str
    prompt_tokens: int
    session: str | None = None
    prefix: str | None = None


class Router(Protocol):
    """Chooses a replica for each request; deterministic in what it has seen."""

    def choose(self, visitor: Visitor, replicas: Sequence[ReplicaView]) -> int:
        """The index into `replicas`, which is not empty."""
        ...


def load(replica: ReplicaView) -> int:
    """Requests that a replica has taken on."""
    return replica.running + replica.waiting
