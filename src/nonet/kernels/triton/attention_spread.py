"""Decode attention of very few sequences: a fixed grid of programs, one for each (sequence, KV head, split).

`attention_decode` waits for one load after the other: all lengths, the line of all tiles, its own length, the block
table, keys. With few sequences that is most of its time. Here a program knows its pair and its first tile without
reading anything (with a window, the length), so lengths, queries and the first blocks are asked for together. Tile t of
a pair, counted from the first that is read, goes to split t % splits. Splits that find a tile leave a partial result;
the last of them to arrive joins all in order (`attention_join`).

A sequence's bits depend on its own length, queries, cache and window, on the model's layout and dtype and on the
device: splits and tiles are chosen by these alone. They do not depend on the other sequences of a step, on how many
they are up to MOST_SEQS, or on a graph's padding. A step of more goes to `attention_decode`, which rounds otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from nonet.kernels.ops import AttentionInputs, LayerCache, QKVLayout
from nonet.kernels.triton.attention_coded import codes_of, fold_any_tiles, words_of
from nonet.kernels.triton.attention_decode import decode_tiling
from nonet.kernels.triton.attention_join import Scratch, join_all, leave
from nonet.kernels.triton.attention_parts import finish_rows
from nonet.kernels.triton.attention_tile import block_ids, group_rows, head_width
from nonet.kernels.triton.chained import chain, let_next_begin, wait_for_last
from nonet.kernels.triton.quantize_rows import FLOAT8_MAX, Rounded

__all__ = ["SpreadTiling", "attend_spread", "can_spread", "spread_scratch", "spread_tiling"]

MOST_SEQS = 4  # measured on an H100: with 4 the two kernels are about even over long contexts
MOST_SPLITS = 32
ROWS = 16  # the fewest that the tensor cores take


@dataclass(frozen=True, slots=True)
class SpreadTiling:
    """splits: programs of a (sequence, KV head) pair. tile: cache entries taken at a time."""

    splits: int
    tile: int
    warps: int
    stages: int


def can_spread(tokens: int, layout: QKVLayout, inputs: AttentionInputs) -> bool:
    """Whether the step is one of few decodes, its token t of sequence t, and a group's heads fit a program."""
    is_decode = inputs.max_query_len == 1 and tokens == len(inputs.kv_len)
    return is_decode and tokens <= MOST_SEQS and layout.num_heads // layout.num_kv_heads <= ROWS


def spread_tiling(layout: QKVLayout, itemsize: int, multiprocessors: int) -> SpreadTiling:
    """Splits, a power of two, give one sequence about a program for each multiprocessor.

    Measured on an H100 with 8 KV heads: 33 splits and tiles of 128 were slower than 16 and 64.
    """
    wanted = max(1.0, multiprocessors / layout.num_kv_heads)
    like = decode_tiling(layout.head_dim, itemsize, multiprocessors)
    splits = min(MOST_SPLITS, 1 << round(math.log2(wanted)))
    return SpreadTiling(splits=splits, tile=like.tile, warps=like.warps, stages=like.stages)


def spread_scratch(tiling: SpreadTiling, layout: QKVLayout, device: torch.device) -> Scratch:
    """For steps of any number of sequences up to MOST_SEQS."""
    pairs = MOST_SEQS * layout.num_kv_heads
    return Scratch.allocate(
        pairs * tiling.splits, _used_rows(layout), head_width(layout.head_dim), pairs, device
    )


