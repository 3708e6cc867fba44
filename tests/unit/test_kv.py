"""The block pool: keys, references, eviction order, and errors that leave it as it was."""

from __future__ import annotations

import pytest

from giusto.core.errors import PlanError
from giusto.core.kv import BlockPool, chain_keys


def named(pool: BlockPool, *keys: bytes) -> list[int]:
    """Allocate one block per key, held and named."""
    blocks = pool.allocate(len(keys))
    for block, key in zip(blocks, keys, strict=True):
        pool.name(block, key)
    return blocks


def test_only_full_blocks_get_a_key() -> None:
    """Seven tokens in blocks of four make one key, eight make two."""
    assert [len(chain_keys(range(n), 4)) for n in (0, 3, 4, 7, 8)] == [0, 0, 1, 1, 2]


def test_a_key_depends_on_every_token_before_its_end() -> None:
    """Equal blocks after different ones have different keys."""
    one, other = chain_keys([1, 2, 9, 9], 2), chain_keys([1, 3, 9, 9], 2)
    assert one[0] != other[0]
    assert one[1] != other[1]


def test_keys_separate_by_salt() -> None:
    """The same tokens under another salt share no key."""
    assert not set(chain_keys(range(8), 2, salt="a")) & set(chain_keys(range(8), 2, salt="b"))


def test_token_ids_beyond_32_bits_keep_apart() -> None:
    """Ids that agree in their low bits have different keys."""
    assert chain_keys([1], 1) != chain_keys([1 + 2**32], 1)


@pytest.mark.parametrize(("blocks", "size"), [(0, 16), (16, 0), (-1, 16)])
def test_a_pool_has_room(blocks: int, size: int) -> None:
    """A pool without a block or a block without a token is refused."""
    with pytest.raises(ValueError, match="at least one block"):
        BlockPool(blocks, size)


def test_a_fresh_pool_is_all_free() -> None:
    """Nothing is held and nothing can be found."""
    pool = BlockPool(4, 2)
    assert (pool.num_free, pool.num_cached, pool.lookup([b"a"])) == (4, 0, [])
    pool.check([])


def test_allocating_too_much_takes_nothing() -> None:
    """A refused allocation leaves all blocks free."""
    pool = BlockPool(4, 2)
    with pytest.raises(PlanError, match="asked for 5 blocks, 4 are free"):
        pool.allocate(5)
    assert pool.num_free == 4
    pool.check([])


def test_releasing_more_often_than_held_is_an_error() -> None:
    """A second release of the same block is caught."""
    pool = BlockPool(2, 2)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(PlanError, match="released more often"):
        pool.release(blocks)


def test_a_released_named_block_stays_findable() -> None:
    """It counts as free and is found by its key."""
    pool = BlockPool(2, 2)
    blocks = named(pool, b"a")
    pool.release(blocks)
    assert (2, blocks) == (pool.num_free, pool.lookup([b"a"]))
    assert pool.num_unheld(blocks) == 1


def test_a_hit_is_held_by_both() -> None:
    """A shared block is freed by the last of its holders."""
    pool = BlockPool(2, 2)
    blocks = named(pool, b"a")
    pool.hold(blocks)
    assert (pool.num_sole(blocks), pool.num_unheld(blocks)) == (0, 0)
    pool.release(blocks)
    assert (pool.num_free, pool.num_sole(blocks)) == (1, 1)
    pool.release(blocks)
    assert pool.num_free == 2


def test_holding_a_cached_block_takes_it_from_the_free() -> None:
    """A revived block can no longer be evicted."""
    pool = BlockPool(2, 2)
    blocks = named(pool, b"a")
    pool.release(blocks)
    pool.hold(blocks)
    assert pool.num_free == 1
    with pytest.raises(PlanError):
        pool.allocate(2)


def test_a_look_up_ends_at_the_first_gap() -> None:
    """Blocks behind an evicted one are not found."""
    pool = BlockPool(3, 2)
    blocks = named(pool, b"a", b"b")
    assert blocks == pool.lookup([b"a", b"b", b"c"])
    assert pool.lookup([b"x", b"a"]) == []


def test_unnamed_blocks_go_before_cached_ones() -> None:
    """An allocation forgets a cached block only when no other is left."""
    pool = BlockPool(3, 2)
    pool.release(named(pool, b"a"))
    pool.allocate(2)
    assert pool.num_cached == 1
    pool.allocate(1)
    assert pool.num_cached == 0


def test_the_tail_of_a_request_is_evicted_before_its_head() -> None:
    """After one eviction the prefix is shorter by its last block."""
    pool = BlockPool(3, 2)
    blocks = named(pool, b"a", b"b", b"c")
    pool.release(blocks)
    pool.allocate(1)
    assert blocks[:2] == pool.lookup([b"a", b"b", b"c"])


def test_who_was_released_first_is_evicted_first() -> None:
    """The most recently released prefix survives longest."""
    pool = BlockPool(2, 2)
    first, second = named(pool, b"a"), named(pool, b"b")
    pool.release(second)
    pool.release(first)
    pool.allocate(1)
    assert (first, []) == (pool.lookup([b"a"]), pool.lookup([b"b"]))


def test_a_second_copy_of_a_prefix_stays_unnamed() -> None:
    """Two requests that computed the same block leave one in the cache."""
    pool = BlockPool(2, 2)
    first, second = named(pool, b"a"), named(pool, b"a")
    pool.release(first)
    pool.release(second)
    assert (first, 1, 2) == (pool.lookup([b"a"]), pool.num_cached, pool.num_free)
    pool.check([])


def test_without_prefix_caching_nothing_is_found() -> None:
    """Naming does nothing when the cache is off."""
    pool = BlockPool(2, 2, prefix_caching=False)
    named(pool, b"a")
    assert (pool.num_cached, pool.lookup([b"a"])) == (0, [])


def test_the_generation_changes_with_what_can_be_found() -> None:
    """Every operation that could change a look-up changes the generation."""
    pool = BlockPool(2, 2)
    seen = [pool.generation]
    blocks = pool.allocate(1)
    seen.append(pool.generation)
    pool.name(blocks[0], b"a")
    seen.append(pool.generation)
    pool.hold(blocks)
    seen.append(pool.generation)
    pool.release(blocks)
    seen.append(pool.generation)
    assert len(set(seen)) == 5
    pool.lookup([b"a"])
    pool.allocate(0)
    pool.release([])
    assert seen[-1] == pool.generation


def test_check_finds_a_lost_reference() -> None:
    """Tables that do not explain the references are an error."""
    pool = BlockPool(2, 2)
    blocks = pool.allocate(1)
    pool.check([blocks])
    with pytest.raises(AssertionError, match="references"):
        pool.check([])


def test_the_digest_tells_what_is_cached_not_how_it_came() -> None:
    """Equal caches have equal digests in any order, and forgetting a block is seen."""
    one, other = BlockPool(2, 2), BlockPool(2, 2)
    empty = one.digest
    one.release(named(one, b"a" * 16, b"b" * 16))
    other.release(named(other, b"b" * 16, b"a" * 16))
    assert one.digest == other.digest != empty
    one.allocate(2)
    assert one.digest == empty
