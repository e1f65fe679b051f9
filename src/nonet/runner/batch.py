"""The buffers a step is written into: allocated once at their largest, so that a recorded forward finds them again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from nonet.core.step import Row
from nonet.kernels.ops import AttentionInputs, StepShape
from nonet.kv.storage import KVStorage
from nonet.layers.forward_step import ForwardStep
from nonet.runner.sequences import SequenceTable

__all__ = ["StepBuffers"]

Ints = npt.NDArray[np.int32]


class StepBuffers:
    """Fixed-address int32 inputs of a forward pass, filled from a plan's rows.

    Host arrays are views of the device tensors where both are the CPU; elsewhere one copy per step brings them over.
    """

    def __init__(
        self,
        storage: KVStorage,
        *,
        block_size: int,
        max_tokens: int,
        max_num_seqs: int,
        max_rows: int,
        max_blocks: int,
        num_groups: int,
    ) -> None:
        self._storage = storage
        self._block_size = block_size
        self._max_num_seqs = max_num_seqs
        self._token_ids = torch.zeros(max_tokens, dtype=torch.int32)
        self._positions = torch.zeros(max_tokens, dtype=torch.int32)
        self._query_start = torch.zeros(max_num_seqs + 1, dtype=torch.int32)
        self._kv_len = [torch.zeros(max_num_seqs, dtype=torch.int32) for _ in range(num_groups)]
        self._slots = [torch.zeros(max_tokens, dtype=torch.int32) for _ in range(num_groups)]
        self._tables = [
            torch.zeros(max_num_seqs, max_blocks, dtype=torch.int32) for _ in range(num_groups)
        ]
        self._rows = torch.zeros(max_rows, dtype=torch.int32)
        self.max_rows = max_rows

    @property
    def largest(self) -> StepShape:
        return StepShape(len(self._token_ids), self._max_num_seqs, len(self._rows))

    def step(self, shape: StepShape) -> ForwardStep:
        """A step on the first rows of every buffer, to record on; lengths are the longest there can be."""
        longest = self._tables[0].shape[1] * self._block_size
        return self._step(shape, max_query_len=shape.num_tokens, max_kv_len=longest)

    def fill(self, rows: Sequence[Row], sequences: SequenceTable) -> tuple[StepShape, ForwardStep]:
        """Write the step; the returned tensors are views that the next call overwrites."""
        counts = np.fromiter(
            (row.num_tokens + len(row.drafts) for row in rows), np.int32, len(rows)
        )
        starts = np.fromiter((row.start for row in rows), np.int32, len(rows))
        ends = np.cumsum(counts, dtype=np.int32)
        total = int(ends[-1])
        self._query_start.numpy()[: len(rows) + 1] = np.concatenate((np.zeros(1, np.int32), ends))
        owner = np.repeat(np.arange(len(rows), dtype=np.int32), counts)
        offset = np.arange(total, dtype=np.int32) - (ends - counts)[owner]
        self._positions.numpy()[:total] = starts[owner] + offset
        self._fill_tokens(rows, sequences, ends - counts)
        self._fill_cache_places(rows, sequences, counts, starts, owner, offset)
        num_rows = self._fill_rows(rows, ends)
        shape = StepShape(total, len(rows), num_rows)
        longest = int((starts + counts).max())
        return shape, self._step(shape, max_query_len=int(counts.max()), max_kv_len=longest)

    def _fill_tokens(self, rows: Sequence[Row], sequences: SequenceTable, firsts: Ints) -> None:
        token_ids = self._token_ids.numpy()
        for row, first in zip(rows, firsts.tolist(), strict=True):
            known = sequences[row.seq_id].token_ids
            if row.num_tokens == 1 and not row.drafts:
                token_ids[first] = known[row.start]
                continue
            ids = [*known[row.start : row.start + row.num_tokens], *row.drafts]
            token_ids[first : first + len(ids)] = ids

    def _fill_cache_places(
        self,
        rows: Sequence[Row],
        sequences: SequenceTable,
        counts: Ints,
        starts: Ints,
        owner: Ints,
        offset: Ints,
    ) -> None:
        seq_slots = np.fromiter((sequences[row.seq_id].slot for row in rows), np.int32, len(rows))
        size = self._block_size
        for group, table in enumerate(sequences.tables):
            kv_starts = starts
            if any(row.kv_start is not None for row in rows):
                kv_starts = np.array(
                    [row.kv_start[group] if row.kv_start else row.start for row in rows], np.int32
                )
            kv_len = kv_starts + counts
            width = -(-int(kv_len.max()) // size)
            mine = table[seq_slots, :width]
            place = kv_starts[owner] + offset
            self._kv_len[group].numpy()[: len(rows)] = kv_len
            self._tables[group].numpy()[: len(rows), :width] = mine
            self._slots[group].numpy()[: len(owner)] = (
                mine[owner, place // size] * size + place % size
            )

    def _fill_rows(self, rows: Sequence[Row], ends: Ints) -> int:
        wanted: list[int] = []
        for row, end in zip(rows, ends.tolist(), strict=True):
            wanted.extend(range(end - row.num_samples, end))
        self._rows.numpy()[: len(wanted)] = wanted
        return len(wanted)

    def _step(self, shape: StepShape, *, max_query_len: int, max_kv_len: int) -> ForwardStep:
        groups = [
            AttentionInputs(
                positions=self._positions[: shape.num_tokens],
                query_start=self._query_start[: shape.num_seqs + 1],
                kv_len=self._kv_len[group][: shape.num_seqs],
                block_table=self._tables[group][: shape.num_seqs],
                slots=self._slots[group][: shape.num_tokens],
                max_query_len=max_query_len,
                max_kv_len=max_kv_len,
            )
            for group in range(len(self._tables))
        ]
        return ForwardStep(
            token_ids=self._token_ids[: shape.num_tokens],
            rows=self._rows[: shape.num_rows],
            inputs=tuple(groups[group] for group in self._storage.group_of_layer),
            caches=self._storage.caches,
        )
