"""The KV cache as the scheduler sees it: match a prompt, reserve room, commit what was computed, release.

All cache groups share one pool of equal blocks. A sequence has one block table per group, all of the same length:
entry i stands for tokens [i * block_size, (i + 1) * block_size). In a group with a sliding window, entries that no
later token can see become the null block; the numbering stays.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from nonet.config.resolved import CacheGroup
from nonet.core.request import PrefixLease
from nonet.core.step import BlockTableUpdate
from nonet.kv.block import NULL_BLOCK
from nonet.kv.block_pool import BlockPool
from nonet.kv.evict.base import Evictor
from nonet.kv.evict.lru import LruEvictor
from nonet.kv.prefix.base import PrefixIndex
from nonet.kv.prefix.hashed import HashedPrefixIndex

__all__ = ["CacheUser", "KVCache", "LeaseHolder", "PrefixHit"]


class CacheUser(Protocol):
    """What the cache reads of a sequence.

    `num_computed` tokens are known to be in the cache; `num_planned` will be, once the steps in flight are done.
    `cache_keys` belongs to the prefix index: kept with the sequence, so that each block is hashed once in its life.
    """

    seq_id: int
    token_ids: list[int]
    num_computed: int
    num_planned: int
    cache_keys: list[bytes]

    @property
    def adapter_id(self) -> str: ...

    @property
    def cache_salt(self) -> str: ...

    @property
    def can_hit(self) -> bool:
        """False for a sequence that must compute each of its tokens."""
        ...


class LeaseHolder(CacheUser, Protocol):
    """What the cache reads of a sequence whose prompt, or beginnings of it, shall stay."""

    num_cached: int | None  # tokens that it found in the cache
    num_leased: list[int]

    @property
    def leases(self) -> tuple[PrefixLease, ...]:
        """From the shortest beginning to the longest."""
        ...


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """What `match` found: `blocks[g]` are the first entries of group g's table; `num_idle` of them no one uses now."""

    num_tokens: int
    blocks: tuple[list[int], ...]
    num_idle: int = 0


@dataclass(slots=True, eq=False)
class _Held:
    """Tables of one sequence."""

    seq_id: int
    tables: list[list[int]]
    num_slid: list[int]  # per group, leading entries that a window has left behind
    slides_at: int  # position from which a window leaves one more entry behind
    num_published: int = 0  # leading blocks that were offered to the prefix index
    changes: list[tuple[int, int, int]] = field(default_factory=list)  # group, start, stop


