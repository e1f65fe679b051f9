"""RMSNorm, alone or after adding to the residual stream: one row per program, summed in one fixed order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["add_rms_norm", "rms_norm"]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [..., M] normed over its last dimension, times float32 weight [M]."""
    x = x.contiguous()
    out = torch.empty_like(x)
    width = x.shape[-1]
    if x.numel():
        grid = (x.numel() // width,)
        _rms_norm[grid](
            x,
            x,
            weight,
            out,
            eps,
            width,
            triton.next_power_of_2(width),
            False,
            num_warps=_warps(width),
        )
    return out


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """Adds x to residual in place (rounded to its dtype, as the stream is kept), then norms the sum."""
    x = x.contiguous()
    out = torch.empty_like(x)
    width = x.shape[-1]
    if x.numel():
        grid = (x.numel() // width,)
        _rms_norm[grid](
            x,
            residual,
            weight,
            out,
            eps,
            width,
            triton.next_power_of_2(width),
            True,
            num_warps=_warps(width),
        )
    return out


def _warps(width: int) -> int:
    """About 16 elements a thread: few enough rows are in flight at decode that latency counts."""
    return min(16, max(1, triton.next_power_of_2(width) // 512))


@triton.jit
def _rms_norm(
    x,
    residual,
    weight,
    out,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * WIDTH
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    value = tl.load(x + row + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(residual + row + at, mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(residual.dtype.element_ty)
        tl.store(residual + row + at, rounded, mask=inside)
        value = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / WIDTH + eps)
    normed = value * scale * tl.load(weight + at, mask=inside, other=0.0)
    tl.store(out + row + at, normed.to(out.dtype.element_ty), mask=inside)
