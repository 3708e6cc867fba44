"""The scheduler's own `View`: a window on live state, nothing copied but two short lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from giusto.core.host import HostMemory
from giusto.core.kv import BlockPool
from giusto.core.plan import BlockCost, Caps, Limits, Pin
from giusto.core.programs import ProgramState, ProgramTable
from giusto.core.request import Request

#: What nearly every decode costs.
NO_BLOCKS = BlockCost(0)


class PrefixHits:
    """Cached prefix blocks of waiting requests, looked up when asked, once per pool generation."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._generation = -1
        self._hits: dict[str, list[int]] = {}

    def blocks(self, request: Request) -> list[int]:
        """The blocks a waiting request would share; at least its last token stays to compute.

        None for one that was swapped out: it brings its own.
        """
        if request.num_computed_tokens:
            return []
        if self._generation != self._pool.generation:
            self._generation = self._pool.generation
            self._hits.clear()
        hits = self._hits.get(request.id)
        if hits is None:
            most = (request.num_tokens - 1) // self._pool.block_size
            hits = self._hits[request.id] = self._pool.lookup(request.block_keys[:most])
        return hits


@dataclass(frozen=True, slots=True)
class SchedulerView:
    """Satisfies `plan.View`; valid until the scheduler's state next changes."""

    now: float
    step: int
    waiting: Sequence[Request]
    unanswered: Sequence[Request]
    running: Sequence[Request]
    limits: Limits
    caps: Caps
    pin: Pin | None
    _pool: BlockPool
    _hits: PrefixHits
    _requests: Mapping[str, Request]
    _programs: ProgramTable
    _host: HostMemory

    @property
    def swapped(self) -> Sequence[Request]:
        return [request for request in self.waiting if request.num_computed_tokens]

    @property
    def free_host_blocks(self) -> int:
        return self._host.num_free

    @property
    def free_blocks(self) -> int:
        return self._pool.num_free

    @property
    def free_slots(self) -> int:
        return max(0, self.limits.max_num_seqs - len(self.running))

    def request(self, request_id: str) -> Request:
        return self._requests[request_id]

    def program(self, program_id: str) -> ProgramState | None:
        return self._programs.get(program_id)

    def held(self, request_id: str) -> int:
        return len(self._requests[request_id].blocks)

    def freeable(self, request_id: str) -> int:
        request = self._requests[request_id]
        return 0 if request.num_in_flight_tokens else self._pool.num_sole(request.blocks)

    def cost(self, request_id: str, num_tokens: int) -> BlockCost:
        request = self._requests[request_id]
        size = self._pool.block_size
        if request.resident_since is not None or request.num_computed_tokens:
            end = request.num_computed_tokens + request.num_in_flight_tokens + num_tokens
            room = len(request.blocks) * size
            return BlockCost(-(-(end - room) // size)) if end > room else NO_BLOCKS
        hits = self._hits.blocks(request)
        cached = len(hits) * size
        fresh = -(-(cached + num_tokens) // size) - len(hits)
        return BlockCost(fresh, self._pool.num_unheld(hits), self._pool.num_sole(hits), cached)
