"""Parts of one softmax that were worked out apart: how two are joined, and how many are left behind and picked up.

A part is (acc, high, total) of `attention_tile`. Where bits matter, those of a pair are joined first to last, always by
`join`; `attention_parts` merges them with less waiting.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

__all__ = ["Scratch", "join", "join_all", "leave"]


@dataclass(frozen=True, slots=True)
class Scratch:
    """Room for `units` parts, and an arrival counter for each pair, zero between launches."""

    partial: torch.Tensor
    high: torch.Tensor
    total: torch.Tensor
    arrivals: torch.Tensor
    units: int

    @classmethod
    def allocate(
        cls, units: int, rows: int, block: int, pairs: int, device: torch.device
    ) -> Scratch:
        def floats(count: int) -> torch.Tensor:
            return torch.empty(count, dtype=torch.float32, device=device)

        return cls(
            floats(units * rows * block),
            floats(units * rows),
            floats(units * rows),
            torch.zeros(pairs, dtype=torch.int32, device=device),
            units,
        )


@triton.jit
def join(acc, high, total, acc_next, high_next, total_next):
    """Two softmaxes over other entries as one. Multiply-adds are spelled out: every caller rounds alike."""
    new_high = tl.maximum(high, high_next)
    base = tl.where(new_high == float("-inf"), 0.0, new_high)
    shrink, weight = tl.exp2(high - base), tl.exp2(high_next - base)
    joined = tl.fma(acc, shrink[:, None], acc_next * weight[:, None])
    return joined, new_high, tl.fma(total, shrink, total_next * weight)


@triton.jit
def leave(
    partial, part_high, part_total, unit, acc, high, total,
    BLOCK_D: tl.constexpr, ROWS: tl.constexpr, USED_ROWS: tl.constexpr,
):  # fmt: skip
    """The first USED_ROWS rows of a part are kept as number `unit`."""
    row = tl.arange(0, ROWS)
    kept = row < USED_ROWS
    at = unit.to(tl.int64) * USED_ROWS + row
    lane = tl.arange(0, BLOCK_D)[None, :]
    tl.store(partial + at[:, None] * BLOCK_D + lane, acc, mask=kept[:, None])
    tl.store(part_high + at, high, mask=kept)
    tl.store(part_total + at, total, mask=kept)


@triton.jit
def join_all(
    partial, part_high, part_total, first, count, BLOCK_D: tl.constexpr, USED_ROWS: tl.constexpr
):
    """(acc, total) of a pair from its units, first to last; four are asked for at once, for memory is far away."""
    acc = tl.zeros([USED_ROWS, BLOCK_D], tl.float32)
    high = tl.full([USED_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([USED_ROWS], tl.float32)
    for start in range(0, count, 4):
        a0, h0, t0 = _left(partial, part_high, part_total, first, start, count, BLOCK_D, USED_ROWS)
        a1, h1, t1 = _left(
            partial, part_high, part_total, first, start + 1, count, BLOCK_D, USED_ROWS
        )
        a2, h2, t2 = _left(
            partial, part_high, part_total, first, start + 2, count, BLOCK_D, USED_ROWS
        )
        a3, h3, t3 = _left(
            partial, part_high, part_total, first, start + 3, count, BLOCK_D, USED_ROWS
        )
        acc, high, total = join(acc, high, total, a0, h0, t0)
        acc, high, total = join(acc, high, total, a1, h1, t1)
        acc, high, total = join(acc, high, total, a2, h2, t2)
        acc, high, total = join(acc, high, total, a3, h3, t3)
    return acc, total


@triton.jit
def _left(
    partial, part_high, part_total, first, place, count, BLOCK_D: tl.constexpr, USED_ROWS: tl.constexpr
):  # fmt: skip
    """What unit `place` of a pair left; past the end, what a split that nobody sees gives."""
    row = (first + place).to(tl.int64) * USED_ROWS + tl.arange(0, USED_ROWS)
    there = (row >= 0) & (place < count)
    lane = tl.arange(0, BLOCK_D)[None, :]
    acc = tl.load(
        partial + row[:, None] * BLOCK_D + lane,
        mask=there[:, None],
        other=0.0,
        cache_modifier=".cg",
    )
    high = tl.load(part_high + row, mask=there, other=float("-inf"), cache_modifier=".cg")
    total = tl.load(part_total + row, mask=there, other=0.0, cache_modifier=".cg")
    return acc, high, total
