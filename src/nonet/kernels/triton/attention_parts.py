"""Partial results of attention that programs left (`attention_join.leave`): merged many at a time, and stored."""

from __future__ import annotations

import triton
import triton.language as tl

from nonet.kernels.triton.attention_tile import group_rows
from nonet.kernels.triton.quantize_rows import round_groups

__all__ = ["finish_rows", "merge_parts"]


@triton.jit
def merge_parts(
    partial, part_high, part_total, first_program, count,
    BLOCK_D: tl.constexpr, USED_ROWS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """(acc, total) of a pair from what `count` programs left: the first at its odd place, the others at even.

    PARTS at a time are asked for at once, for each of these loads takes as long as a small step's whole attention.
    """
    acc = tl.zeros([USED_ROWS, BLOCK_D], tl.float32)
    high = tl.full([USED_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([USED_ROWS], tl.float32)
    row = tl.arange(0, USED_ROWS)[None, :]
    lane = tl.arange(0, BLOCK_D)[None, None, :]
    for start in range(0, count, PARTS):
        place = (start + tl.arange(0, PARTS))[:, None]
        unit = tl.where(place == 0, 2 * first_program + 1, 2 * (first_program + place))
        at = unit * USED_ROWS + row
        live = (place < count) & (row < USED_ROWS)
        highs = tl.load(part_high + at, mask=live, other=float("-inf"), cache_modifier=".cg")
        totals = tl.load(part_total + at, mask=live, other=0.0, cache_modifier=".cg")
        parts = tl.load(
            partial + at[:, :, None] * BLOCK_D + lane,
            mask=live[:, :, None],
            other=0.0,
            cache_modifier=".cg",
        )
        new_high = tl.maximum(high, tl.max(highs, 0))
        base = tl.where(new_high == float("-inf"), 0.0, new_high)
        shrink = tl.exp2(high - base)
        weights = tl.exp2(highs - base[None, :])
        total = total * shrink + tl.sum(totals * weights, 0)
        acc = acc * shrink[:, None] + tl.sum(parts * weights[:, :, None], 0)
        high = new_high
    return acc, total


@triton.jit
def finish_rows(
    out, codes, out_scales, token, count, head, acc, total,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    ROUND: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Stores what `count` queries, tokens from `token` on, see of a KV head; with ROUND float8 too, a scale a head."""
    query, member = group_rows(ROWS, H // K)
    lane = tl.arange(0, BLOCK_D)[None, :]
    at = (token + query).to(tl.int64)[:, None] * (H * D)
    at += ((head * (H // K) + member) * D)[:, None] + lane
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    mixed = acc.to(out.dtype.element_ty)
    tl.store(out + at, mixed, mask=(query < count)[:, None] & (lane < D))
    if ROUND:
        eighth, scale = round_groups(mixed.to(tl.float32), LARGEST)
        tl.store(codes + at, eighth.to(codes.dtype.element_ty), mask=(query < count)[:, None])
        line = (token + query).to(tl.int64) * H + head * (H // K) + member
        tl.store(out_scales + line, scale, mask=query < count)
