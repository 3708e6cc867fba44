"""Paged KV memory as integers: blocks, references, prefix sharing, eviction order.

A full block is named by a key chained over all tokens up to its end, so equal keys mean equal
prefixes. A block that nobody holds stays findable until its room is needed. The pool knows no
request and no tensor; the scheduler owns the block tables.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from giusto.core.errors import PlanError


def chain_keys(
    tokens: Sequence[int], block_size: int, *, salt: str = "", after: Sequence[bytes] = ()
) -> list[bytes]:
    """Name each full block of `tokens`; `after` holds the keys already made for its first blocks.

    Keys are cryptographic digests: a crafted prompt cannot collide into another user's prefix.
    Returns all keys, the given ones first.
    """
    keys = list(after)
    parent = (
        keys[-1]
        if keys
        else blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    )
    for start in range(len(keys) * block_size, len(tokens) - block_size + 1, block_size):
        block = array("q", tokens[start : start + block_size]).tobytes()
        parent = blake2b(parent + block, digest_size=16).digest()
        keys.append(parent)
    return keys


class BlockPool:
    """Reference-counted blocks with a prefix cache.

    Eviction order: blocks never named first, then named ones by how long nobody has held them;
    of one request the tail goes before the head, for a head is shared by more.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool = True) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"need at least one block of one token, got {num_blocks}x{block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        #: Changes whenever a look-up could answer differently.
        self.generation = 0
        self._refs = [0] * num_blocks
        self._keys: list[bytes | None] = [None] * num_blocks
        self._named: dict[bytes, int] = {}
        self._unused = deque(range(num_blocks))
        self._evictable: OrderedDict[int, None] = OrderedDict()
        self._digest = 0

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, cached or not."""
        return len(self._unused) + len(self._evictable)

    @property
    def num_cached(self) -> int:
        """Blocks that can be found by a prefix, held or not."""
        return len(self._named)

    def lookup(self, keys: Iterable[bytes]) -> list[int]:
        """Find the blocks of the longest cached prefix. Does not modify the pool."""
        found = []
        for key in keys:
            block = self._named.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def num_unheld(self, blocks: Iterable[int]) -> int:
        """Count those of `blocks` that nobody holds."""
        return sum(self._refs[block] == 0 for block in blocks)

    def num_sole(self, blocks: Iterable[int]) -> int:
        """Count those of `blocks` that one holder alone holds: what its release would free."""
        return sum(self._refs[block] == 1 for block in blocks)

    def hold(self, blocks: Iterable[int]) -> None:
        """Add a reference to each cached block of a prefix hit; an unheld one leaves the free."""
        for block in blocks:
            if self._refs[block] == 0:
                del self._evictable[block]
            self._refs[block] += 1
        self.generation += 1

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks with one reference each, forgetting cached ones when it must.

        Raises PlanError, with nothing taken, when fewer are free.
        """
        if count > self.num_free:
            raise PlanError(f"asked for {count} blocks, {self.num_free} are free")
        taken = []
        for _ in range(count):
            if self._unused:
                block = self._unused.popleft()
            else:
                block, _ = self._evictable.popitem(last=False)
                self._forget(block)
            self._refs[block] = 1
            taken.append(block)
        if taken:
            self.generation += 1
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference from each block of a table, the tail first."""
        for block in reversed(blocks):
            if self._refs[block] < 1:
                raise PlanError(f"block {block} was released more often than held")
            self._refs[block] -= 1
            if self._refs[block] == 0:
                if self._keys[block] is None:
                    self._unused.append(block)
                else:
                    self._evictable[block] = None
        if blocks:
            self.generation += 1

    def name(self, block: int, key: bytes) -> None:
        """Make a held, fully computed block findable; a second copy of a key stays unnamed."""
        if not self.prefix_caching or self._keys[block] is not None or key in self._named:
            return
        self._keys[block] = key
        self._named[key] = block
        self._digest ^= int.from_bytes(key, "big")
        self.generation += 1

    @property
    def digest(self) -> str:
        """A fingerprint of what is cached, whatever the order it came in; for routers."""
        return f"{self._digest:032x}"

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError unless references equal what `tables` hold and no block is lost."""
        held = Counter(block for table in tables for block in table)
        unused, evictable = set(self._unused), set(self._evictable)
        assert len(unused) == len(self._unused), "a block is free twice"
        assert not unused & evictable, "a block is free and evictable"
        for block in range(self.num_blocks):
            assert self._refs[block] == held[block], (
                f"block {block} counts {self._refs[block]} references, {held[block]} hold it"
            )
            is_free = block in unused or block in evictable
            assert is_free == (held[block] == 0), f"block {block} is lost or both held and free"
            key = self._keys[block]
            assert (block in evictable) <= (key is not None), f"unnamed {block} is evictable"
            assert block not in unused or key is None, f"named block {block} lies among the unused"
            assert key is None or self._named.get(key) == block, f"block {block} is misnamed"
        assert len(self._named) == sum(key is not None for key in self._keys), "a name dangles"

    def _forget(self, block: int) -> None:
        key = self._keys[block]
        assert key is not None
        del self._named[key]
        self._digest ^= int.from_bytes(key, "big")
        self._keys[block] = None
