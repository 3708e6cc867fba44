"""Host memory: how many blocks of which swapped requests lie there. The numbers of blocks do not
matter, so that they are counted, not handed out."""

from __future__ import annotations

from collections.abc import Mapping, Set

from giusto.core.errors import PlanError


class HostMemory:
    """Room for so many blocks. `num_moved` counts those that went either way over the link.

    Room is kept for a request from the plan that swaps it out, which may come before it leaves the
    device: when it is in flight.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_moved = 0
        self._kept: dict[str, int] = {}
        self._num_kept = 0

    @property
    def num_free(self) -> int:
        return self.num_blocks - self._num_kept

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._kept

    def keep(self, request_id: str, num_blocks: int) -> None:
        """Keep room for a request; raises PlanError, with nothing changed, when there is less."""
        more = num_blocks - self._kept.get(request_id, 0)
        if more > self.num_free:
            raise PlanError(f"asked for {more} host blocks, {self.num_free} are free")
        self._kept[request_id] = num_blocks
        self._num_kept += more

    def drop(self, request_id: str) -> None:
        """Give up the room of a request, if it has any."""
        self._num_kept -= self._kept.pop(request_id, 0)

    def write(self, request_id: str, num_blocks: int) -> None:
        """Move blocks out, into the room kept for them; what is left of it is free again."""
        self.keep(request_id, num_blocks)
        self.num_moved += num_blocks

    def read(self, request_id: str) -> None:
        """Move the blocks of a request in."""
        self.num_moved += self._kept[request_id]
        self.drop(request_id)

    def check(self, swapped: Mapping[str, int], leaving: Set[str]) -> None:
        """Raise AssertionError unless it has the blocks of all `swapped`, and of no one else but
        some of those who are `leaving`."""
        assert sum(self._kept.values()) == self._num_kept <= self.num_blocks
        assert swapped.items() <= self._kept.items(), "a swapped request is not in host memory"
        assert self._kept.keys() <= swapped.keys() | leaving, "host memory is lost"
