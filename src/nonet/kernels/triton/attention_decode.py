"""Paged attention of sequences with few queries: the keys of all of them are dealt out evenly over the device.

All tiles of all (sequence, KV head) pairs form one line, cut into equal shares, one per program, so that every
multiprocessor reads the same number of bytes whatever the lengths are. A program whose share ends inside a pair
leaves a partial result, (acc, high, total) of FlashDecoding; the last of a pair's programs to arrive merges them in
order. The launch is the same whatever the lengths are, so a graph of it serves any.

Where a pair is cut depends on what else is in the batch, and so do the last bits of its result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from nonet.kernels.ops import AttentionInputs, LayerCache, QKVLayout
from nonet.kernels.triton.attention_coded import codes_of, fold_any_tiles, words_of
from nonet.kernels.triton.attention_join import Scratch, leave
from nonet.kernels.triton.attention_parts import finish_rows, merge_parts
from nonet.kernels.triton.attention_tile import block_ids, group_rows, head_width, seqs_searched
from nonet.kernels.triton.quantize_rows import FLOAT8_MAX, Rounded

__all__ = ["DecodeTiling", "attend_few", "decode_rows", "decode_tiling"]

MAX_ROWS = 64
MERGED = 8192  # elements of partial results merged at a time


@dataclass(frozen=True, slots=True)
class DecodeTiling:
    """tile: cache entries taken at a time. programs: how many share the work, a multiple of the multiprocessors."""

    tile: int
    warps: int
    stages: int
    programs: int

    @property
    def units(self) -> int:
        """Partial results of a launch: a program's share may begin and end inside a pair."""
        return 2 * self.programs


