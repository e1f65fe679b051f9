"""The KV cache as the scheduler sees it: match a prompt, reserve room, commit what was computed, release.

All cache groups share one pool of equal blocks. A sequence has one block table per group: entry i stands for tokens
[i * block_size, (i + 1) * block_size). In a group with a sliding window, entries that no later token can see become the
null block; the numbering stays. In a group that was compacted (`kv.compaction`), entry i stands for KV entries of these
numbers, and the KV entry of a token is its position less those that were left out.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence

from nonet.config.resolved import CacheGroup
from nonet.core.request import PrefixLease
from nonet.core.step import BlockTableUpdate, Compaction
from nonet.kv.block import NULL_BLOCK
from nonet.kv.block_pool import BlockPool
from nonet.kv.compaction import CompactionRule, reserve_targets
from nonet.kv.evict.base import Evictor
from nonet.kv.evict.lru import LruEvictor
from nonet.kv.held import Held
from nonet.kv.prefix.base import PrefixIndex
from nonet.kv.prefix.hashed import HashedPrefixIndex
from nonet.kv.user import CacheUser, LeaseHolder, PrefixHit

__all__ = ["KVCache"]


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
        compaction: CompactionRule | None = None,
    ) -> None:
        self.groups = groups
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_cache = prefix_cache
        self.compaction = compaction if any(not group.window for group in groups) else None
        self._index = index if index is not None else HashedPrefixIndex(len(groups), block_size)
        self.pool = BlockPool(
            num_blocks, evictor if evictor is not None else LruEvictor(), self._index, max_leased
        )
        self._windows = [(g, group.window) for g, group in enumerate(groups) if group.window]
        self._full = [g for g, group in enumerate(groups) if not group.window]
        self._held: dict[int, Held] = {}
        self._changed: dict[int, Held] = {}

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

    @property
    def compaction_blocks(self) -> int:
        """Blocks that the compaction of one sequence fills, over all groups."""
        if self.compaction is None:
            return 0
        return len(self._full) * self.compaction.blocks(self.block_size)

    def max_sequence_tokens(self) -> int:
        """Most tokens that one sequence can compute, few at a time, when it has all but the leased blocks to itself."""
        chunk = self.compaction.query_window if self.compaction else 1
        num_blocks = self.num_blocks - self.pool.leases.max_blocks
        low, high = 0, 2**31  # no bound where every group has a window
        while low < high:
            middle = (low + high + 1) // 2
            most = sum(self._most_live(g, middle, chunk) for g in range(len(self.groups)))
            if most <= num_blocks:
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
            total += max(0, self._most_held(seq, g, max_chunk) - live)
        return total

    def attach(self, seq: CacheUser, hit: PrefixHit) -> None:
        """Give the sequence its tables, starting from a hit that was matched just now."""
        assert seq.seq_id not in self._held, f"sequence {seq.seq_id} already holds tables"
        held = Held(
            seq.seq_id,
            self.block_size,
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
        counts = range(1, num_tokens + 1)
        return bisect_right(
            counts, self.pool.num_free, key=lambda n: sum(held.missing(seq.num_planned + n))
        )

    def reserve(self, seq: CacheUser, num_tokens: int) -> bool:
        """Room in every group for the next `num_tokens` tokens, drafts included; all or nothing.

        Blocks that a window has left behind are freed first. What counts is the oldest token not known to be computed:
        a step in flight may still read what it sees.
        """
        held = self._held[seq.seq_id]
        self._slide(held, seq.num_computed)
        missing = held.missing(seq.num_planned + num_tokens)
        if sum(missing) > self.pool.num_free:
            return False
        for g, count in enumerate(missing):
            if count:
                table = held.tables[g]
                table += self.pool.allocate(count)
                self._change(held, g, len(table) - count, len(table))
        return True

    def commit(self, seq: CacheUser) -> None:
        """Publish the blocks that are full of computed tokens. All of `token_ids` is final: no drafts among them."""
        held = self._held[seq.seq_id]
        num_full = seq.num_computed // self.block_size
        if held.num_published >= num_full or not self.prefix_cache or held.num_dropped is not None:
            return
        keys = seq.cache_keys
        self._index.extend(keys, seq.token_ids, seq.adapter_id, seq.cache_salt)
        overwritten = held.pending.reused if held.pending else ()
        for i in range(held.num_published, num_full):
            for g, table in enumerate(held.tables):
                if table[i] != NULL_BLOCK and table[i] not in overwritten:
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
        for g, table in enumerate(held.tables):
            keep, have = held.blocks(g, num_tokens), len(table)
            if keep < have:
                assert held.num_dropped or keep >= held.num_published, (
                    "a published block cannot be rolled back"
                )
                self.pool.free(reversed(table[keep:]))
                del table[keep:]
                self._change(held, g, keep, have)

    def compact(self, seq: CacheUser) -> list[Compaction] | None:
        """Blocks for what stays of the sequence once the step being planned has computed its prompt.

        None, and nothing changes, while there are too few.
        """
        held, rule = self._held[seq.seq_id], self.compaction
        assert rule is not None
        assert held.pending is None, f"sequence {seq.seq_id} is compacted twice"
        tables = [table if g in self._full else None for g, table in enumerate(held.tables)]
        held.pending = reserve_targets(self.pool, tables, rule.blocks(self.block_size))
        if held.pending is None:
            return None
        return [
            Compaction(seq_id=seq.seq_id, group=g, length=rule.length, block_ids=blocks)
            for g, blocks in enumerate(held.pending.targets)
            if blocks
        ]

    def finish_compaction(self, seq: CacheUser) -> None:
        """The step has copied what stays: the new blocks are the sequence's tables, and the old ones are free."""
        held, rule = self._held[seq.seq_id], self.compaction
        assert rule is not None
        assert held.pending is not None
        assert seq.compact_at is not None
        for g in self._full:
            old, new = held.tables[g], held.pending.targets[g]
            again = held.pending.reused
            self.pool.free(block_id for block_id in reversed(old) if block_id not in again)
            held.tables[g] = list(new)
            self._change(held, g, 0, max(len(old), len(new)))
        dropped = seq.compact_at - rule.length
        held.num_dropped = tuple(0 if group.window else dropped for group in self.groups)
        held.pending = None

    def kv_start(self, seq: CacheUser, position: int) -> tuple[int, ...] | None:
        """Entries that each group holds of the tokens before `position`; None where that is all of them."""
        dropped = self._held[seq.seq_id].num_dropped
        return None if dropped is None else tuple(position - count for count in dropped)

    def release(self, seq: CacheUser) -> None:
        """Free all blocks of the sequence, last first, so that a prefix loses its tail before its head."""
        held = self._held.pop(seq.seq_id)
        self._changed.pop(seq.seq_id, None)
        if held.pending is not None:
            self.pool.free(held.pending.fresh)
        for i in range(max(map(len, held.tables)) - 1, -1, -1):
            self.pool.free([table[i] for table in held.tables if i < len(table)])

    def holds(self, seq: CacheUser) -> bool:
        return seq.seq_id in self._held

    def drain_updates(self) -> list[BlockTableUpdate]:
        """Table entries that changed since the last call, of sequences that still hold tables."""
        if not self._changed:
            return []
        updates: list[BlockTableUpdate] = []
        for held in self._changed.values():
            updates += held.take_updates()
        self._changed.clear()
        return updates

    def check_integrity(self) -> list[str]:
        """What is wrong with tables, pool and index; empty when all is well."""
        problems: list[str] = []
        references: Counter[int] = Counter()
        for held in self._held.values():
            problems += held.check_integrity()
            references.update(held.references())
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
        limit = len(seq.token_ids) - 1
        if self.compaction and seq.compact_at is not None:
            limit = seq.compact_at - self.compaction.query_window
        return limit // self.block_size

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

    def _most_held(self, seq: CacheUser, group: int, chunk: int) -> int:
        """Most blocks that the sequence will hold at once in a group until its known tokens are computed."""
        known, rule, point = len(seq.token_ids), self.compaction, seq.compact_at
        if rule is None or point is None or self.groups[group].window:
            return self._most_live(group, known, chunk)
        is_done = seq.num_computed >= point
        return rule.most_blocks(known, point, self.block_size, is_done=is_done)

    def _most_live(self, group: int, num_tokens: int, chunk: int) -> int:
        """Most blocks that `num_tokens` tokens hold at once in a group, computed at most `chunk` at a time."""
        blocks = -(-num_tokens // self.block_size)
        window = self.groups[group].window
        if window is None:
            return blocks
        # A run of t tokens touches at most (t - 2) // block_size + 2 blocks.
        return min(blocks, (window + chunk - 3) // self.block_size + 2)

    def _slide(self, held: Held, position: int) -> None:
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

    def _change(self, held: Held, group: int, start: int, stop: int) -> None:
        held.changes.append((group, start, stop))
        self._changed[held.seq_id] = held
