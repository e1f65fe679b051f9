"""Copies rows of a matrix by index, scaled if asked: the embedding lookup and the gather of sampled rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["take_rows"]


def take_rows(table: torch.Tensor, rows: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """table [V, M] at int32 rows [R], times scale: [R, M]."""
    width = table.shape[1]
    out = torch.empty(len(rows), width, dtype=table.dtype, device=table.device)
    if out.numel():
        block = min(1024, triton.next_power_of_2(width))
        grid = (len(rows), triton.cdiv(width, block))
        _take_rows[grid](table, rows, out, scale, width, block, scale != 1.0, num_warps=4)
    return out


@triton.jit
def _take_rows(
    table, rows, out, scale, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SCALED: tl.constexpr
):
    place = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < WIDTH
    row = tl.load(rows + place).to(tl.int64)
    value = tl.load(table + row * WIDTH + at, mask=inside)
    if SCALED:
        value = (value.to(tl.float32) * scale).to(out.dtype.element_ty)
    tl.store(out + place * WIDTH + at, value, mask=inside)
