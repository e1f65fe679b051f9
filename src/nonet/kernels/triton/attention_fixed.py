"""Paged attention in which a query's bits depend on its own sequence alone: not on its batch, nor on its chunk.

Entries are taken in splits of fixed size that begin at fixed entries. A split starts from nothing, folds its tiles in
rising order, and joins what the splits before it gave. Sequences with few queries have their splits worked out apart,
by any programs, and joined by the last to arrive; tiles of long chunks walk over their splits in turn. Both go through
`_walk`, with tiles of one shape, so that rows meet the same instructions wherever they are.

Entries that a query does not see change nothing of its state, to the bit: so it does not matter in whose company it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from nonet.kernels.ops import AttentionInputs, LayerCache, QKVLayout
from nonet.kernels.triton.attention_join import Scratch, join, join_all, leave
from nonet.kernels.triton.attention_tile import (
    block_ids,
    entry_offsets,
    entry_scales,
    fold,
    group_rows,
    seqs_searched,
    visible_entries,
)

__all__ = ["FixedAttention"]

SPLIT = 256  # entries; part of what decides the bits, as are rows and tile
MOST_FEW = 64  # rows, queries times group, of sequences whose splits are worked out apart
SCRATCH_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class _Tiling:
    """rows: queries times heads of a program. tile: entries at a time."""

    rows: int
    tile: int
    warps: int
    stages: int
    precision: str  # of float32 products


class FixedAttention:
    """As `attention.PagedAttention`, in fixed order; owns the memory for splits, which layers share in turn."""

    def __init__(self, device: torch.device, multiprocessors: int) -> None:
        self._device = device
        self._programs = 2 * multiprocessors  # as many as shared memory holds at once
        self._scratch: dict[tuple[int, int, int], Scratch] = {}

    def __call__(
        self,
        q: torch.Tensor,
        layout: QKVLayout,
        cache: LayerCache,
        inputs: AttentionInputs,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """See `Ops.attention`. Rows of no sequence are left undefined."""
        tokens, num_seqs = q.shape[0], len(inputs.kv_len)
        heads, kv_heads, dim = layout.num_heads, layout.num_kv_heads, layout.head_dim
        group = heads // kv_heads
        out = torch.empty(tokens, heads * dim, dtype=q.dtype, device=q.device)
        if not tokens:
            return out
        longest = inputs.max_query_len
        tiling = _tiling(group, dim, q.element_size())
        most = max(MOST_FEW, group) if tiling.rows >= MOST_FEW else tiling.rows
        used = triton.next_power_of_2(min(most, group * longest))
        block = max(16, triton.next_power_of_2(dim))
        scratch = self._scratch_for(used, block, seqs_searched(num_seqs) * kv_heads)
        tiles = tokens // (tiling.rows // group) + num_seqs
        arguments = (
            q, q.stride(0), cache.keys, cache.values, cache.key_scales, cache.value_scales, out,
            inputs.block_table, inputs.block_table.stride(0), inputs.query_start, inputs.kv_len, num_seqs,
            scale, softcap or 0.0, window or 0, used,
        )  # fmt: skip
        constants = _constants(layout, cache, tiling, num_seqs, window, softcap)
        if longest * group > used:
            _attend_whole[(tiles * kv_heads,)](
                *arguments, tiles, QUERIES=tiling.rows // group, **constants
            )
        _attend_splits[(self._programs,)](
            *arguments,
            scratch.partial,
            scratch.high,
            scratch.total,
            scratch.arrivals,
            USED_ROWS=used,
            UNITS=scratch.units,
            PROGRAMS=self._programs,
            **constants,
        )
        return out

    def _scratch_for(self, rows: int, block: int, pairs: int) -> Scratch:
        """Kept for good: a graph that was captured on it finds it again."""
        key = (rows, block, pairs)
        if key not in self._scratch:
            units = SCRATCH_BYTES // (rows * block * 4)
            if self._device.type == "cpu":
                units = 64  # an interpreter's cases are small
            self._scratch[key] = Scratch.allocate(units, rows, block, pairs, self._device)
        return self._scratch[key]


def _tiling(group: int, dim: int, itemsize: int) -> _Tiling:
    """One for all steps of a model: 64 rows make the tensor cores' tall instruction, which 4 rows cost nothing more."""
    rows = max(32 if itemsize == 4 else 64, triton.next_power_of_2(group))
    if itemsize == 4:
        return _Tiling(rows, 16, 8, 2, "ieee")
    if dim > 128:
        return _Tiling(rows, 32, 8, 3, "tf32")
    return _Tiling(rows, 64, 4, 3, "tf32")


