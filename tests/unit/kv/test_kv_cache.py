"""Matching, reserving, publishing and rolling back, group by group."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from nonet.config.resolved import CacheGroup
from nonet.kv.cache import KVCache


@dataclass
class User:
    """The least that the cache needs of a sequence."""

    seq_id: int
    token_ids: list[int]
    num_computed: int = 0
    num_planned: int = 0
    compact_at: int | None = None
    cache_keys: list[bytes] = field(default_factory=list)
    adapter_id: str = ""
    cache_salt: str = ""
    can_hit: bool = True


def make_cache(*windows: int | None, num_blocks: int = 32, prefix_cache: bool = True) -> KVCache:
    groups = tuple(CacheGroup((i,), window) for i, window in enumerate(windows or (None,)))
    return KVCache(groups, num_blocks, 4, prefix_cache)


def start(cache: KVCache, user: User) -> int:
    """Attach what matches; returns how many tokens did."""
    hit = cache.match(user)
    cache.attach(user, hit)
    user.num_computed = user.num_planned = hit.num_tokens
    return hit.num_tokens


def compute(cache: KVCache, user: User, num_tokens: int) -> None:
    """One step for this sequence: reserve, run, commit."""
    assert cache.reserve(user, num_tokens)
    user.num_planned += num_tokens
    user.num_computed = user.num_planned
    cache.commit(user)


def table(cache: KVCache, user: User, group: int = 0) -> list[int]:
    return cache._held[user.seq_id].tables[group]


def run_whole(cache: KVCache, user: User) -> None:
    compute(cache, user, len(user.token_ids) - user.num_computed)


@pytest.mark.parametrize(
    ("length", "hit"), [(3, 0), (4, 0), (5, 4), (8, 4), (9, 8), (12, 8), (13, 12), (30, 12)]
)
def test_a_hit_leaves_a_token_to_compute(length: int, hit: int) -> None:
    cache = make_cache()
    first = User(1, list(range(12)))
    start(cache, first)
    run_whole(cache, first)
    assert cache.match(User(2, list(range(length)))).num_tokens == hit


def test_nothing_matches_before_it_is_committed() -> None:
    cache = make_cache()
    first, second = User(1, list(range(12))), User(2, list(range(12)))
    start(cache, first)
    assert cache.reserve(first, 12)
    first.num_planned = 12
    cache.commit(first)
    assert cache.match(second).num_tokens == 0
    first.num_computed = 7
    cache.commit(first)
    assert cache.match(second).num_tokens == 4, "a block of which one token is missing is not there"


@pytest.mark.parametrize("change", ["adapter_id", "cache_salt", "can_hit"])
def test_others_do_not_match(change: str) -> None:
    cache = make_cache()
    first, second = User(1, list(range(12))), User(2, list(range(12)))
    start(cache, first)
    run_whole(cache, first)
    assert cache.match(second).num_tokens == 8
    setattr(second, change, False if change == "can_hit" else "other")
    second.cache_keys.clear()
    assert cache.match(second).num_tokens == 0


def test_without_prefix_cache_nothing_is_kept() -> None:
    cache = make_cache(prefix_cache=False)
    first = User(1, list(range(12)))
    start(cache, first)
    run_whole(cache, first)
    cache.release(first)
    assert cache.match(User(2, list(range(12)))).num_tokens == 0
    assert all(block.is_blank for block in cache.pool.blocks)


def test_sharing_counts_and_tails_are_evicted_first() -> None:
    cache = make_cache(num_blocks=4)
    first, second = User(1, list(range(12))), User(2, list(range(12)))
    start(cache, first)
    run_whole(cache, first)
    start(cache, second)
    assert table(cache, second) == table(cache, first)[:2]
    assert cache.num_free == 1
    cache.release(second)
    cache.release(first)
    assert cache.num_free == 4
    assert cache.usage == 0
    third = User(3, [77] * 8)
    start(cache, third)
    run_whole(cache, third)
    assert cache.match(User(4, list(range(13)))).num_tokens == 8, "the third block went"
    assert cache.check_integrity() == []


def test_reserve_is_all_or_nothing() -> None:
    cache = make_cache(None, 8, num_blocks=5)
    user = User(1, list(range(20)))
    start(cache, user)
    assert not cache.reserve(user, 12), "three blocks in each of two groups"
    assert cache.num_free == 5
    assert cache.fit(user, 12) == 8
    assert cache.reserve(user, 8)
    assert cache.num_free == 1
    user.num_planned = 8
    assert cache.fit(user, 4) == 0


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 8, 9])
def test_a_window_keeps_what_the_oldest_open_token_sees(window: int) -> None:
    """Against the definition: token q sees the tokens j with q - window < j <= q."""
    cache = make_cache(window)
    user = User(1, list(range(40)))
    start(cache, user)
    for _ in range(40):
        assert cache.reserve(user, 1)
        oldest = user.num_computed
        for i, block_id in enumerate(table(cache, user)):
            is_seen = any(oldest - window < j <= oldest for j in range(4 * i, 4 * i + 4))
            assert bool(block_id) == is_seen
        user.num_planned += 1
        user.num_computed += 1
    assert cache.check_integrity() == []


def test_a_window_waits_for_the_step_in_flight() -> None:
    cache = make_cache(4)
    user = User(1, list(range(40)))
    start(cache, user)
    cache.reserve(user, 8)
    user.num_planned = 8
    assert cache.reserve(user, 4)
    assert all(table(cache, user)), "the first eight tokens are not known to be computed"
    user.num_computed, user.num_planned = 8, 12
    assert cache.reserve(user, 1)
    assert table(cache, user)[0] == 0
    assert all(table(cache, user)[1:])


@pytest.mark.parametrize("window", [2, 4, 5, 6, 9])
def test_a_window_group_needs_only_the_end_of_a_hit(window: int) -> None:
    cache = make_cache(None, window)
    first = User(1, list(range(40)))
    start(cache, first)
    for _ in range(10):
        compute(cache, first, 4)
    cache.release(first)
    second = User(2, list(range(33)))
    hit = cache.match(second)
    assert hit.num_tokens == 32
    assert all(hit.blocks[0])
    needed = -(-(window - 1) // 4)
    assert [bool(block_id) for block_id in hit.blocks[1]] == [False] * (8 - needed) + [
        True
    ] * needed
    assert start(cache, second) == 32
    assert cache.check_integrity() == []


def test_groups_agree_on_a_shorter_hit() -> None:
    """The window group lost a block that the longest hit needs; the hit falls back to where all are present."""
    cache = make_cache(None, 5, 9)
    first = User(1, list(range(24)))
    start(cache, first)
    for _ in range(6):
        compute(cache, first, 4)
    keys = first.cache_keys
    lost = cache._index.match(2, keys[4])
    cache.release(first)
    block = cache.pool.blocks[lost]
    cache._index.remove(2, keys[4])
    cache.pool._evictor.on_use(lost)
    block.key = None
    cache.pool._blank.append(lost)
    hit = cache.match(User(2, list(range(25))))
    assert hit.num_tokens == 16
    assert hit.blocks[2] == [0, 0, *(cache._index.match(2, key) for key in keys[2:4])]
    assert cache.check_integrity() == []


def test_rollback_frees_and_reports() -> None:
    cache = make_cache(None, 64)
    user = User(1, list(range(7)))
    start(cache, user)
    compute(cache, user, 6)
    cache.drain_updates()
    assert cache.reserve(user, 1 + 5)
    assert [update.start for update in cache.drain_updates()] == [2, 2]
    user.num_planned = user.num_computed = 7
    cache.truncate(user, 7)
    updates = cache.drain_updates()
    assert [(u.seq_id, u.group, u.start, u.block_ids) for u in updates] == [
        (1, 0, 2, [0]),
        (1, 1, 2, [0]),
    ]
    assert cache.num_free == 32 - 4
    assert cache.check_integrity() == []


def test_updates_are_differences_and_rebuild_the_tables() -> None:
    cache = make_cache(None, 6)
    user = User(1, list(range(60)))
    start(cache, user)
    rebuilt: list[list[int]] = [[], []]
    total = 0
    for _ in range(30):
        compute(cache, user, 2)
        for update in cache.drain_updates():
            stop = update.start + len(update.block_ids)
            rebuilt[update.group][update.start : stop] = update.block_ids
            total += len(update.block_ids)
        assert rebuilt == cache._held[1].tables
    assert total <= 15 + 15 + 15, "each entry comes once, and once more when a window leaves it"
    assert cache.drain_updates() == []


def test_updates_of_a_released_sequence_are_dropped() -> None:
    cache = make_cache()
    user = User(1, list(range(8)))
    start(cache, user)
    compute(cache, user, 8)
    cache.release(user)
    assert cache.drain_updates() == []
    assert not cache.holds(user)


@pytest.mark.parametrize("windows", [(None,), (None, 5), (5,), (None, 1), (3, 9)])
@pytest.mark.parametrize("num_blocks", [4, 9, 16])
def test_the_stated_capacity_is_exact(windows: tuple[int | None, ...], num_blocks: int) -> None:
    cache = make_cache(*windows, num_blocks=num_blocks)
    limit = cache.max_sequence_tokens()
    is_bounded = limit < 10**6
    limit = min(limit, 200)
    user = User(1, list(range(limit + 8)))
    start(cache, user)
    for _ in range(limit):
        compute(cache, user, 1)
    if is_bounded:
        assert not all(_can_go_on(cache, user) for _ in range(8))


def test_windows_alone_bound_nothing() -> None:
    """What windows leave behind is free again."""
    assert make_cache(3, 9, num_blocks=5).max_sequence_tokens() > 10**6
    assert make_cache(3, 9, num_blocks=4).max_sequence_tokens() == 8


def _can_go_on(cache: KVCache, user: User) -> bool:
    if not cache.reserve(user, 1):
        return False
    user.num_planned = user.num_computed = user.num_planned + 1
    return True


def test_demand_bounds_what_is_taken() -> None:
    cache = make_cache(None, 6, num_blocks=60)
    user = User(1, list(range(50)))
    demand = cache.demand(user, 8, cache.match(user))
    start(cache, user)
    lowest = cache.num_free
    while user.num_computed < 48:
        compute(cache, user, 8)
        lowest = min(lowest, cache.num_free)
    assert 60 - lowest <= demand <= 60 - lowest + 2
