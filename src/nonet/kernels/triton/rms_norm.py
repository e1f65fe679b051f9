"""RMSNorm, alone or after adding to the residual stream: one row per program, summed in one fixed order.

Where float8 linears follow, the row is also rounded to float8 while it is at hand.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from nonet.kernels.triton.chained import chain, let_next_begin, wait_for_last
from nonet.kernels.triton.quantize_rows import FLOAT8_MAX, Rounded, round_row
from nonet.kernels.triton.scaled import Scaled, load_scaled, open_product

__all__ = ["add_rms_norm", "rms_norm"]


def rms_norm(
    x: torch.Tensor | Scaled,
    weight: torch.Tensor,
    eps: float,
    rounded: Rounded | None = None,
    is_chained: bool = False,
) -> torch.Tensor:
    """x [..., M] normed over its last dimension, times float32 weight [M]; fills `rounded` if given."""
    return _launch(x, None, weight, eps, rounded, is_chained)


def add_rms_norm(
    x: torch.Tensor | Scaled,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    rounded: Rounded | None = None,
    is_chained: bool = False,
) -> torch.Tensor:
    """Adds x to residual in place (rounded to its dtype, as the stream is kept), then norms the sum."""
    return _launch(x, residual, weight, eps, rounded, is_chained)


def _launch(
    x: torch.Tensor | Scaled,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    rounded: Rounded | None,
    is_chained: bool,
) -> torch.Tensor:
    numbers, rows, columns, is_scaled = open_product(x)
    out = torch.empty_like(numbers)
    width = numbers.shape[-1]
    block = triton.next_power_of_2(width)
    if numbers.numel():
        _rms_norm[(numbers.numel() // width,)](
            numbers,
            rows,
            columns,
            numbers if residual is None else residual,
            weight,
            out,
            out if rounded is None else rounded.codes,
            out if rounded is None else rounded.scale,
            eps,
            WIDTH=width,
            BLOCK=block,
            ADD=residual is not None,
            ROUND=rounded is not None,
            LARGEST=FLOAT8_MAX,
            SCALED=is_scaled,
            CHAINED=is_chained,
            # About 16 elements a thread: at decode few rows are in flight, so latency counts.
            num_warps=min(16, max(1, block // 512)),
            **chain(is_chained),
        )
    return out


@triton.jit
def _rms_norm(
    numbers,
    rows,
    columns,
    residual,
    weight,
    out,
    codes,
    scales,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
    ROUND: tl.constexpr,
    LARGEST: tl.constexpr,
    SCALED: tl.constexpr,
    CHAINED: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    row = token * WIDTH + at
    # Asked for first: nothing after the sum should wait for memory.
    factor = tl.load(weight + at, mask=inside, other=0.0)
    wait_for_last(CHAINED)
    let_next_begin(CHAINED)
    value = load_scaled(numbers, token, at, rows, columns, WIDTH, inside, SCALED)
    if ADD:
        value += tl.load(residual + row, mask=inside, other=0.0).to(tl.float32)
        sum_rounded = value.to(residual.dtype.element_ty)
        tl.store(residual + row, sum_rounded, mask=inside)
        value = sum_rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / WIDTH + eps)
    normed = (value * scale * factor).to(out.dtype.element_ty)
    tl.store(out + row, normed, mask=inside)
    if ROUND:
        eighth, row_scale = round_row(normed.to(tl.float32), LARGEST)
        tl.store(codes + row, eighth.to(codes.dtype.element_ty), mask=inside)
        tl.store(scales + token, row_scale)
