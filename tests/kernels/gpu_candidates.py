"""Kernels that may replace one of the product's once a GPU says that they are faster: `gpu_bench candidates`.

`attend_spread`: decode attention of very few sequences. At batch 1 the product's kernel waits for one load after the
other: lengths, the line of all tiles, its own lengths, the block table, keys. Here a program is one (sequence, KV head,
split) of a fixed grid and its first tile does not depend on the length, so lengths, queries and the first blocks are
asked for together. Tile t of a pair is split t % splits'.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from nonet.kernels.ops import AttentionInputs, LayerCache, QKVLayout
from nonet.kernels.triton.attention_decode import DecodeScratch, DecodeTiling
from nonet.kernels.triton.attention_join import join_all, leave
from nonet.kernels.triton.attention_tile import (
    block_ids,
    entry_offsets,
    entry_scales,
    fold,
    group_rows,
    visible_entries,
)

ROWS = 16


@dataclass(frozen=True, slots=True)
class Spread:
    """Room for a partial result of every (pair, split)."""

    splits: int
    tiling: DecodeTiling
    scratch: DecodeScratch

    @classmethod
    def allocate(
        cls,
        pairs: int,
        layout: QKVLayout,
        device: torch.device,
        splits: int = 33,
        tile: int = 64,
        warps: int = 4,
    ) -> Spread:
        tiling = DecodeTiling(tile=tile, warps=warps, stages=3, programs=pairs * splits)
        rows = _used_rows(layout)
        scratch = DecodeScratch.allocate(tiling, rows, layout.head_dim, pairs, device)
        return cls(splits, tiling, scratch)


def attend_spread(
    q: torch.Tensor,
    layout: QKVLayout,
    cache: LayerCache,
    inputs: AttentionInputs,
    scale: float,
    spread: Spread,
) -> torch.Tensor:
    """One query of each sequence, [S, H * D]."""
    out = torch.empty(
        len(inputs.kv_len), layout.num_heads * layout.head_dim, dtype=q.dtype, device=q.device
    )
    heads, kv_heads = layout.num_heads, layout.num_kv_heads
    _attend_spread[(len(inputs.kv_len) * kv_heads * spread.splits,)](
        q, q.stride(0), cache.keys, cache.values, cache.key_scales, cache.value_scales, out,
        spread.scratch.partial, spread.scratch.high, spread.scratch.total, spread.scratch.arrivals,
        inputs.block_table, inputs.block_table.stride(0), inputs.kv_len, scale,
        H=heads, K=kv_heads, D=layout.head_dim, P=cache.block_size, BLOCK_D=_width(layout), ROWS=ROWS,
        USED_ROWS=_used_rows(layout), TILE=spread.tiling.tile, SPLITS=spread.splits,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32", IS_CODED=cache.format is not None,
        num_warps=spread.tiling.warps, num_stages=spread.tiling.stages,
    )  # fmt: skip
    return out


def _width(layout: QKVLayout) -> int:
    return max(16, triton.next_power_of_2(layout.head_dim))


def _used_rows(layout: QKVLayout) -> int:
    return triton.next_power_of_2(layout.num_heads // layout.num_kv_heads)


@triton.jit
def _attend_spread(
    q, q_stride, keys, values, key_scales, value_scales, out, partial, part_high, part_total, arrivals,
    block_table, table_stride, kv_len, scale,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, P: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    USED_ROWS: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr, PRECISION: tl.constexpr, IS_CODED: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    pair, split = program // SPLITS, program % SPLITS
    seq, head = pair // K, pair % K
    table = block_table + seq.to(tl.int64) * table_stride
    # The table's row is memory whatever the length is, so its first blocks need not wait for it.
    blocks = block_ids(table, split * TILE, table_stride * P, P, TILE)
    length = tl.load(kv_len + seq)
    _, member = group_rows(ROWS, H // K)
    row = tl.arange(0, ROWS)
    lane = tl.arange(0, BLOCK_D)[None, :]
    own = (row < H // K)[:, None] & (lane < D)
    at = seq.to(tl.int64) * q_stride + ((head * (H // K) + member) * D)[:, None] + lane
    q_tile = tl.load(q + at, mask=own, other=0.0)
    tiles = tl.cdiv(length, TILE)
    if split < tiles:
        position = length - 1 + row * 0
        acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
        high = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        for start in range(split * TILE, length, SPLITS * TILE):
            place = entry_offsets(blocks, start, head, K, P, D, TILE)[:, None] + lane
            live = start + tl.arange(0, TILE) < length
            wide = live[:, None] & (lane < D)
            k_scale, v_scale = entry_scales(
                key_scales, value_scales, blocks, start, head, live, K, P, TILE, IS_CODED
            )
            blocks = block_ids(table, start + SPLITS * TILE, length, P, TILE)
            k = tl.load(keys + place, mask=wide, other=0.0)
            v = tl.load(values + place, mask=wide, other=0.0)
            seen = visible_entries(position, start, 0, TILE, False)
            acc, high, total = fold(
                q_tile, k, v, k_scale, v_scale, seen, acc, high, total,
                scale, 0.0, True, False, PRECISION, IS_CODED,
            )  # fmt: skip
        parts = tl.minimum(tiles, SPLITS)
        if parts == 1:
            _store(out, acc, total, seq, head, H, K, D, BLOCK_D, ROWS)
        else:
            leave(
                partial, part_high, part_total, program, acc, high, total, BLOCK_D, ROWS, USED_ROWS
            )
            tl.debug_barrier()
            if tl.atomic_add(arrivals + pair, 1, sem="acq_rel") == parts - 1:
                acc_all, total_all = join_all(
                    partial, part_high, part_total, pair * SPLITS, parts, BLOCK_D, USED_ROWS
                )
                tl.store(arrivals + pair, 0)
                _store(out, acc_all, total_all, seq, head, H, K, D, BLOCK_D, USED_ROWS)


@triton.jit
def _store(
    out, acc, total, seq, head,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.arange(0, ROWS)
    lane = tl.arange(0, BLOCK_D)[None, :]
    at = (seq.to(tl.int64) * H + head * (H // K) + row)[:, None] * D + lane
    mixed = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out + at, mixed.to(out.dtype.element_ty), mask=(row < H // K)[:, None] & (lane < D))
