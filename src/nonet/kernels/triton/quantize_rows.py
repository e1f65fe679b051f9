"""Float8 activations: each row divided by its own scale, so that a token's numbers do not depend on its neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

__all__ = ["FLOAT8_MAX", "Rounded", "quantize_rows", "round_row"]

FLOAT8_MAX = 448.0  # of e4m3fn


@dataclass(frozen=True, slots=True)
class Rounded:
    """float8_e4m3fn rows [T, K] and the float32 scales [T, 1] to multiply them with."""

    codes: torch.Tensor
    scale: torch.Tensor

    @classmethod
    def empty(cls, tokens: int, width: int, device: torch.device) -> Rounded:
        return cls(
            torch.empty(tokens, width, dtype=torch.float8_e4m3fn, device=device),
            torch.empty(tokens, 1, dtype=torch.float32, device=device),
        )


def quantize_rows(x: torch.Tensor) -> Rounded:
    """x [T, K] rounded; a scale is the row's largest magnitude over that of float8."""
    x = x.contiguous()
    tokens, width = x.shape
    rounded = Rounded.empty(tokens, width, x.device)
    if tokens:
        block = triton.next_power_of_2(width)
        _quantize_rows[(tokens,)](
            x,
            rounded.codes,
            rounded.scale,
            WIDTH=width,
            BLOCK=block,
            LARGEST=FLOAT8_MAX,
            num_warps=min(16, max(1, block // 512)),
        )
    return rounded


@triton.jit
def _quantize_rows(
    x, codes, scales, WIDTH: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    value = tl.load(x + token * WIDTH + at, mask=at < WIDTH, other=0.0).to(tl.float32)
    eighth, scale = round_row(value, LARGEST)
    tl.store(codes + token * WIDTH + at, eighth.to(codes.dtype.element_ty), mask=at < WIDTH)
    tl.store(scales + token, scale)


@triton.jit
def round_row(value, LARGEST: tl.constexpr):
    """(a row scaled into the range of float8, ready for the cast; its scale)."""
    largest = tl.maximum(tl.max(tl.abs(value), 0), 1e-12)
    # A cast beyond the largest number gives NaN, and rounding may step over it.
    return tl.clamp(value * (LARGEST / largest), -LARGEST, LARGEST), largest / LARGEST
