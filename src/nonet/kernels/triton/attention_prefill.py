"""Paged attention of chunks: a program takes a tile of one sequence's queries and walks over what they see.

The tile holds all query heads of one KV head, so keys are read once for the group. Grid and memory depend on the
number of tokens and sequences alone: which sequence a program belongs to is found on the device. Sequences with few
queries are left to `attention_decode`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from nonet.kernels.ops import AttentionInputs, LayerCache, QKVLayout
from nonet.kernels.triton.attention_tile import (
    block_ids,
    entry_offsets,
    entry_scales,
    fold,
    group_rows,
    seqs_searched,
    visible_entries,
)

__all__ = ["PrefillTiling", "attend_chunks", "prefill_tiling"]


@dataclass(frozen=True, slots=True)
class PrefillTiling:
    """rows: queries times heads of a program. tile: cache entries taken at a time."""

    rows: int
    tile: int
    warps: int
    stages: int


def prefill_tiling(dim: int, itemsize: int, block_size: int) -> PrefillTiling:
    """Measured on an H200; wider heads and elements fill the shared memory sooner.

    A tile within one block of the cache needs one address for all, so blocks of 64 entries are a third faster than
    smaller ones.
    """
    if itemsize == 4:
        return PrefillTiling(rows=32, tile=16, warps=8, stages=2)
    if dim > 128:
        return PrefillTiling(rows=128, tile=32, warps=8, stages=3)
    if block_size % 64:
        return PrefillTiling(rows=64, tile=64, warps=4, stages=2)
    return PrefillTiling(rows=64, tile=64, warps=4, stages=3)


def attend_chunks(
    q: torch.Tensor,
    out: torch.Tensor,
    layout: QKVLayout,
    cache: LayerCache,
    inputs: AttentionInputs,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    few_rows: int,
    tiling: PrefillTiling,
    taken: torch.Tensor | None = None,
    is_taken: int = 0,
) -> None:
    """Writes the rows of `out` that belong to sequences with more than `few_rows` rows (queries times group).

    With `taken` [S], only those of which it says `is_taken`.
    """
    heads, kv_heads, dim = layout.num_heads, layout.num_kv_heads, layout.head_dim
    group = heads // kv_heads
    rows = max(tiling.rows, triton.next_power_of_2(group))
    num_seqs = len(inputs.kv_len)
    tiles = q.shape[0] // (rows // group) + num_seqs
    _attend_chunks[(tiles * kv_heads,)](
        q,
        q.stride(0),
        cache.keys,
        cache.values,
        cache.key_scales,
        cache.value_scales,
        out,
        inputs.block_table,
        inputs.block_table.stride(0),
        inputs.query_start,
        inputs.kv_len,
        num_seqs,
        tiles,
        scale,
        softcap or 0.0,
        window or 0,
        few_rows,
        taken,
        is_taken,
        H=heads,
        K=kv_heads,
        D=dim,
        P=cache.block_size,
        BLOCK_D=max(16, triton.next_power_of_2(dim)),
        ROWS=rows,
        QUERIES=rows // group,
        TILE=tiling.tile,
        SEQS=seqs_searched(num_seqs),
        HAS_WINDOW=window is not None,
        HAS_SOFTCAP=softcap is not None,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        IS_CODED=cache.format is not None,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
    )


@triton.jit(do_not_specialize=["num_seqs", "tiles", "window", "few_rows", "is_taken"])
def _attend_chunks(
    q, q_stride, keys, values, key_scales, value_scales, out, block_table, table_stride, query_start, kv_len,
    num_seqs, tiles, scale, softcap, window, few_rows, taken, is_taken,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, P: tl.constexpr, BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr, QUERIES: tl.constexpr, TILE: tl.constexpr, SEQS: tl.constexpr,
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
    if taken is not None:  # noqa: SIM102 (one is known to the compiler, the other is not)
        if tl.load(taken + seq) != is_taken:
            return
    length = tl.load(kv_len + seq)
    query, member = group_rows(ROWS, H // K)
    query += first
    lane = tl.arange(0, BLOCK_D)
    valid = ((query < first + QUERIES) & (query < count))[:, None] & (lane < D)[None, :]
    token = (start + query).to(tl.int64)[:, None]
    column = ((head * (H // K) + member) * D)[:, None] + lane[None, :]
    q_tile = tl.load(q + token * q_stride + column, mask=valid, other=0.0)
    position = length - count + query
    acc, total = _walk(
        q_tile, keys, values, key_scales, value_scales,
        block_table + seq.to(tl.int64) * table_stride, head, position,
        length - count + first, tl.minimum(length, length - count + first + QUERIES),
        scale, softcap, window,
        K, D, P, BLOCK_D, ROWS, TILE, HAS_WINDOW, HAS_SOFTCAP, PRECISION, IS_CODED,
    )  # fmt: skip
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out + token * (H * D) + column, acc.to(out.dtype.element_ty), mask=valid)


@triton.jit
def _walk(
    q_tile, keys, values, key_scales, value_scales, table, head, position, lowest, stop, scale, softcap, window,
    K: tl.constexpr, D: tl.constexpr, P: tl.constexpr, BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, IS_CODED: tl.constexpr,
):  # fmt: skip
    """(acc, total) of queries from position `lowest` on over entries below `stop`.

    Tiles that every query sees whole need no mask; with a window all are masked, there are few.
    """
    acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    high = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    oldest = 0
    whole = (lowest + 1) // TILE * TILE
    if HAS_WINDOW:
        oldest = tl.maximum(lowest - window + 1, 0)
        whole = oldest // TILE * TILE
    else:
        blocks = block_ids(table, 0, stop, P, TILE)
        for start in range(0, whole, TILE):
            k, v, k_scale, v_scale = _tile(
                keys, values, key_scales, value_scales, blocks, start, head, start,
                K, P, D, TILE, BLOCK_D, False, IS_CODED,
            )  # fmt: skip
            blocks = block_ids(table, start + TILE, stop, P, TILE)
            acc, high, total = fold(
                q_tile, k, v, k_scale, v_scale, start, acc, high, total, scale, softcap,
                False, HAS_SOFTCAP, PRECISION, IS_CODED,
            )  # fmt: skip
    blocks = block_ids(table, whole, stop, P, TILE)
    for start in range(whole, stop, TILE):
        entry = start + tl.arange(0, TILE)
        # Freed and unwritten entries may hold NaN, and 0 * NaN would reach the result.
        live = (entry < stop) & (entry >= oldest)
        k, v, k_scale, v_scale = _tile(
            keys, values, key_scales, value_scales, blocks, start, head, live,
            K, P, D, TILE, BLOCK_D, True, IS_CODED,
        )  # fmt: skip
        blocks = block_ids(table, start + TILE, stop, P, TILE)
        seen = visible_entries(position, start, window, TILE, HAS_WINDOW)
        acc, high, total = fold(
            q_tile, k, v, k_scale, v_scale, seen, acc, high, total, scale, softcap,
            True, HAS_SOFTCAP, PRECISION, IS_CODED,
        )  # fmt: skip
    return acc, total


@triton.jit
def _tile(
    keys, values, key_scales, value_scales, blocks, start, head, live,
    K: tl.constexpr, P: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr, BLOCK_D: tl.constexpr,
    IS_MASKED: tl.constexpr, IS_CODED: tl.constexpr,
):  # fmt: skip
    """Keys and values [TILE, BLOCK_D] of the entries from `start` on, and their scales [TILE].

    With a mask, entries that are not `live` [TILE] are zero.
    """
    lane = tl.arange(0, BLOCK_D)[None, :]
    at = entry_offsets(blocks, start, head, K, P, D, TILE)[:, None] + lane
    if IS_MASKED or BLOCK_D != D:
        wide = lane < D
        if IS_MASKED:
            wide = live[:, None] & wide
        k = tl.load(keys + at, mask=wide, other=0.0)
        v = tl.load(values + at, mask=wide, other=0.0)
    else:
        k = tl.load(keys + at)
        v = tl.load(values + at)
    if not IS_MASKED:
        live = tl.full([TILE], True, tl.int1)
    k_scale, v_scale = entry_scales(
        key_scales, value_scales, blocks, start, head, live, K, P, TILE, IS_CODED
    )
    return k, v, k_scale, v_scale