def decode_tiling(
    dim: int, itemsize: int, multiprocessors: int, rows: int = 16, *, is_coded: bool = False
) -> DecodeTiling:
    """Measured on an H200: two programs a multiprocessor keep enough loads in flight.

    Over codes the work of a tile is what takes the time, and three programs fit. Four of two warps, which need not wait
    for as many others, take 0.63 to 0.89 of their time (fp8, 128 dims, one query, 8 to 512 sequences); sums of more
    rows or dims than that would not fit the registers of two warps.
    """
    width = triton.next_power_of_2(max(dim, 64))
    tile = max(16, 16384 // (width * itemsize))
    each, warps = 2, 4
    if is_coded:
        each, warps = (4, 2) if rows * width <= 16 * 128 else (3, 4)
    return DecodeTiling(tile=tile, warps=warps, stages=3, programs=each * multiprocessors)


def decode_rows(group: int, max_query_len: int) -> int:
    """Rows of a program: all heads of a group times as many queries as the step's sequences have, if they fit."""
    wanted = group * max_query_len
    return int(triton.next_power_of_2(max(16, group if wanted > MAX_ROWS else wanted)))


def attend_few(
    q: torch.Tensor,
    out: torch.Tensor,
    layout: QKVLayout,
    cache: LayerCache,
    inputs: AttentionInputs,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    rows: int,
    longest: int,
    rounded: Rounded | None,
    tiling: DecodeTiling,
    scratch: Scratch,
) -> None:
    """Writes the rows of `out` that belong to sequences with at most `rows` rows (queries times group).

    `longest` bounds the queries of any sequence of the step. `rounded` gets the rows in float8, with a scale for each
    head.
    """
    heads, kv_heads, dim = layout.num_heads, layout.num_kv_heads, layout.head_dim
    num_seqs, block = len(inputs.kv_len), head_width(dim)
    used_rows = min(rows, triton.next_power_of_2(heads // kv_heads * longest))
    _attend_few[(tiling.programs,)](
        q, q.stride(0), *words_of(cache), cache.key_scales, cache.value_scales,
        out,
        out if rounded is None else rounded.codes,
        out if rounded is None else rounded.scale,
        scratch.partial, scratch.high, scratch.total, scratch.arrivals,
        inputs.block_table, inputs.block_table.stride(0), inputs.query_start, inputs.kv_len,
        num_seqs, scale, softcap or 0.0, window or 0,
        H=heads,
        K=kv_heads,
        D=dim,
        P=cache.block_size,
        BLOCK_D=block,
        ROWS=rows,
        USED_ROWS=used_rows,
        TILE=tiling.tile,
        SEQS=seqs_searched(num_seqs),
        PROGRAMS=tiling.programs,
        ROUND=rounded is not None,
        LARGEST=FLOAT8_MAX,
        PARTS=max(1, MERGED // (used_rows * block)),
        HAS_WINDOW=window is not None,
        HAS_SOFTCAP=softcap is not None,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        CODES=codes_of(cache),
        num_warps=tiling.warps,
        num_stages=tiling.stages,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_seqs", "window"])
def _attend_few(
    q, q_stride, keys, values, key_scales, value_scales, out, codes, out_scales,
    partial, part_high, part_total, arrivals, block_table, table_stride, query_start, kv_len,
    num_seqs, scale, softcap, window,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, P: tl.constexpr, BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr, USED_ROWS: tl.constexpr, TILE: tl.constexpr, SEQS: tl.constexpr, PROGRAMS: tl.constexpr,
    PARTS: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
    CODES: tl.constexpr, ROUND: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    seqs = tl.arange(0, SEQS)
    _, tiles_of = _tiles(
        query_start, kv_len, seqs, num_seqs, window, H // K, ROWS, TILE, HAS_WINDOW
    )
    ends = tl.cumsum(tiles_of, 0) * K
    everything = tl.sum(tiles_of, 0) * K
    share = tl.cdiv(everything, PROGRAMS)
    at = program * share
    stop = tl.minimum(at + share, everything)
    while at < stop:
        seq = tl.sum((ends <= at).to(tl.int32), 0)
        low, tiles = _tiles(
            query_start, kv_len, seq, num_seqs, window, H // K, ROWS, TILE, HAS_WINDOW
        )
        pair_start = tl.sum(tl.where(seqs == seq, ends, 0), 0) - tiles * K
        head = (at - pair_start) // tiles
        pair_start += head * tiles
        last = tl.minimum(pair_start + tiles, stop)
        token = tl.load(query_start + seq)
        count = tl.load(query_start + seq + 1) - token
        acc, high, total = _segment(
            q, q_stride, keys, values, key_scales, value_scales,
            block_table + seq.to(tl.int64) * table_stride, token, count, tl.load(kv_len + seq), head,
            low + at - pair_start, low + last - pair_start, scale, softcap, window,
            H, K, D, P, BLOCK_D, ROWS, TILE, HAS_WINDOW, HAS_SOFTCAP, PRECISION, CODES,
        )  # fmt: skip
        if last - at == tiles:
            finish_rows(
                out, codes, out_scales, token, count, head, acc, total,
                H, K, D, BLOCK_D, ROWS, ROUND, LARGEST,
            )  # fmt: skip
        else:
            unit = 2 * program + (at == pair_start).to(tl.int32)
            leave(partial, part_high, part_total, unit, acc, high, total, BLOCK_D, ROWS, USED_ROWS)
            tl.debug_barrier()
            first_program = pair_start // share
            others = (pair_start + tiles - 1) // share - first_program
            arrived = tl.atomic_add(arrivals + seq * K + head, 1, sem="acq_rel")
            if arrived == others:
                acc_of_all, total_of_all = merge_parts(
                    partial, part_high, part_total, first_program, others + 1,
                    BLOCK_D, USED_ROWS, PARTS,
                )  # fmt: skip
                tl.store(arrivals + seq * K + head, 0)
                finish_rows(
                    out, codes, out_scales, token, count, head, acc_of_all, total_of_all,
                    H, K, D, BLOCK_D, USED_ROWS, ROUND, LARGEST,
                )  # fmt: skip
        at = last


@triton.jit
def _tiles(
    query_start, kv_len, seq, num_seqs, window,
    GROUP: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, HAS_WINDOW: tl.constexpr,
):  # fmt: skip
    """(first tile, number of tiles) that sequences `seq` (one or a vector) read; 0 tiles if not ours."""
    used = seq < num_seqs
    length = tl.load(kv_len + seq, mask=used, other=0)
    start = tl.load(query_start + seq, mask=used, other=0)
    count = tl.load(query_start + seq + 1, mask=used, other=0) - start
    low = length * 0
    if HAS_WINDOW:
        low = tl.maximum(length - count + 1 - window, 0) // TILE
    ours = (count > 0) & (count * GROUP <= ROWS)
    return low, tl.where(ours, (length + TILE - 1) // TILE - low, 0)


@triton.jit
def _segment(
    q, q_stride, keys, values, key_scales, value_scales, table, token, count, length, head, tile, stop_tile,
    scale, softcap, window,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, P: tl.constexpr, BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    """(acc, high, total) of one pair over its tiles [tile, stop_tile)."""
    query, member = group_rows(ROWS, H // K)
    lane = tl.arange(0, BLOCK_D)[None, :]
    at = (token + query).to(tl.int64)[:, None] * q_stride
    at += ((head * (H // K) + member) * D)[:, None] + lane
    q_tile = tl.load(q + at, mask=(query < count)[:, None] & (lane < D), other=0.0)
    oldest = 0
    if HAS_WINDOW:
        oldest = length - count + 1 - window
    blocks = block_ids(table, tile * TILE, length, P, TILE)
    return fold_any_tiles(
        q_tile, length - count + query, keys, values, key_scales, value_scales, table, blocks, head,
        tile * TILE, stop_tile * TILE, length, oldest, scale, softcap, window,
        K, D, P, BLOCK_D, ROWS, TILE, TILE, HAS_WINDOW, HAS_SOFTCAP, PRECISION, CODES,
    )  # fmt: skip
