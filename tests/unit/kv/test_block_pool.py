"""Blocks are given out once, counted, kept while idle, and evicted in order."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from nonet.kv.block_pool import BlockPool
from nonet.kv.evict.base import Evictor
from nonet.kv.evict.lru import LruEvictor
from nonet.kv.prefix.hashed import HashedPrefixIndex


def make_pool(num_blocks: int = 4) -> tuple[BlockPool, HashedPrefixIndex]:
    index = HashedPrefixIndex(num_groups=2, block_size=4)
    return BlockPool(num_blocks, LruEvictor(), index), index


def key(number: int) -> bytes:
    return number.to_bytes(32, "little")


def test_ids_start_at_one_and_each_is_given_once() -> None:
    pool, _ = make_pool(5)
    assert sorted(pool.allocate(5)) == [1, 2, 3, 4, 5]
    assert pool.num_free == 0


def test_a_block_without_a_key_is_blank_when_freed() -> None:
    pool, index = make_pool(1)
    (block_id,) = pool.allocate(1)
    pool.free([block_id])
    assert pool.blocks[block_id].is_blank
    assert pool.allocate(1) == [block_id]
    assert len(index) == 0


def test_an_idle_block_is_found_shared_and_idle_again() -> None:
    pool, index = make_pool()
    (block_id,) = pool.allocate(1)
    assert pool.publish(block_id, 0, key(1))
    pool.free([block_id])
    assert pool.num_free == 4
    assert index.match(0, key(1)) == block_id
    assert index.match(1, key(1)) == 0, "groups are apart"
    pool.share([block_id, 0])
    pool.share([block_id])
    assert pool.blocks[block_id].num_refs == 2
    assert pool.num_free == 3
    pool.free([block_id, 0, block_id])
    assert pool.check_integrity({}) == []


def test_blank_blocks_go_first_then_the_longest_idle() -> None:
    pool, index = make_pool(3)
    first, second, third = pool.allocate(3)
    pool.publish(first, 0, key(1))
    pool.publish(second, 1, key(2))
    pool.free([second, first, third])
    assert pool.allocate(1) == [third]
    assert pool.allocate(1) == [second]
    assert index.match(1, key(2)) == 0
    assert index.match(0, key(1)) == first
    assert pool.check_integrity({third: 1, second: 1}) == []


def test_the_same_content_is_published_once() -> None:
    pool, index = make_pool()
    first, second = pool.allocate(2)
    assert pool.publish(first, 0, key(1))
    assert not pool.publish(second, 0, key(1))
    assert not pool.publish(first, 0, key(2)), "a block has one name"
    assert index.match(0, key(1)) == first
    assert pool.blocks[second].key is None


def test_freeing_twice_is_refused() -> None:
    pool, _ = make_pool()
    (block_id,) = pool.allocate(1)
    pool.free([block_id])
    with pytest.raises(AssertionError, match="freed twice"):
        pool.free([block_id])


@pytest.mark.parametrize("damage", ["count", "blank twice", "lost", "null", "index", "key"])
def test_check_integrity_sees_damage(damage: str) -> None:
    pool, index = make_pool()
    (block_id,) = pool.allocate(1)
    pool.publish(block_id, 0, key(1))
    assert pool.check_integrity({block_id: 1}) == []
    if damage == "count":
        pool.blocks[block_id].num_refs += 1
    elif damage == "blank twice":
        pool._blank.append(pool._blank[0])
    elif damage == "lost":
        pool._blank.pop()
    elif damage == "null":
        pool.blocks[0].num_refs = 1
    elif damage == "index":
        index.remove(0, key(1))
    else:
        pool.blocks[block_id].key = None
    assert pool.check_integrity({block_id: 1}) != []


@pytest.mark.parametrize("evictor_class", [LruEvictor])
def test_every_evictor_gives_up_each_idle_block_once(evictor_class: Callable[[], Evictor]) -> None:
    evictor = evictor_class()
    idle: set[int] = set()
    random = Random(1)
    for _ in range(2000):
        move = random.randrange(3)
        block_id = random.randrange(1, 30)
        if move == 0 and block_id not in idle:
            evictor.on_free(block_id)
            idle.add(block_id)
        elif move == 1 and block_id in idle:
            evictor.on_use(block_id)
            idle.remove(block_id)
        elif move == 2 and idle:
            idle.remove(evictor.choose())
        assert len(evictor) == len(idle)
        assert (block_id in evictor) == (block_id in idle)
    assert idle
