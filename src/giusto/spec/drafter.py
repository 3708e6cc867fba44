"""What a drafter is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from giusto.core.plan import Spec
from giusto.spec.tree import TokenTree


@dataclass(frozen=True, slots=True)
class Ask:
    """Candidates are wanted for one request.

    `tokens` are all that are known of it, where the driver has text; `position` is the number of
    output tokens among them, `room` how many may follow the next one. What a private request says
    is proposed to no other, nor what others said to it.
    """

    request_id: str
    tokens: Sequence[int]
    spec: Spec
    room: int
    position: int = 0
    service_class: str = "default"
    is_private: bool = False

    @property
    def depth(self) -> int:
        """Candidates in a row that are of use."""
        return min(self.spec.depth, self.room)


class Drafter(Protocol):
    """Proposes tokens. What it proposes never changes an answer, only how fast it comes."""

    def draft(self, asks: Sequence[Ask]) -> list[TokenTree]:
        """Grow a tree for each ask, an empty one where nothing is to be proposed."""
        ...

    def learn(self, request_id: str, tree: TokenTree, drawn: Sequence[int]) -> None:
        """Take the target's tokens after a tree was verified."""
        ...

    def forget(self, request_id: str) -> None:
        """Drop what is remembered of a request that has ended."""
        ...