def attend_spread(
    q: torch.Tensor,
    out: torch.Tensor,
    layout: QKVLayout,
    cache: LayerCache,
    inputs: AttentionInputs,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    rounded: Rounded | None,
    tiling: SpreadTiling,
    scratch: Scratch,
    is_chained: bool = False,
) -> None:
    """Writes `out` [S, H * D] of a step that `can_spread`; rows without entries are left as they are.

    `rounded` gets the rows in float8, with a scale for each head.
    """
    num_seqs = len(inputs.kv_len)
    _attend_spread[(num_seqs * layout.num_kv_heads * tiling.splits,)](
        q, q.stride(0), *words_of(cache), cache.key_scales, cache.value_scales,
        out,
        out if rounded is None else rounded.codes,
        out if rounded is None else rounded.scale,
        scratch.partial, scratch.high, scratch.total, scratch.arrivals,
        inputs.block_table, inputs.block_table.stride(0), inputs.block_table.shape[1], inputs.kv_len,
        scale, softcap or 0.0, window or 0,
        H=layout.num_heads,
        K=layout.num_kv_heads,
        D=layout.head_dim,
        P=cache.block_size,
        BLOCK_D=head_width(layout.head_dim),
        ROWS=ROWS,
        USED_ROWS=_used_rows(layout),
        TILE=tiling.tile,
        SPLITS=tiling.splits,
        ROUND=rounded is not None,
        LARGEST=FLOAT8_MAX,
        HAS_WINDOW=window is not None,
        HAS_SOFTCAP=softcap is not None,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        CODES=codes_of(cache),
        CHAINED=is_chained,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
        **chain(is_chained),
    )  # fmt: skip


def _used_rows(layout: QKVLayout) -> int:
    return int(triton.next_power_of_2(layout.num_heads // layout.num_kv_heads))


@triton.jit(do_not_specialize=["table_width", "window"])
def _attend_spread(
    q, q_stride, keys, values, key_scales, value_scales, out, codes, out_scales,
    partial, part_high, part_total, arrivals, block_table, table_stride, table_width, kv_len,
    scale, softcap, window,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, P: tl.constexpr, BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr, USED_ROWS: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr,
    ROUND: tl.constexpr, LARGEST: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, CODES: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    wait_for_last(CHAINED)
    let_next_begin(CHAINED)
    program = tl.program_id(0)
    pair, split = program // SPLITS, program % SPLITS
    seq, head = pair // K, pair % K
    length = tl.load(kv_len + seq)
    oldest, low = 0, 0
    if HAS_WINDOW:
        oldest = tl.maximum(length - window, 0)
        low = oldest // TILE
    start = (low + split) * TILE
    # A table's row is memory whatever the length is, so its first blocks need not wait for it.
    table = block_table + seq.to(tl.int64) * table_stride
    blocks = block_ids(table, start, table_width * P, P, TILE)
    query, member = group_rows(ROWS, H // K)
    lane = tl.arange(0, BLOCK_D)[None, :]
    at = seq.to(tl.int64) * q_stride + ((head * (H // K) + member) * D)[:, None] + lane
    q_tile = tl.load(q + at, mask=(query == 0)[:, None] & (lane < D), other=0.0)
    tiles = tl.cdiv(length, TILE) - low
    if split < tiles:
        acc, high, total = fold_any_tiles(
            q_tile, length - 1 + query, keys, values, key_scales, value_scales, table, blocks, head,
            start, length, length, oldest, scale, softcap, window,
            K, D, P, BLOCK_D, ROWS, TILE, SPLITS * TILE, HAS_WINDOW, HAS_SOFTCAP, PRECISION, CODES,
        )  # fmt: skip
        parts = tl.minimum(tiles, SPLITS)
        if parts == 1:
            finish_rows(
                out, codes, out_scales, seq, 1, head, acc, total,
                H, K, D, BLOCK_D, ROWS, ROUND, LARGEST,
            )  # fmt: skip
        else:
            leave(
                partial, part_high, part_total, program, acc, high, total, BLOCK_D, ROWS, USED_ROWS
            )
            tl.debug_barrier()
            # Splits without a tile have left nothing and do not come: a padded sequence touches no counter.
            if tl.atomic_add(arrivals + pair, 1, sem="acq_rel") == parts - 1:
                acc_of_all, total_of_all = join_all(
                    partial, part_high, part_total, pair * SPLITS, parts, BLOCK_D, USED_ROWS
                )
                tl.store(arrivals + pair, 0)
                finish_rows(
                    out, codes, out_scales, seq, 1, head, acc_of_all, total_of_all,
                    H, K, D, BLOCK_D, USED_ROWS, ROUND, LARGEST,
                )  # fmt: skip
