"""The buffers a step is written into: allocated once at their largest, so that a recorded forward finds them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from nonet.core.step import Row
from nonet.kernels.ops import AttentionInputs, StepShape
from nonet.kv.storage import KVStorage
from nonet.layers.forward_step import AdapterRows, ForwardStep
from nonet.runner.sequences import LiveSequence, SequenceTable

__all__ = ["StepBuffers"]

Ints = npt.NDArray[np.int32]


class StepBuffers:
    """Fixed-address int32 inputs of a forward pass, filled from a plan's rows.

    Everything lies in one block of host memory. On another device a twin of it, at fixed addresses too, is brought up
    to date by one copy per step; the host then writes in turn into two blocks, because the copy of a step that is still
    queued reads the other. What lies behind the live rows is padding that a replay for more rows may run over: it
    stores nothing and sees nothing.

    A token that was sampled and not yet read is written as -(n + 1) when it is the n-th sample of the step before;
    `Ops.take_sampled` puts its id in.
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
        device: torch.device,
    ) -> None:
        self._storage = storage
        self._block_size = block_size
        self._max_num_seqs = max_num_seqs
        self.max_rows = max_rows
        self.has_unread = False  # some token of the step is a reference
        sizes = [max_tokens, max_tokens, max_tokens, max_num_seqs + 1, max_rows]
        sizes += [max_num_seqs, max_tokens, max_num_seqs * max_blocks] * num_groups
        is_host = device.type == "cpu"
        self._hosts = [
            _HostBlock(sizes, max_blocks, pinned=not is_host) for _ in range(1 if is_host else 2)
        ]
        self._turn = 0
        self._here = self._hosts[0].views
        self._device = (
            self._hosts[0].memory
            if is_host
            else torch.zeros_like(self._hosts[0].memory, device=device)
        )
        self._there = _Views.cut(self._device.split(sizes), max_blocks)
        self.adapters = AdapterRows(self._there.adapters)

    @property
    def device(self) -> torch.device:
        return self._device.device

    @property
    def largest(self) -> StepShape:
        most = len(self._here.token_ids)
        return StepShape(most, self._max_num_seqs, self.max_rows, most)

    def step(self, shape: StepShape) -> ForwardStep:
        """A step on the first rows of every buffer, to record on; lengths are the longest there can be."""
        longest = self._here.tables[0].shape[1] * self._block_size
        return self._step(shape, max_kv_len=longest)

    def fill(self, rows: Sequence[Row], sequences: SequenceTable) -> tuple[StepShape, ForwardStep]:
        """Write the step; the returned tensors are views that the next call overwrites."""
        host = self._next_host()
        counts = np.fromiter(
            (row.num_tokens + len(row.drafts) for row in rows), np.int32, len(rows)
        )
        starts = np.fromiter((row.start for row in rows), np.int32, len(rows))
        ends = np.cumsum(counts, dtype=np.int32)
        total = int(ends[-1])
        self._here.query_start.numpy()[: len(rows) + 1] = np.concatenate(
            (np.zeros(1, np.int32), ends)
        )
        owner = np.repeat(np.arange(len(rows), dtype=np.int32), counts)
        offset = np.arange(total, dtype=np.int32) - (ends - counts)[owner]
        self._here.positions.numpy()[:total] = starts[owner] + offset
        self._fill_tokens(rows, sequences, ends - counts)
        self._fill_cache_places(rows, sequences, counts, starts, owner, offset)
        self._fill_adapters(rows, sequences, owner)
        num_rows = self._fill_rows(rows, ends)
        shape = StepShape(total, len(rows), num_rows, int(counts.max()))
        longest = int((starts + counts).max())
        self._pad(shape)
        self._send(host)
        return shape, self._step(shape, max_kv_len=longest)

    def clear(self) -> None:
        """Nothing but padding, over which a forward of any shape may run."""
        host = self._next_host()
        self.has_unread = self.adapters.in_use = False
        self._here.query_start.numpy()[0] = 0
        self._pad(StepShape(0, 0, 0, 0))
        self._send(host)

    def _next_host(self) -> _HostBlock:
        """The block whose turn it is, once the device has read what it held."""
        self._turn = (self._turn + 1) % len(self._hosts)
        host = self._hosts[self._turn]
        if host.read is not None:
            host.read.synchronize()
        self._here = host.views
        return host

    def _send(self, host: _HostBlock) -> None:
        """Bring the device's twin up to date, where there is one."""
        if host.read is not None:
            self._device.copy_(host.memory, non_blocking=True)
            host.read.record()

    def _fill_tokens(self, rows: Sequence[Row], sequences: SequenceTable, firsts: Ints) -> None:
        token_ids = self._here.token_ids.numpy()
        self.has_unread = False
        for row, first in zip(rows, firsts.tolist(), strict=True):
            sequence = sequences[row.seq_id]
            known = sequence.token_ids
            if row.num_tokens == 1 and not row.drafts:
                is_unread = row.start >= len(known)
                self.has_unread |= is_unread
                token_ids[first] = _unread(sequence) if is_unread else known[row.start]
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
            self._here.kv_len[group].numpy()[: len(rows)] = kv_len
            self._here.tables[group].numpy()[: len(rows), :width] = mine
            self._here.slots[group].numpy()[: len(owner)] = (
                mine[owner, place // size] * size + place % size
            )

    def _fill_adapters(self, rows: Sequence[Row], sequences: SequenceTable, owner: Ints) -> None:
        slots = np.fromiter((sequences[row.seq_id].adapter for row in rows), np.int32, len(rows))
        self._here.adapters.numpy()[: len(owner)] = slots[owner]
        self.adapters.in_use = bool(slots.any())

    def _fill_rows(self, rows: Sequence[Row], ends: Ints) -> int:
        wanted: list[int] = []
        for row, end in zip(rows, ends.tolist(), strict=True):
            wanted.extend(range(end - row.num_samples, end))
        self._here.rows.numpy()[: len(wanted)] = wanted
        return len(wanted)

    def _step(self, shape: StepShape, *, max_kv_len: int) -> ForwardStep:
        views = self._there
        # Where no token is wanted, the last layer still has one to work on: not every kernel takes none.
        num_rows = max(1, shape.num_rows)
        groups = [
            AttentionInputs(
                positions=views.positions[: shape.num_tokens],
                query_start=views.query_start[: shape.num_seqs + 1],
                kv_len=views.kv_len[group][: shape.num_seqs],
                block_table=views.tables[group][: shape.num_seqs],
                slots=views.slots[group][: shape.num_tokens],
                max_query_len=shape.max_query_len,
                max_kv_len=max_kv_len,
            )
            for group in range(len(views.tables))
        ]
        return ForwardStep(
            token_ids=views.token_ids[: shape.num_tokens],
            rows=views.rows[:num_rows],
            inputs=tuple(groups[group] for group in self._storage.group_of_layer),
            caches=self._storage.caches,
        )

    def _pad(self, shape: StepShape) -> None:
        here = self._here
        for view in (here.token_ids, here.positions, here.adapters):
            view.numpy()[shape.num_tokens :] = 0
        here.rows.numpy()[shape.num_rows :] = 0
        here.query_start.numpy()[shape.num_seqs + 1 :] = shape.num_tokens
        for kv_len, slots in zip(here.kv_len, here.slots, strict=True):
            kv_len.numpy()[shape.num_seqs :] = 0
            slots.numpy()[shape.num_tokens :] = -1


def _unread(sequence: LiveSequence) -> int:
    """Stands for the token that follows the known ones until `Ops.take_sampled` puts it in."""
    assert sequence.unread is not None, "a row begins at a token that no step in flight samples"
    return -1 - sequence.unread


class _HostBlock:
    """Host memory of one step's inputs; `read` is recorded when the device has copied it, None where it never does."""

    def __init__(self, sizes: list[int], max_blocks: int, *, pinned: bool) -> None:
        self.memory = torch.zeros(sum(sizes), dtype=torch.int32, pin_memory=pinned)
        self.views = _Views.cut(self.memory.split(sizes), max_blocks)
        self.read = torch.cuda.Event() if pinned else None


@dataclass(frozen=True, slots=True)
class _Views:
    """The pieces of one block of memory; one entry per cache group in the lists."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    adapters: torch.Tensor
    query_start: torch.Tensor
    rows: torch.Tensor
    kv_len: list[torch.Tensor]
    slots: list[torch.Tensor]
    tables: list[torch.Tensor]

    @classmethod
    def cut(cls, pieces: Sequence[torch.Tensor], max_blocks: int) -> _Views:
        token_ids, positions, adapters, query_start, rows, *groups = pieces
        tables = [piece.view(-1, max_blocks) for piece in groups[2::3]]
        return cls(
            token_ids,
            positions,
            adapters,
            query_start,
            rows,
            list(groups[0::3]),
            list(groups[1::3]),
            tables,
        )
