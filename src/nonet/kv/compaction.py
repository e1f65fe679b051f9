"""Compaction: once a prompt is computed, its full-attention groups keep a fixed number of entries, in other blocks.

Which entries stay is the runner's business. Here is when it happens, how that shapes a prompt's chunks, and which
blocks take what stays.
"""

from __future__ import annotations

from dataclasses import dataclass

from nonet.core.errors import ConfigError
from nonet.kv.block_pool import BlockPool

__all__ = ["CompactionRule", "PendingCompaction", "reserve_targets"]


@dataclass(frozen=True, slots=True)
class CompactionRule:
    """Prompts of more than `length` tokens are cut down to `length` entries when their last token is computed.

    One step computes at least the last `query_window` tokens of such a prompt, because their queries are looked at
    together.

    >>> rule = CompactionRule(length=8, query_window=4)
    >>> rule.point(8, 100), rule.point(9, 100), rule.point(9, 10)
    (None, 9, None)
    """

    length: int
    query_window: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.query_window <= self.length:
            raise ConfigError(
                f"{self.length} entries cannot hold the {self.query_window} last tokens of a prompt; keep at least as "
                "many entries as the query window has tokens, and at least one"
            )

    def point(self, num_prompt: int, max_len: int) -> int | None:
        """The number of tokens after which a sequence is compacted; None: never.

        A sequence that ends with its first output token needs its cache no more.
        """
        return num_prompt if num_prompt > self.length and max_len > num_prompt + 1 else None

    def blocks(self, block_size: int) -> int:
        """Blocks that what stays takes in one group."""
        return -(-self.length // block_size)

    def most_blocks(self, known: int, point: int, block_size: int, *, is_done: bool) -> int:
        """Most blocks of one group that a sequence of `known` tokens, compacted after `point`, will hold at once."""
        after = -(-(self.length + known - point) // block_size)
        if is_done:
            return after
        return max(-(-point // block_size) + self.blocks(block_size), after)

    def chunk(self, left: int, granted: int) -> int:
        """How many of the `granted` next tokens a step may compute when `left` are left of the prompt, 0 or less when
        none are; 0 when they are too few for what must stay together.

        >>> [CompactionRule(length=8, query_window=4).chunk(10, granted) for granted in (3, 8, 9, 10, 11)]
        [3, 6, 6, 10, 10]
        """
        if left <= 0:
            return granted
        return left if granted >= left else max(0, min(granted, left - self.query_window))

    def least(self, left: int) -> int:
        """The smallest chunk that `chunk` ever grants."""
        return left if 0 < left <= self.query_window else 1


@dataclass(frozen=True, slots=True)
class PendingCompaction:
    """Blocks that a step in flight copies to, one list per cache group, empty where nothing is compacted.

    `reused` are those of the sequence's own blocks that are overwritten; the others are fresh.
    """

    targets: tuple[list[int], ...]
    reused: frozenset[int]

    @property
    def fresh(self) -> list[int]:
        return [
            block_id
            for blocks in self.targets
            for block_id in blocks
            if block_id not in self.reused
        ]


def reserve_targets(
    pool: BlockPool, tables: list[list[int] | None], count: int
) -> PendingCompaction | None:
    """`count` blocks for each table that is not None; None, and nothing changes, when there are too few.

    Fresh blocks while the pool has any, then blocks of the same table that nobody else uses and no lease keeps; their
    old content can no longer be found. So a sequence that has the pool to itself can always be compacted. A block is
    reused within its group only: layers of different groups share the memory of a page, and a group that is copied
    later would find its entries overwritten.
    """
    own = [None if table is None else _unshared(pool, table) for table in tables]
    least = [0 if mine is None else max(0, count - len(mine)) for mine in own]
    spare = pool.num_free - sum(least)
    if spare < 0:
        return None
    targets: list[list[int]] = []
    reused: set[int] = set()
    for needed, mine in zip(least, own, strict=True):
        if mine is None:
            targets.append([])
            continue
        num_fresh = min(count, needed + spare)
        spare -= num_fresh - needed
        again = mine[: count - num_fresh]
        for block_id in again:
            pool.withdraw(block_id)
        reused.update(again)
        targets.append(pool.allocate(num_fresh) + again)
    return PendingCompaction(tuple(targets), frozenset(reused))


def _unshared(pool: BlockPool, table: list[int]) -> list[int]:
    """Blocks that may be overwritten, the last ones first: a prefix loses its tail before its head."""
    return [
        block_id
        for block_id in reversed(table)
        if pool.blocks[block_id].num_refs == 1 and block_id not in pool.leases
    ]
