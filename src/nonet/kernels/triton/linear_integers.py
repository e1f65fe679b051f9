"""A linear layer of 8-bit integers on both sides: what the tensor cores multiply exactly, scaled by row and by output.

Reference: LLM.int8() (arXiv 2208.07339) without its columns of outliers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from nonet.kernels.groupwise import GroupwiseTensor

__all__ = ["INT8_MAX", "IntegerLinear", "integer_linear", "is_integer_linear", "round_to_integers"]

INT8_MAX = 127.0
MIDDLE = 128  # the code that stands for 0
# Added and taken away again, it leaves a float32 below 2**22 rounded to a whole number, halves to the even one.
WHOLE = 12582912.0


@dataclass(frozen=True, slots=True)
class IntegerLinear:
    """Weight int8 [N, K], float32 scale per output [N], bias [N] or None; inputs are rounded by token."""

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None


def is_integer_linear(weight: GroupwiseTensor) -> bool:
    """Whether it has one scale for each output, no minimum of its own, and inputs rounded by token."""
    is_whole = weight.bits == 8 and weight.group == weight.shape[1] and weight.inputs == "token"
    return is_whole and torch.equal(weight.minimum, weight.scale * -MIDDLE)


def integer_linear(
    weight: GroupwiseTensor, bias: torch.Tensor | None, device: torch.device
) -> IntegerLinear:
    codes = weight.codes.to(device, torch.int16) - MIDDLE
    return IntegerLinear(codes.to(torch.int8), weight.scale[:, 0].to(device).contiguous(), bias)


def round_to_integers(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, K] as int8 and float32 scales [T, 1]: a row's largest magnitude becomes 127."""
    x = x.contiguous()
    tokens, width = x.shape
    codes = torch.empty(tokens, width, dtype=torch.int8, device=x.device)
    scale = torch.empty(tokens, 1, dtype=torch.float32, device=x.device)
    if tokens:
        block = triton.next_power_of_2(width)
        _round_rows[(tokens,)](
            x, codes, scale, WIDTH=width, BLOCK=block, LARGEST=INT8_MAX, WHOLE=WHOLE,
            num_warps=min(16, max(1, block // 512)),
        )  # fmt: skip
    return codes, scale


@triton.jit
def _round_rows(
    x, codes, scales,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    value = tl.load(x + token * WIDTH + at, mask=at < WIDTH, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), 0), 1e-12) / LARGEST
    whole = (value / scale + WHOLE) - WHOLE
    tl.store(codes + token * WIDTH + at, whole.to(tl.int8), mask=at < WIDTH)
    tl.store(scales + token, scale)
