"""The block pool against a slow twin, and what chained keys promise."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from giusto.core.kv import BlockPool, chain_keys

NUM_BLOCKS = 6
KEYS = [bytes([i]) for i in range(8)]

tokens = st.lists(st.integers(0, 3), max_size=24)


@given(tokens, tokens, st.integers(1, 5))
def test_equal_keys_mean_equal_prefixes(one: list[int], other: list[int], size: int) -> None:
    """Keys agree as far as whole blocks do, and no further."""
    same = 0
    while one[: (same + 1) * size] == other[: (same + 1) * size] and (same + 1) * size <= min(
        len(one), len(other)
    ):
        same += 1
    keys, others = chain_keys(one, size), chain_keys(other, size)
    assert keys[:same] == others[:same]
    assert not set(keys[same:]) & set(others[same:])


@given(tokens, st.integers(0, 24), st.integers(1, 5), st.text(max_size=3))
def test_keys_made_in_parts_equal_keys_made_at_once(
    ids: list[int], cut: int, size: int, salt: str
) -> None:
    """Extending the keys of a prefix gives the keys of the whole."""
    part = chain_keys(ids[:cut], size, salt=salt)
    whole = chain_keys(ids, size, salt=salt)
    assert whole == chain_keys(ids, size, salt=salt, after=part)
    assert len(ids) // size == len(whole)


class SlowPool:
    """The pool as sets and lists: who holds what, what is named, who was let go when."""

    def __init__(self) -> None:
        self.holders: dict[int, int] = dict.fromkeys(range(NUM_BLOCKS), 0)
        self.names: dict[bytes, int] = {}
        self.let_go: list[int] = []

    @property
    def free(self) -> set[int]:
        return {block for block, count in self.holders.items() if not count}

    def lookup(self, keys: list[bytes]) -> list[int]:
        known = [key in self.names for key in keys]
        length = known.index(False) if False in known else len(keys)
        return [self.names[key] for key in keys[:length]]

    def take(self, blocks: list[int]) -> None:
        """Book an allocation and assert that it kept the order of eviction."""
        assert len(set(blocks)) == len(blocks)
        assert set(blocks) <= self.free
        unnamed = self.free - set(self.names.values())
        evicted = [block for block in blocks if block not in unnamed]
        assert not evicted or unnamed <= set(blocks)
        cached = [block for block in self.let_go if block in self.names.values()]
        assert cached[: len(evicted)] == evicted
        self.names = {key: b for key, b in self.names.items() if b not in evicted}
        for block in blocks:
            self.holders[block] = 1
            self.let_go = [b for b in self.let_go if b != block]

    def hold(self, blocks: list[int]) -> None:
        for block in blocks:
            self.holders[block] += 1
            self.let_go = [b for b in self.let_go if b != block]

    def release(self, blocks: list[int]) -> None:
        for block in reversed(blocks):
            self.holders[block] -= 1
            if not self.holders[block]:
                self.let_go.append(block)


class PoolMachine(RuleBasedStateMachine):
    """Random operations on both, compared after each."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS, 4)
        self.slow = SlowPool()
        self.tables: list[list[int]] = []

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=4, unique=True), fresh=st.integers(0, 4))
    def admit(self, keys: list[bytes], fresh: int) -> None:
        """A request shares what is cached of its prefix and takes fresh blocks beside it."""
        hits = self.pool.lookup(keys)
        assert self.slow.lookup(keys) == hits
        if self.pool.num_unheld(hits) + fresh > self.pool.num_free:
            return
        self.pool.hold(hits)
        self.slow.hold(hits)
        taken = self.pool.allocate(fresh)
        self.slow.take(taken)
        self.tables.append(hits + taken)

    @precondition(lambda self: any(self.tables))
    @rule(data=st.data(), key=st.sampled_from(KEYS))
    def name(self, data: st.DataObject, key: bytes) -> None:
        """A held block gets a name unless it has one or the name is taken."""
        table = data.draw(st.sampled_from([table for table in self.tables if table]))
        block = data.draw(st.sampled_from(table))
        self.pool.name(block, key)
        if block not in self.slow.names.values():
            self.slow.names.setdefault(key, block)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """A request gives back its whole table."""
        index = data.draw(st.integers(0, len(self.tables) - 1))
        table = self.tables.pop(index)
        self.pool.release(table)
        self.slow.release(table)

    @precondition(lambda self: any(self.tables))
    @rule(data=st.data())
    def shrink(self, data: st.DataObject) -> None:
        """A request gives back its last block only."""
        table = data.draw(st.sampled_from([table for table in self.tables if table]))
        last = [table.pop()]
        self.pool.release(last)
        self.slow.release(last)

    @invariant()
    def agrees(self) -> None:
        """Counts and names agree, and the pool's own check passes."""
        self.pool.check(self.tables)
        assert len(self.slow.free) == self.pool.num_free
        assert len(self.slow.names) == self.pool.num_cached
        for key, block in self.slow.names.items():
            assert [block] == self.pool.lookup([key])
        held = [block for block, count in self.slow.holders.items() if count == 1]
        assert len(held) == self.pool.num_sole(range(NUM_BLOCKS))


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPool = PoolMachine.TestCase
