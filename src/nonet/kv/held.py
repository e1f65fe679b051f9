"""What one sequence holds of the cache: a block table per cache group, and how far each is from plain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from nonet.core.step import BlockTableUpdate
from nonet.kv.block import NULL_BLOCK
from nonet.kv.compaction import PendingCompaction

__all__ = ["Held"]


@dataclass(slots=True, eq=False)
class Held:
    """Tables of one sequence; `kv.cache` alone changes them."""

    seq_id: int
    block_size: int
    tables: list[list[int]]
    num_slid: list[int]  # per group, leading entries that a window has left behind
    slides_at: int  # position from which a window leaves one more entry behind
    num_published: int = 0  # leading blocks that were offered to the prefix index
    num_dropped: tuple[int, ...] | None = None  # per group, KV entries left out; None: none ever
    pending: PendingCompaction | None = None  # of a step in flight
    changes: list[tuple[int, int, int]] = field(default_factory=list)  # group, start, stop

    def blocks(self, group: int, num_tokens: int) -> int:
        """Table entries that the first `num_tokens` tokens take in a group."""
        dropped = self.num_dropped[group] if self.num_dropped else 0
        return -(-(num_tokens - dropped) // self.block_size)

    def missing(self, num_tokens: int) -> list[int]:
        """Per group, blocks to allocate so that the first `num_tokens` tokens have room."""
        return [
            max(0, self.blocks(group, num_tokens) - len(table))
            for group, table in enumerate(self.tables)
        ]

    def references(self) -> Iterator[int]:
        """Every block that the sequence holds a reference to."""
        for table in self.tables:
            yield from filter(None, table)
        if self.pending is not None:
            yield from self.pending.fresh

    def take_updates(self) -> Iterator[BlockTableUpdate]:
        """Entries that changed since the last call; those past a table's end are null."""
        for group, start, stop in self.changes:
            entries = self.tables[group][start:stop]
            entries += [NULL_BLOCK] * (stop - start - len(entries))
            yield BlockTableUpdate(self.seq_id, group, start, entries)
        self.changes.clear()

    def check_integrity(self) -> Iterator[str]:
        if len({len(table) for table in self.tables}) != 1 and self.num_dropped is None:
            yield f"sequence {self.seq_id} has tables of different lengths"
        for group, table in enumerate(self.tables):
            num_slid = self.num_slid[group]
            if any(table[:num_slid]) or not all(table[num_slid:]):
                yield f"sequence {self.seq_id}: null blocks out of place, group {group}"
