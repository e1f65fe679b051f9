"""Float8 activations: each row divided by its own scale, so that a token's numbers do not depend on its neighbours."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["FLOAT8_MAX", "quantize_rows"]

FLOAT8_MAX = 448.0  # of e4m3fn


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, K] as float8_e4m3fn [T, K] and the float32 scales [T, 1] to multiply it with."""
    x = x.contiguous()
    tokens, width = x.shape
    out = torch.empty(tokens, width, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(tokens, 1, dtype=torch.float32, device=x.device)
    if tokens:
        block = triton.next_power_of_2(width)
        _quantize_rows[(tokens,)](
            x, out, scale, width, block, FLOAT8_MAX, num_warps=min(16, max(1, block // 512))
        )
    return out, scale


@triton.jit
def _quantize_rows(x, out, scale, WIDTH: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    value = tl.load(x + row * WIDTH + at, mask=at < WIDTH, other=0.0).to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(value), 0), 1e-12)
    # A cast beyond the largest number gives NaN, and rounding may step over it.
    scaled = tl.clamp(value * (LARGEST / largest), -LARGEST, LARGEST)
    tl.store(out + row * WIDTH + at, scaled.to(out.dtype.element_ty), mask=at < WIDTH)
    tl.store(scale + row, largest / LARGEST)