def _constants(
    layout: QKVLayout,
    cache: LayerCache,
    tiling: _Tiling,
    num_seqs: int,
    window: int | None,
    softcap: float | None,
) -> dict[str, object]:
    """What both kernels are compiled for."""
    return {
        "H": layout.num_heads,
        "K": layout.num_kv_heads,
        "D": layout.head_dim,
        "P": cache.block_size,
        "BLOCK_D": max(16, triton.next_power_of_2(layout.head_dim)),
        "ROWS": tiling.rows,
        "TILE": tiling.tile,
        "SPLIT": SPLIT,
        "SEQS": seqs_searched(num_seqs),
        "HAS_WINDOW": window is not None,
        "HAS_SOFTCAP": softcap is not None,
        "PRECISION": tiling.precision,
        "IS_CODED": cache.format is not None,
        "num_warps": tiling.warps,
        "num_stages": tiling.stages,
    }


@triton.jit(do_not_specialize=["num_seqs", "window", "few_rows", "tiles"])
def _attend_whole(
    q, q_stride, keys, values, key_scales, value_scales, out,
    block_table, table_stride, query_start, kv_len, num_seqs, scale, softcap, window, few_rows, tiles,
    QUERIES: tl.constexpr, H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, P: tl.constexpr,
    BLOCK_D: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, SPLIT: tl.constexpr, SEQS: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, IS_CODED: tl.constexpr,
):  # fmt: skip
    # Late tiles of a sequence see the most, so they go first; neighbours share a head's keys in the L2.
    head = tl.program_id(0) % K
    index = tiles - 1 - tl.program_id(0) // K
    seqs = tl.arange(0, SEQS)
    starts = tl.load(query_start + seqs, mask=seqs < num_seqs, other=0)
    # Sequence s owns the tiles from starts[s] // QUERIES + s on: never fewer than it needs.
    seq = tl.sum(((starts // QUERIES + seqs <= index) & (seqs < num_seqs)).to(tl.int32), 0) - 1
    start = tl.load(query_start + seq)
    count = tl.load(query_start + seq + 1) - start
    first = (index - start // QUERIES - seq) * QUERIES
    if (first >= count) | (count * (H // K) <= few_rows):
        return
    length = tl.load(kv_len + seq)
    low = length - count + first
    oldest = 0
    if HAS_WINDOW:
        oldest = tl.maximum(low - window + 1, 0)
    last = tl.minimum(count, first + QUERIES)
    q_tile, position = _queries(
        q, q_stride, start, first, last, length - count, head, H, K, D, BLOCK_D, ROWS
    )
    acc, _high, total = _walk(
        q_tile, keys, values, key_scales, value_scales, block_table + seq.to(tl.int64) * table_stride,
        head, position, oldest // TILE * TILE, tl.minimum(length, low + QUERIES), oldest,
        scale, softcap, window,
        K, D, P, BLOCK_D, ROWS, TILE, SPLIT, HAS_WINDOW, HAS_SOFTCAP, PRECISION, IS_CODED,
    )  # fmt: skip
    _write(out, start, first, last, head, acc, total, H, K, D, BLOCK_D, ROWS)


@triton.jit(do_not_specialize=["num_seqs", "window", "few_rows"])
def _attend_splits(
    q, q_stride, keys, values, key_scales, value_scales, out,
    block_table, table_stride, query_start, kv_len, num_seqs, scale, softcap, window, few_rows,
    partial, part_high, part_total, arrivals,
    USED_ROWS: tl.constexpr, UNITS: tl.constexpr, PROGRAMS: tl.constexpr, H: tl.constexpr, K: tl.constexpr,
    D: tl.constexpr, P: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    SPLIT: tl.constexpr, SEQS: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, IS_CODED: tl.constexpr,
):  # fmt: skip
    seqs = tl.arange(0, SEQS)
    _low, splits_of = _splits(
        query_start, kv_len, seqs, num_seqs, window, few_rows, H // K, SPLIT, HAS_WINDOW
    )
    # A unit is one split of one head, or, where the scratch has no more room, all splits in turn.
    is_apart = (splits_of > 0) & (tl.cumsum(splits_of, 0) * K <= UNITS)
    ends = tl.cumsum(tl.where(is_apart, splits_of, tl.minimum(splits_of, 1)), 0) * K
    everything = tl.max(ends, 0)
    unit = tl.program_id(0)
    while unit < everything:
        seq = tl.sum((ends <= unit).to(tl.int32), 0)
        low, splits = _splits(
            query_start, kv_len, seq, num_seqs, window, few_rows, H // K, SPLIT, HAS_WINDOW
        )
        apart = tl.sum(tl.where(seqs == seq, is_apart.to(tl.int32), 0), 0)
        units = tl.where(apart > 0, splits, 1)
        pair = unit - (tl.sum(tl.where(seqs == seq, ends, 0), 0) - units * K)
        head = pair // units
        split = pair % units
        length = tl.load(kv_len + seq)
        token = tl.load(query_start + seq)
        count = tl.load(query_start + seq + 1) - token
        oldest = 0
        if HAS_WINDOW:
            oldest = tl.maximum(length - count - window + 1, 0)
        begin = tl.maximum((low + split) * SPLIT, oldest // TILE * TILE)
        stop = tl.where(apart > 0, tl.minimum((low + split + 1) * SPLIT, length), length)
        q_tile, position = _queries(
            q, q_stride, token, 0, count, length - count, head, H, K, D, BLOCK_D, ROWS
        )
        acc, high, total = _walk(
            q_tile, keys, values, key_scales, value_scales, block_table + seq.to(tl.int64) * table_stride,
            head, position, begin, stop, oldest, scale, softcap, window,
            K, D, P, BLOCK_D, ROWS, TILE, SPLIT, HAS_WINDOW, HAS_SOFTCAP, PRECISION, IS_CODED,
        )  # fmt: skip
        _deliver(
            out, partial, part_high, part_total, arrivals + seq * K + head, unit, split, units,
            token, count, head, acc, high, total, H, K, D, BLOCK_D, ROWS, USED_ROWS,
        )  # fmt: skip
        unit += PROGRAMS


@triton.jit
def _deliver(
    out, partial, part_high, part_total, arrival, unit, split, units, token, count, head, acc, high, total,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    USED_ROWS: tl.constexpr,
):  # fmt: skip
    """Writes what the only unit of a pair gave; of several, the last to arrive joins all and writes that."""
    if units == 1:
        _write(out, token, 0, count, head, acc, total, H, K, D, BLOCK_D, ROWS)
    else:
        leave(partial, part_high, part_total, unit, acc, high, total, BLOCK_D, ROWS, USED_ROWS)
        tl.debug_barrier()
        if tl.atomic_add(arrival, 1, sem="acq_rel") == units - 1:
            acc_of_all, total_of_all = join_all(
                partial, part_high, part_total, unit - split, units, BLOCK_D, USED_ROWS
            )
            tl.store(arrival, 0)
            _write(
                out, token, 0, count, head, acc_of_all, total_of_all, H, K, D, BLOCK_D, USED_ROWS
            )


@triton.jit
def _splits(
    query_start, kv_len, seq, num_seqs, window, few_rows,
    GROUP: tl.constexpr, SPLIT: tl.constexpr, HAS_WINDOW: tl.constexpr,
):  # fmt: skip
    """(first split, number of splits) that sequences `seq` (one or a vector) read; 0 splits if not ours."""
    used = seq < num_seqs
    length = tl.load(kv_len + seq, mask=used, other=0)
    start = tl.load(query_start + seq, mask=used, other=0)
    count = tl.load(query_start + seq + 1, mask=used, other=0) - start
    low = length * 0
    if HAS_WINDOW:
        low = tl.maximum(length - count - window + 1, 0) // SPLIT
    ours = (count > 0) & (count * GROUP <= few_rows)
    return low, tl.where(ours, (length + SPLIT - 1) // SPLIT - low, 0)


@triton.jit
def _queries(
    q, q_stride, token, first, last, past, head,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Queries [first, last) of the sequence whose tokens begin at `token`: (tile, positions [ROWS])."""
    query, column, valid = _places(first, last, head, H, K, D, BLOCK_D, ROWS)
    row = (token + query).to(tl.int64)[:, None]
    return tl.load(q + row * q_stride + column, mask=valid, other=0.0), past + query


@triton.jit
def _places(
    first, last, head,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """(query [ROWS], column [ROWS, BLOCK_D] in a token's heads, which are there)."""
    query, member = group_rows(ROWS, H // K)
    query += first
    lane = tl.arange(0, BLOCK_D)
    column = ((head * (H // K) + member) * D)[:, None] + lane[None, :]
    return query, column, (query < last)[:, None] & (lane < D)[None, :]


@triton.jit
def _walk(
    q_tile, keys, values, key_scales, value_scales, table, head, position, begin, stop, oldest,
    scale, softcap, window,
    K: tl.constexpr, D: tl.constexpr, P: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    TILE: tl.constexpr, SPLIT: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, IS_CODED: tl.constexpr,
):  # fmt: skip
    """(acc, high, total) over entries [begin, stop), `begin` at a tile's beginning: splits joined as they end.

    Every tile is masked, also where all is seen: one path, one arithmetic.
    """
    lane = tl.arange(0, BLOCK_D)[None, :]
    acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    high = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc_before, high_before, total_before = acc, high, total
    blocks = block_ids(table, begin, stop, P, TILE)
    for start in range(begin, stop, TILE):
        if start % SPLIT == 0:
            acc_before, high_before, total_before = join(
                acc_before, high_before, total_before, acc, high, total
            )
            acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
            high = tl.full([ROWS], float("-inf"), tl.float32)
            total = tl.zeros([ROWS], tl.float32)
        place = entry_offsets(blocks, start, head, K, P, D, TILE)[:, None] + lane
        entry = start + tl.arange(0, TILE)
        # Freed and unwritten entries may hold NaN, and 0 * NaN would reach the result.
        live = (entry < stop) & (entry >= oldest)
        wide = live[:, None] & (lane < D)
        k_scale, v_scale = entry_scales(
            key_scales, value_scales, blocks, start, head, live, K, P, TILE, IS_CODED
        )
        blocks = block_ids(table, start + TILE, stop, P, TILE)
        k = tl.load(keys + place, mask=wide, other=0.0)
        v = tl.load(values + place, mask=wide, other=0.0)
        seen = visible_entries(position, start, window, TILE, HAS_WINDOW)
        acc, high, total = fold(
            q_tile, k, v, k_scale, v_scale, seen, acc, high, total, scale, softcap,
            True, HAS_SOFTCAP, PRECISION, IS_CODED,
        )  # fmt: skip
    return join(acc_before, high_before, total_before, acc, high, total)


@triton.jit
def _write(
    out, token, first, last, head, acc, total,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    query, column, valid = _places(first, last, head, H, K, D, BLOCK_D, ROWS)
    row = (token + query).to(tl.int64)[:, None]
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out + row * (H * D) + column, acc.to(out.dtype.element_ty), mask=valid)