class KVCache:
    """Blocks of all sequences.

    >>> cache = KVCache((CacheGroup(layers=(0, 1), window=None),), num_blocks=8, block_size=16, prefix_cache=True)
    >>> cache.num_free, cache.usage, cache.max_sequence_tokens()
    (8, 0.0, 128)
    """

    def __init__(
        self,
        groups: tuple[CacheGroup, ...],
        num_blocks: int,
        block_size: int,
        prefix_cache: bool,
        *,
        index: PrefixIndex | None = None,
        evictor: Evictor | None = None,
        max_leased: int = 0,
    ) -> None:
        self.groups = groups
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_cache = prefix_cache
        self._index = index if index is not None else HashedPrefixIndex(len(groups), block_size)
        self.pool = BlockPool(
            num_blocks, evictor if evictor is not None else LruEvictor(), self._index, max_leased
        )
        self._windows = [(g, group.window) for g, group in enumerate(groups) if group.window]
        self._full = [g for g, group in enumerate(groups) if not group.window]
        self._held: dict[int, _Held] = {}
        self._changed: dict[int, _Held] = {}

    @property
    def num_free(self) -> int:
        return self.pool.num_free

    @property
    def usage(self) -> float:
        """Share of the blocks that sequences hold."""
        return 1.0 - (self.pool.num_free + self.pool.leases.num_idle) / self.num_blocks

    @property
    def num_leased(self) -> int:
        """Blocks under a lease, read by sequences or not."""
        return len(self.pool.leases)

    def max_sequence_tokens(self) -> int:
        """Most tokens that one sequence can compute, one at a time, when it has all but the leased blocks to itself."""
        num_blocks = self.num_blocks - self.pool.leases.max_blocks
        low, high = 0, 2**31  # no bound where every group has a window
        while low < high:
            middle = (low + high + 1) // 2
            if sum(self._most_live(g, middle, 1) for g in range(len(self.groups))) <= num_blocks:
                low = middle
            else:
                high = middle - 1
        return low

    def match(self, seq: CacheUser) -> PrefixHit:
        """The longest beginning of the sequence that is in the cache for every group; changes nothing.

        A full group needs all blocks of the beginning, a window group those that the next token can see. At least one
        known token is left to compute, as a step without tokens brings no logits.
        """
        if not self.prefix_cache or not seq.can_hit:
            return PrefixHit(0, tuple([] for _ in self.groups))
        keys = seq.cache_keys
        self._index.extend(keys, seq.token_ids, seq.adapter_id, seq.cache_salt)
        length = self._longest_hit(keys, self._most_hit_blocks(seq))
        blocks = (
            tuple([] for _ in self.groups)
            if not length
            else tuple(self._hit_blocks(g, keys, length) for g in range(len(self.groups)))
        )
        num_idle = sum(self.pool.count_idle(group) for group in blocks)
        return PrefixHit(length * self.block_size, blocks, num_idle)

    def demand(self, seq: CacheUser, max_chunk: int, hit: PrefixHit | None = None) -> int:
        """At most how many free blocks the sequence will take until its known tokens are computed.

        For a sequence without tables, `hit` is what it would start from.
        """
        held = self._held.get(seq.seq_id)
        total = hit.num_idle if hit else 0
        for g in range(len(self.groups)):
            live = 0
            if held:
                live = len(held.tables[g]) - held.num_slid[g]
            elif hit:
                live = sum(1 for block_id in hit.blocks[g] if block_id)
            total += max(0, self._most_live(g, len(seq.token_ids), max_chunk) - live)
        return total

    def attach(self, seq: CacheUser, hit: PrefixHit) -> None:
        """Give the sequence its tables, starting from a hit that was matched just now."""
        assert seq.seq_id not in self._held, f"sequence {seq.seq_id} already holds tables"
        held = _Held(
            seq.seq_id,
            tables=[list(blocks) for blocks in hit.blocks],
            num_slid=[0] * len(self.groups),
            slides_at=0 if self._windows else sys.maxsize,
            num_published=hit.num_tokens // self.block_size,
        )
        self._held[seq.seq_id] = held
        for g, table in enumerate(held.tables):
            self.pool.share(table)
            held.num_slid[g] = next((i for i, block in enumerate(table) if block), len(table))
            if table:
                self._change(held, g, 0, len(table))

    def fit(self, seq: CacheUser, num_tokens: int) -> int:
        """The most of the next `num_tokens` tokens that `reserve` would grant now."""
        held = self._held[seq.seq_id]
        self._slide(held, seq.num_computed)
        num_blocks = len(held.tables[0]) + self.pool.num_free // len(self.groups)
        return max(0, min(num_tokens, num_blocks * self.block_size - seq.num_planned))

    def reserve(self, seq: CacheUser, num_tokens: int) -> bool:
        """Room in every group for the next `num_tokens` tokens, drafts included; all or nothing.

        Blocks that a window has left behind are freed first. What counts is the oldest token not known to be computed:
        a step in flight may still read what it sees.
        """
        held = self._held[seq.seq_id]
        self._slide(held, seq.num_computed)
        have = len(held.tables[0])
        missing = -(-(seq.num_planned + num_tokens) // self.block_size) - have
        if missing <= 0:
            return True
        if missing * len(held.tables) > self.pool.num_free:
            return False
        for g, table in enumerate(held.tables):
            table += self.pool.allocate(missing)
            self._change(held, g, have, have + missing)
        return True

    def commit(self, seq: CacheUser) -> None:
        """Publish the blocks that are full of computed tokens. All of `token_ids` is final: no drafts among them."""
        held = self._held[seq.seq_id]
        num_full = seq.num_computed // self.block_size
        if held.num_published >= num_full or not self.prefix_cache:
            return
        keys = seq.cache_keys
        self._index.extend(keys, seq.token_ids, seq.adapter_id, seq.cache_salt)
        for i in range(held.num_published, num_full):
            for g, table in enumerate(held.tables):
                if table[i] != NULL_BLOCK:
                    self.pool.publish(table[i], g, keys[i])
        held.num_published = num_full

    def end_leases(self, now: float) -> None:
        """Time is `now`. Blocks whose lease has run out become free only here, so free blocks grow at known moments."""
        self.pool.end_leases(now)

    def grant_leases(self, seq: LeaseHolder) -> None:
        """Lease, of the beginnings that the sequence asks for, those that are computed by now and committed.

        `num_leased` gets an entry for each: how many tokens this sequence computed that are now kept and were not
        before. A beginning is leased whole or, for want of room, not at all. Of a window only what the next token
        sees is leased: nothing else is needed to begin there.
        """
        for lease in seq.leases[len(seq.num_leased) :]:
            if lease.num_tokens > seq.num_computed:
                return
            seq.num_leased.append(self._lease(seq, lease))

    def truncate(self, seq: CacheUser, num_tokens: int) -> None:
        """Free the blocks past the first `num_tokens` tokens, after drafts were rejected."""
        held = self._held[seq.seq_id]
        keep, have = -(-num_tokens // self.block_size), len(held.tables[0])
        if keep >= have:
            return
        assert keep >= held.num_published, "a published block cannot be rolled back"
        for g, table in enumerate(held.tables):
            self.pool.free(reversed(table[keep:]))
            del table[keep:]
            self._change(held, g, keep, have)

    def release(self, seq: CacheUser) -> None:
        """Free all blocks of the sequence, last first, so that a prefix loses its tail before its head."""
        held = self._held.pop(seq.seq_id)
        self._changed.pop(seq.seq_id, None)
        for i in range(len(held.tables[0]) - 1, -1, -1):
            self.pool.free([table[i] for table in held.tables])

    def holds(self, seq: CacheUser) -> bool:
        return seq.seq_id in self._held

    def drain_updates(self) -> list[BlockTableUpdate]:
        """Table entries that changed since the last call, of sequences that still hold tables."""
        if not self._changed:
            return []
        updates = []
        for held in self._changed.values():
            for g, start, stop in held.changes:
                entries = held.tables[g][start:stop]
                entries += [NULL_BLOCK] * (stop - start - len(entries))
                updates.append(BlockTableUpdate(held.seq_id, g, start, entries))
            held.changes.clear()
        self._changed.clear()
        return updates

    def check_integrity(self) -> list[str]:
        """What is wrong with tables, pool and index; empty when all is well."""
        problems = []
        references: dict[int, int] = {}
        for held in self._held.values():
            if len({len(table) for table in held.tables}) != 1:
                problems.append(f"sequence {held.seq_id} has tables of different lengths")
            for g, table in enumerate(held.tables):
                num_slid = held.num_slid[g]
                if any(table[:num_slid]) or not all(table[num_slid:]):
                    problems.append(f"sequence {held.seq_id}: null blocks out of place, group {g}")
                for block_id in filter(None, table):
                    references[block_id] = references.get(block_id, 0) + 1
        return problems + self.pool.check_integrity(references)

    def _lease(self, seq: LeaseHolder, lease: PrefixLease) -> int:
        """Lease one beginning; the tokens that are newly kept."""
        length = lease.num_tokens // self.block_size
        keys = seq.cache_keys[:length]
        if not self.prefix_cache or self._longest_hit(keys, length) < length:
            return 0
        blocks = [self._hit_blocks(g, keys, length) for g in range(len(self.groups))]
        first = (seq.num_cached or 0) // self.block_size
        new = [
            i
            for i in range(first, length)
            if any(table[i] and table[i] not in self.pool.leases for table in blocks)
        ]
        wanted = [block_id for table in blocks for block_id in table if block_id]
        return len(new) * self.block_size if self.pool.lease(wanted, lease.ttl_s) else 0

    def _most_hit_blocks(self, seq: CacheUser) -> int:
        return (len(seq.token_ids) - 1) // self.block_size

    def _longest_hit(self, keys: Sequence[bytes], length: int) -> int:
        for g in self._full:
            found = 0
            while found < length and self._index.match(g, keys[found]):
                found += 1
            length = found
        # A shorter hit asks a window group for other blocks, so the groups are asked until all agree.
        while True:
            agreed = length
            for g, window in self._windows:
                agreed = self._longest_window_hit(g, window, keys, agreed)
            if agreed == length:
                return length
            length = agreed

    def _longest_window_hit(
        self, group: int, window: int, keys: Sequence[bytes], length: int
    ) -> int:
        while length:
            first = self._first_visible(window, length * self.block_size)
            missing = next(
                (
                    i
                    for i in range(length - 1, first - 1, -1)
                    if not self._index.match(group, keys[i])
                ),
                None,
            )
            if missing is None:
                return length
            length = missing
        return 0

    def _hit_blocks(self, group: int, keys: Sequence[bytes], length: int) -> list[int]:
        window = self.groups[group].window
        first = self._first_visible(window, length * self.block_size) if window else 0
        match = self._index.match
        return [NULL_BLOCK] * first + [match(group, key) for key in keys[first:length]]

    def _first_visible(self, window: int, position: int) -> int:
        """First block that the token at `position` sees through a window that counts the token itself."""
        return max(0, position - window + 1) // self.block_size

    def _most_live(self, group: int, num_tokens: int, chunk: int) -> int:
        """Most blocks that `num_tokens` tokens hold at once in a group, computed at most `chunk` at a time."""
        blocks = -(-num_tokens // self.block_size)
        window = self.groups[group].window
        if window is None:
            return blocks
        # A run of t tokens touches at most (t - 2) // block_size + 2 blocks.
        return min(blocks, (window + chunk - 3) // self.block_size + 2)

    def _slide(self, held: _Held, position: int) -> None:
        """Free what tokens from `position` on cannot see."""
        if position < held.slides_at:
            return
        held.slides_at = sys.maxsize
        for g, window in self._windows:
            first = self._first_visible(window, position)
            held.slides_at = min(held.slides_at, (first + 1) * self.block_size + window - 1)
            done = held.num_slid[g]
            if first > done:
                table = held.tables[g]
                self.pool.free(reversed(table[done:first]))
                table[done:first] = [NULL_BLOCK] * (first - done)
                held.num_slid[g] = first
                self._change(held, g, done, first)

    def _change(self, held: _Held, group: int, start: int, stop: int) -> None:
        held.changes.append((group, start, stop))
        self._changed[held.seq_id] = held
