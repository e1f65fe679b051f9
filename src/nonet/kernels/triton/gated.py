"""activation(gate) * up in one pass over a fused projection's output."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from nonet.kernels.ops import Activation

__all__ = ["gated"]


def gated(gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """[T, 2 I] to [T, I]: the first half goes through the activation."""
    gate_up = gate_up.contiguous()
    tokens, both = gate_up.shape
    width = both // 2
    out = torch.empty(tokens, width, dtype=gate_up.dtype, device=gate_up.device)
    if out.numel():
        block = min(1024, triton.next_power_of_2(width))
        grid = (tokens, triton.cdiv(width, block))
        _gated[grid](gate_up, out, width, block, activation == "silu", num_warps=4)
    return out


@triton.jit
def _gated(gate_up, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SILU: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < WIDTH
    row = gate_up + token * (2 * WIDTH)
    gate = tl.load(row + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(row + WIDTH + at, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        active = gate / (1 + tl.exp(-gate))
    else:
        # tanh(y) = 1 - 2 / (1 + exp(2 y)); both constants of the GeLU approximation are inside 2 y.
        doubled = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
        active = gate * (1 - 1 / (1 + tl.exp(doubled)))
    tl.store(out + token * WIDTH + at, (active * up).to(out.dtype.element_ty), mask=inside)
