"""Leases on prompt beginnings under a fake clock: what is kept under pressure, for how long, and what is counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest

from nonet.config.resolved import CacheGroup
from nonet.core.request import PrefixLease
from nonet.kv.cache import KVCache
from nonet.kv.evict.leases import Leases

BLOCK = 4
NUM_BLOCKS = 32
MINUTE = 60.0
SYSTEM = list(range(100, 116))  # four blocks


@dataclass
class User:
    """The least that the cache needs of a sequence with leases."""

    seq_id: int
    token_ids: list[int]
    leases: tuple[PrefixLease, ...] = ()
    num_computed: int = 0
    num_planned: int = 0
    num_cached: int | None = None
    num_leased: list[int] = field(default_factory=list)
    cache_keys: list[bytes] = field(default_factory=list)
    adapter_id: str = ""
    cache_salt: str = ""
    can_hit: bool = True


class Cache:
    """A cache with a clock, through which prompts pass whole, one after the other."""

    def __init__(
        self, *windows: int | None, max_leased: int = 16, kv_class: type[KVCache] = KVCache
    ) -> None:
        groups = tuple(CacheGroup((i,), window) for i, window in enumerate(windows or (None,)))
        self.kv = kv_class(groups, NUM_BLOCKS, BLOCK, prefix_cache=True, max_leased=max_leased)
        self.now = 0.0
        self._next_id = 0

    def at(self, now: float) -> None:
        self.now = now
        self.kv.end_leases(now)
        assert self.kv.check_integrity() == []

    def run(
        self, token_ids: list[int], *leases: PrefixLease, salt: str = "", chunk: int = 1000
    ) -> User:
        """A prompt comes, is computed and leaves; returns what was counted."""
        user = self.start(token_ids, *leases, salt=salt, chunk=chunk)
        self.kv.release(user)
        assert self.kv.check_integrity() == []
        return user

    def start(
        self, token_ids: list[int], *leases: PrefixLease, salt: str = "", chunk: int = 1000
    ) -> User:
        self._next_id += 1
        user = User(self._next_id, token_ids, leases, cache_salt=salt)
        hit = self.kv.match(user)
        self.kv.attach(user, hit)
        user.num_computed = user.num_planned = user.num_cached = hit.num_tokens
        while user.num_computed < len(token_ids):
            size = min(chunk, len(token_ids) - user.num_computed)
            assert self.kv.reserve(user, size)
            user.num_planned += size
            user.num_computed = user.num_planned
            self.kv.commit(user)
            self.kv.grant_leases(user)
        return user

    def pressure(self) -> None:
        """Other prompts, until every block that is free has been given out anew."""
        for _ in range(2):
            size = self.kv.num_free // len(self.kv.groups) * BLOCK
            self.run([Random(self._next_id).randrange(10**6) for _ in range(size)])

    def cached(self, token_ids: list[int]) -> int:
        """Tokens of a prompt that are in the cache now; does not count as use."""
        return self.kv.match(User(0, [*token_ids, 1])).num_tokens


def five_minutes(num_tokens: int = 16) -> PrefixLease:
    return PrefixLease(num_tokens, 5 * MINUTE)


def one_hour(num_tokens: int = 16) -> PrefixLease:
    return PrefixLease(num_tokens, 60 * MINUTE)


def hit_after(wait_s: float, lease: PrefixLease | None, kv_class: type[KVCache] = KVCache) -> int:
    cache = Cache(kv_class=kv_class)
    cache.run([*SYSTEM, 1, 2], *([lease] if lease else []))
    cache.at(wait_s)
    cache.pressure()
    return cache.cached(SYSTEM)


def test_without_a_lease_pressure_takes_the_prefix() -> None:
    assert hit_after(1.0, None) == 0


@pytest.mark.parametrize(
    ("lease", "wait_s", "hit"),
    [
        (five_minutes(), 4 * MINUTE + 59, 16),
        (five_minutes(), 5 * MINUTE + 1, 0),
        (one_hour(), 59 * MINUTE + 59, 16),
        (one_hour(), 60 * MINUTE + 1, 0),
    ],
)
def test_a_lease_lasts_as_long_as_promised(lease: PrefixLease, wait_s: float, hit: int) -> None:
    assert hit_after(wait_s, lease) == hit


class Forgetful(KVCache):
    """Grants nothing, but counts."""

    def _lease(self, seq: User, lease: PrefixLease) -> int:  # type: ignore[override]
        return lease.num_tokens


class Eternal(KVCache):
    """Ends no lease."""

    def end_leases(self, now: float) -> None:
        super().end_leases(0.0)


def test_mutants_are_seen() -> None:
    assert hit_after(1.0, five_minutes(), Forgetful) == 0
    assert hit_after(5 * MINUTE + 1, five_minutes(), Eternal) == 16


@pytest.mark.parametrize("lease", [five_minutes(), None])
def test_each_read_begins_the_time_anew(lease: PrefixLease | None) -> None:
    """Whether the reader asks for a lease itself or not."""
    cache = Cache()
    cache.run([*SYSTEM, 1], five_minutes())
    for minute in (4, 8, 12):
        cache.at(minute * MINUTE)
        cache.pressure()
        assert cache.run([*SYSTEM, minute], *([lease] if lease else [])).num_cached == 16
    cache.at(17 * MINUTE - 1)
    cache.pressure()
    assert cache.cached(SYSTEM) == 16
    cache.at(17 * MINUTE)
    cache.pressure()
    assert cache.cached(SYSTEM) == 0


def test_the_longer_promise_stands() -> None:
    cache = Cache()
    cache.run([*SYSTEM, 1], one_hour())
    assert cache.run([*SYSTEM, 2], five_minutes()).num_leased == [0]
    cache.at(50 * MINUTE)
    cache.pressure()
    assert cache.cached(SYSTEM) == 16


def test_a_read_lives_through_the_end_of_its_lease() -> None:
    cache = Cache()
    reader = cache.start([*SYSTEM, 1], five_minutes())
    cache.at(6 * MINUTE)
    assert len(cache.kv.pool.leases) == 0
    cache.kv.release(reader)
    assert cache.kv.num_free == NUM_BLOCKS
    assert cache.kv.check_integrity() == []


@pytest.mark.parametrize("chunk", [1000, 6, 1])
def test_counts(chunk: int) -> None:
    """Of each lease: the tokens that this prompt computed and that were not kept before, in whole blocks."""
    cache = Cache()
    prompt = [*SYSTEM, *range(10)]
    first = cache.run(prompt, one_hour(15), five_minutes(23), chunk=chunk)
    assert (first.num_cached, first.num_leased) == (0, [12, 8])
    again = cache.run(prompt, one_hour(15), five_minutes(23), chunk=chunk)
    assert (again.num_cached, again.num_leased) == (24, [0, 0])
    longer = cache.run([*prompt[:23], *range(50, 60)], five_minutes(33), chunk=chunk)
    assert (longer.num_cached, longer.num_leased) == (20, [12])


def test_what_was_cached_already_is_read_not_written() -> None:
    cache = Cache()
    cache.run([*SYSTEM, 1])
    second = cache.run([*SYSTEM, 2], five_minutes())
    assert (second.num_cached, second.num_leased) == (16, [0])
    cache.pressure()
    assert cache.cached(SYSTEM) == 16


def test_two_that_compute_the_same_count_it_once() -> None:
    cache = Cache()
    first, second = (User(i, [*SYSTEM, i], (five_minutes(),)) for i in (101, 102))
    for user in (first, second):
        hit = cache.kv.match(user)
        cache.kv.attach(user, hit)
        user.num_cached = hit.num_tokens
        assert cache.kv.reserve(user, 17)
    for user in (first, second):
        user.num_planned = user.num_computed = 17
        cache.kv.commit(user)
        cache.kv.grant_leases(user)
    assert (first.num_leased, second.num_leased) == ([16], [0])
    cache.kv.release(first)
    assert cache.kv.check_integrity() == []
    cache.kv.release(second)
    assert cache.kv.pool.leases.num_idle == 4


def test_less_than_a_block_is_not_kept() -> None:
    cache = Cache()
    assert cache.run(SYSTEM, five_minutes(3)).num_leased == [0]
    assert cache.kv.num_leased == 0


def test_the_bound_holds_and_a_prefix_is_kept_whole_or_not() -> None:
    cache = Cache(max_leased=6)
    assert cache.run([*SYSTEM, 1], five_minutes()).num_leased == [16]
    other = [7, 7, 7, 7] * 4
    assert cache.run([*other, 1], five_minutes()).num_leased == [0]
    assert cache.run([*other, 1], five_minutes(8)).num_leased == [0], (
        "read from the cache, not written"
    )
    assert cache.kv.num_leased == 6
    cache.at(6 * MINUTE)
    assert cache.run([9] * 17, five_minutes()).num_leased == [16]


def test_what_is_leased_is_not_free_and_the_longest_sequence_still_fits() -> None:
    cache = Cache(max_leased=8)
    longest = cache.kv.max_sequence_tokens()
    assert longest == (NUM_BLOCKS - 8) * BLOCK
    cache.run([*range(33)], five_minutes(32))
    assert cache.kv.num_free == NUM_BLOCKS - 8
    assert cache.kv.usage == 0
    assert cache.run([5] * longest).num_cached == 0
    assert cache.cached([*range(32)]) == 32


def test_tenants_are_apart() -> None:
    cache = Cache()
    cache.run([*SYSTEM, 1], five_minutes(), salt="a")
    other = cache.run([*SYSTEM, 1], five_minutes(), salt="b")
    assert (other.num_cached, other.num_leased) == (0, [16])


@pytest.mark.parametrize("chunk", [1000, 5])
def test_of_a_window_only_what_can_be_seen_is_kept(chunk: int) -> None:
    cache = Cache(None, 6, max_leased=10)
    prompt = list(range(24))
    user = cache.run([*prompt, 1], five_minutes(24), chunk=chunk)
    assert user.num_leased == [24]
    assert cache.kv.num_leased == 6 + 2
    cache.pressure()
    assert cache.cached(prompt) == 24
    cache.at(6 * MINUTE)
    cache.pressure()
    assert cache.cached(prompt) == 0


def test_without_prefix_cache_nothing_is_kept() -> None:
    kv = KVCache((CacheGroup((0,), None),), NUM_BLOCKS, BLOCK, prefix_cache=False, max_leased=8)
    user = User(1, SYSTEM, (five_minutes(),))
    kv.attach(user, kv.match(user))
    assert kv.reserve(user, 16)
    user.num_computed = user.num_planned = 16
    kv.commit(user)
    kv.grant_leases(user)
    assert (user.num_leased, kv.num_leased) == ([0], 0)


def test_leases_against_a_plain_list() -> None:
    """Thousands of random moves; the oracle keeps (ttl, end) of each block and looks at all of them each time."""
    random = Random(3)
    leases = Leases(max_blocks=12)
    ends: dict[int, tuple[float, float]] = {}
    idle: set[int] = set()
    now = 0.0
    for _ in range(5000):
        block = random.randrange(30)
        move = random.randrange(4)
        if move == 0 and block not in ends:
            ttl = random.choice((5.0, 60.0))
            granted = leases.grant([block], ttl)
            assert granted == (len(ends) < 12)
            if granted:
                ends[block] = (ttl, now + ttl)
        elif move == 1 and block in ends:
            leases.on_use(block)
            ends[block] = (ends[block][0], now + ends[block][0])
            idle.discard(block)
        elif move == 2 and block in ends:
            leases.on_free(block)
            idle.add(block)
        else:
            now += random.random()
            over = {one for one, (_, end) in ends.items() if end <= now}
            assert set(leases.end(now)) == over & idle
            idle -= over
            ends = {one: kept for one, kept in ends.items() if one not in over}
        assert len(leases) == len(ends)
        assert leases.num_idle == len(idle)
        assert all(one in leases and leases.is_idle(one) == (one in idle) for one in ends)
    assert ends
