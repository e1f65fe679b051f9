"""The output head: float32 logits, soft-capped in place where the family asks for it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["logits", "soft_cap"]


def logits(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, softcap: float | None
) -> torch.Tensor:
    """x [R, M] times weight [V, M] transposed, accumulated and returned in float32."""
    if x.is_cuda and x.dtype != torch.float32:
        out = torch.mm(x, weight.t(), out_dtype=torch.float32)
    else:
        out = torch.mm(x.float(), weight.t().float())
    if bias is not None:
        out += bias
    return soft_cap(out, softcap)


def soft_cap(values: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """softcap * tanh(values / softcap), in place; the values themselves if there is none."""
    if softcap is not None and values.numel():
        block = 1024
        _soft_cap[(triton.cdiv(values.numel(), block),)](values, softcap, values.numel(), block)
    return values


@triton.jit(do_not_specialize=["count"])
def _soft_cap(values, softcap, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(values + at, mask=at < count)
    # softcap * tanh(y), with tanh(y) = 1 - 2 / (1 + exp(2 y))
    value = softcap - 2 * softcap / (1 + tl.exp(value * (2 / softcap)))
    tl.store(values + at, value, mask=at < count)
