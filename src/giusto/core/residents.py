"""The requests that are in KV memory, and the blocks they hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from giusto.core.host import HostMemory
from giusto.core.kv import BlockPool, chain_keys
from giusto.core.plan import PreemptHow
from giusto.core.request import Request


class Residents:
    """Residents in order of residence, the oldest first, over one pool of blocks.

    A request that was swapped out is no resident, but keeps its computed tokens.
    """

    def __init__(self, pool: BlockPool, host: HostMemory) -> None:
        self.pool = pool
        self.host = host
        self._requests: dict[str, Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests.values())

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def enter(self, request: Request, hits: Sequence[int], now: float) -> None:
        """Make a request resident with the cached blocks that it shares; they are held already.

        One that was swapped out gets all its blocks back instead, findable as they were.
        """
        self._requests[request.id] = request
        request.resident_since = now
        if request.num_computed_tokens:
            self.host.read(request.id)
            request.blocks = self.pool.allocate(self._num_blocks(request))
            self.name(request, 0)
            return
        request.blocks = list(hits)
        request.num_computed_tokens = len(hits) * self.pool.block_size

    def leave(self, request: Request) -> None:
        """Give all its blocks back."""
        self._vacate(request)
        self.host.drop(request.id)
        request.num_computed_tokens = 0

    def preempt(self, request: Request) -> PreemptHow:
        """Take all its blocks: to host memory where room was kept for them."""
        if request.id not in self.host:
            self.leave(request)
            return PreemptHow.RECOMPUTE
        self._vacate(request)
        self.host.write(request.id, self._num_blocks(request))
        return PreemptHow.SWAP

    def grow(self, request: Request, num_nodes: int) -> None:
        """Make room for all tokens in flight and `num_nodes` speculated ones."""
        end = request.num_computed_tokens + request.num_in_flight_tokens + num_nodes
        missing = -(-end // self.pool.block_size) - len(request.blocks)
        if missing > 0:
            request.blocks += self.pool.allocate(missing)

    def shrink(self, request: Request) -> None:
        """Give back what was reserved for speculated tokens that were not accepted."""
        end = request.num_computed_tokens + request.num_in_flight_tokens
        keep = -(-end // self.pool.block_size)
        if keep < len(request.blocks):
            surplus = request.blocks[keep:]
            del request.blocks[keep:]
            self.pool.release(surplus)

    def name(self, request: Request, before: int) -> None:
        """Make findable what was filled since `before` tokens were computed."""
        size = self.pool.block_size
        full = request.num_computed_tokens // size
        if full == before // size:
            return
        if full > len(request.block_keys) and request.token_ids:
            request.block_keys = chain_keys(
                request.token_ids[: full * size],
                size,
                salt=request.cache_salt,
                after=request.block_keys,
            )
        for index in range(before // size, min(full, len(request.block_keys))):
            self.pool.name(request.blocks[index], request.block_keys[index])

    def check(self, requests: Iterable[Request]) -> None:
        """Raise AssertionError unless blocks and residence of all live `requests` agree."""
        requests = list(requests)
        self.pool.check(request.blocks for request in requests)
        swapped = {}
        for request in requests:
            assert (request.resident_since is not None) == (request.id in self._requests)
            if request.resident_since is None:
                assert not request.blocks and not request.num_in_flight_tokens
                if request.num_computed_tokens:
                    swapped[request.id] = self._num_blocks(request)
                continue
            end = request.num_computed_tokens + request.num_in_flight_tokens
            assert len(request.blocks) * self.pool.block_size >= end
        leaving = {request.id for request in requests if request.is_leaving}
        self.host.check(swapped, leaving)

    def _vacate(self, request: Request) -> None:
        del self._requests[request.id]
        self.pool.release(request.blocks)
        request.blocks = []
        request.resident_since = None

    def _num_blocks(self, request: Request) -> int:
        """Blocks that its computed tokens fill."""
        return -(-request.num_computed_tokens // self.pool.block_size)
