"""Compaction in the cache's books: which blocks take what stays, which come back, what others may find."""

from __future__ import annotations

import pytest
from tests.unit.kv.test_kv_cache import User, compute, start, table

from nonet.config.resolved import CacheGroup
from nonet.core.errors import ConfigError
from nonet.core.step import BlockTableUpdate
from nonet.kv.cache import KVCache
from nonet.kv.compaction import CompactionRule
from nonet.scheduler.budget import SchedulerLimits

RULE = CompactionRule(length=10, query_window=4)  # three blocks of four


def make_cache(*windows: int | None, num_blocks: int = 32, prefix_cache: bool = True) -> KVCache:
    groups = tuple(CacheGroup((i,), window) for i, window in enumerate(windows or (None,)))
    return KVCache(groups, num_blocks, 4, prefix_cache, compaction=RULE)


def prompt(seq_id: int, length: int, first: int = 0) -> User:
    user = User(seq_id, list(range(first, first + length)))
    user.compact_at = RULE.point(length, 1000)
    return user


def compact(cache: KVCache, user: User) -> list[int]:
    """The step that computes the rest of the prompt; returns the blocks of the first group that take what stays."""
    assert cache.reserve(user, len(user.token_ids) - user.num_computed)
    compactions = cache.compact(user)
    assert compactions is not None
    user.num_planned = user.num_computed = len(user.token_ids)
    cache.commit(user)
    cache.finish_compaction(user)
    assert cache.check_integrity() == []
    return compactions[0].block_ids


def test_what_stays_lies_in_fresh_blocks_and_the_rest_is_free() -> None:
    cache = make_cache(prefix_cache=False)
    user = prompt(1, 30)
    start(cache, user)
    assert cache.reserve(user, 30)
    old = list(table(cache, user))
    assert cache.kv_start(user, 30) is None
    cache.drain_updates()
    (compaction,) = cache.compact(user) or []
    assert (compaction.seq_id, compaction.group, compaction.length) == (1, 0, 10)
    assert not set(compaction.block_ids) & set(old)
    assert len(compaction.block_ids) == 3
    assert table(cache, user) == old, "a step in flight reads the old blocks"
    assert cache.check_integrity() == []
    assert cache.num_free == 32 - 8 - 3
    user.num_planned = user.num_computed = 30
    cache.finish_compaction(user)
    assert cache.num_free == 32 - 3
    assert cache.drain_updates() == [BlockTableUpdate(1, 0, 0, compaction.block_ids + [0] * 5)]
    assert cache.kv_start(user, 30) == (10,)
    assert cache.kv_start(user, 33) == (13,)


def test_later_tokens_follow_what_stayed() -> None:
    """Entries 10 and 11 end the third block; token 32 opens a fourth, and a rollback closes it."""
    cache = make_cache()
    user = prompt(1, 30)
    start(cache, user)
    compact(cache, user)
    assert cache.reserve(user, 2)
    assert len(table(cache, user)) == 3
    assert cache.reserve(user, 3)
    assert len(table(cache, user)) == 4
    user.num_planned = user.num_computed = 32
    cache.truncate(user, 32)
    assert len(table(cache, user)) == 3
    assert cache.check_integrity() == []


def test_fit_counts_entries_not_positions() -> None:
    cache = make_cache(num_blocks=12, prefix_cache=False)
    user = prompt(1, 30)
    start(cache, user)
    compact(cache, user)
    assert cache.num_free == 9
    assert cache.fit(user, 1000) == 2 + 9 * 4
    assert cache.reserve(user, 38)
    assert not cache.reserve(user, 39)


def test_shared_blocks_are_only_let_go() -> None:
    """Another sequence still reads them, and whoever comes finds them in the cache."""
    cache = make_cache()
    first, second = User(1, list(range(30))), prompt(2, 30)
    start(cache, first)
    compute(cache, first, 30)
    assert start(cache, second) == 24, "the query window and the block it begins in are computed"
    shared = list(table(cache, first))
    compact(cache, second)
    assert table(cache, first) == shared
    assert not set(table(cache, second)) & set(shared)
    assert cache.match(User(3, list(range(40)))).blocks[0] == shared[:7]


def test_nothing_is_published_once_pruned() -> None:
    cache = make_cache()
    user = prompt(1, 30)
    start(cache, user)
    compact(cache, user)
    assert cache.match(User(2, list(range(60)))).num_tokens == 28, "the prompt was whole"
    user.token_ids += range(30, 50)
    compute(cache, user, 20)
    assert cache.match(User(2, list(range(60)))).num_tokens == 28
    assert all(cache.pool.blocks[block].key is None for block in table(cache, user))


@pytest.mark.parametrize(
    ("length", "hit"), [(9, 8), (10, 8), (11, 4), (16, 12), (17, 12), (30, 24), (32, 28), (33, 28)]
)
def test_a_hit_leaves_the_query_window(length: int, hit: int) -> None:
    """Prompts within the budget are not pruned and leave one token."""
    cache = make_cache()
    first = User(1, list(range(60)))
    start(cache, first)
    compute(cache, first, 60)
    assert cache.match(prompt(2, length)).num_tokens == hit


