"""Brings the product of float8 matrices to its scale: every row and every column has its own."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["scale_product"]


def scale_product(
    product: torch.Tensor,
    row_scale: torch.Tensor,
    column_scale: torch.Tensor,
    bias: torch.Tensor | None,
) -> None:
    """product [T, N] times row_scale [T, 1] times column_scale [N], plus bias [N], in place."""
    tokens, width = product.shape
    block = min(1024, triton.next_power_of_2(width))
    if product.numel():
        _scale_product[(tokens, triton.cdiv(width, block))](
            product,
            row_scale,
            column_scale,
            product if bias is None else bias,
            WIDTH=width,
            BLOCK=block,
            HAS_BIAS=bias is not None,
            num_warps=4,
        )


@triton.jit
def _scale_product(
    product,
    row_scale,
    column_scale,
    bias,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < WIDTH
    row = product + token * WIDTH + at
    value = tl.load(row, mask=inside, other=0.0).to(tl.float32)
    value *= tl.load(row_scale + token) * tl.load(column_scale + at, mask=inside, other=0.0)
    if HAS_BIAS:
        value += tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(row, value.to(product.dtype.element_ty), mask=inside)