def test_windows_are_left_alone() -> None:
    cache = make_cache(None, 6, None)
    user = prompt(1, 30)
    start(cache, user)
    for _ in range(5):
        compute(cache, user, 5)
    assert cache.reserve(user, 5)
    sliding = list(table(cache, user, 1))
    compactions = cache.compact(user) or []
    assert [one.group for one in compactions] == [0, 2]
    user.num_planned = user.num_computed = 30
    cache.commit(user)
    cache.finish_compaction(user)
    assert table(cache, user, 1) == sliding
    assert cache.kv_start(user, 31) == (11, 31, 11)
    assert [len(table(cache, user, group)) for group in range(3)] == [3, 8, 3]
    for _ in range(20):
        user.token_ids.append(1)
        compute(cache, user, 1)
        assert cache.check_integrity() == []
    assert [len(table(cache, user, group)) for group in range(3)] == [8, 13, 8]
    cache.release(user)
    assert cache.num_free == 32


def test_own_blocks_are_overwritten_when_no_other_is_left() -> None:
    cache = make_cache(num_blocks=8)
    user = prompt(1, 30)
    start(cache, user)
    compute(cache, user, 26)
    assert cache.reserve(user, 4)
    assert cache.num_free == 0
    old = list(table(cache, user))
    new = compact(cache, user)
    assert new == old[:-4:-1], "the last ones, so that the beginning can still be found"
    assert cache.num_free == 5
    assert cache.match(User(2, list(range(40)))).num_tokens == 20


def test_blocks_of_others_are_never_overwritten() -> None:
    """Two fresh blocks and one of its own are too few for three, as long as the prefix is shared."""
    cache = make_cache(num_blocks=9)
    first, second = User(1, list(range(24))), prompt(2, 28)
    start(cache, first)
    compute(cache, first, 24)
    assert start(cache, second) == 24
    assert cache.reserve(second, 4)
    filler = User(3, [99] * 4)
    start(cache, filler)
    compute(cache, filler, 4)
    assert cache.num_free == 1
    assert cache.compact(second) is None
    assert cache.num_free == 1
    assert cache.check_integrity() == []
    cache.release(first)
    assert cache.compact(second) is not None


def test_leased_blocks_are_never_overwritten() -> None:
    """With the pool full, the tail would go first; a lease on it turns to blocks before."""
    groups = (CacheGroup((0,), None),)
    cache = KVCache(groups, 8, 4, True, compaction=RULE, max_leased=6)
    user = prompt(1, 30)
    start(cache, user)
    compute(cache, user, 26)
    assert cache.reserve(user, 4)
    old = list(table(cache, user))
    assert cache.pool.lease(old[3:6], 60.0)
    assert compact(cache, user) == [old[7], old[6], old[2]]


def test_a_release_returns_the_targets_too() -> None:
    """A request is aborted while the step that compacts it is in flight."""
    cache = make_cache(None, 5)
    user = prompt(1, 30)
    start(cache, user)
    assert cache.reserve(user, 30)
    assert cache.compact(user) is not None
    cache.release(user)
    assert cache.num_free == 32
    assert cache.check_integrity() == []


def test_demand_counts_the_blocks_of_both() -> None:
    """The prompt's eight blocks and the three that it shrinks to are held at once; then outputs follow the three."""
    cache = make_cache(num_blocks=60)
    user = prompt(1, 30)
    assert cache.demand(user, 8, cache.match(user)) == 8 + 3
    user.token_ids += range(30, 70)
    assert cache.demand(user, 8, cache.match(user)) == 13
    del user.token_ids[30:]
    start(cache, user)
    compact(cache, user)
    user.token_ids += range(30, 70)
    assert cache.demand(user, 8) == 13 - 3


def test_what_a_lone_sequence_can_have_includes_its_query_window() -> None:
    """A window group holds its window and a chunk that cannot be smaller."""
    plain = KVCache((CacheGroup((0,), None), CacheGroup((1,), 5)), 20, 4, True)
    assert make_cache(None, 5, num_blocks=20).max_sequence_tokens() < plain.max_sequence_tokens()


def test_without_full_attention_nothing_is_compacted() -> None:
    assert make_cache(5, 9).compaction is None


def test_rules_and_limits_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="8 entries cannot hold the 9 last tokens"):
        CompactionRule(length=8, query_window=9)
    limits = SchedulerLimits(
        max_num_seqs=8,
        max_tokens_per_step=38,
        chunked_prefill=True,
        max_waiting=1,
        max_model_len=99,
    )
    limits.check_compaction(None)
    limits.check_compaction(CompactionRule(64, 31))
    with pytest.raises(ConfigError, match=r"max_tokens_per_step is 38.*raise it to 39"):
        limits.check_compaction(CompactionRule(64, 32))
