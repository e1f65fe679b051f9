"""Float8 activations: each row divided by its own scale, so that a token's numbers do not depend on its neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

__all__ = ["FLOAT8_MAX", "Rounded", "quantize_blocks", "quantize_rows", "round_groups", "round_row"]

FLOAT8_MAX = 448.0  # of e4m3fn


@dataclass(frozen=True, slots=True)
class Rounded:
    """float8_e4m3fn rows [T, K] and their float32 scales: [T, 1], or [T, K / g] where g inputs have one each."""

    codes: torch.Tensor
    scale: torch.Tensor

    @classmethod
    def empty(cls, tokens: int, width: int, device: torch.device, groups: int = 1) -> Rounded:
        return cls(
            torch.empty(tokens, width, dtype=torch.float8_e4m3fn, device=device),
            torch.empty(tokens, groups, dtype=torch.float32, device=device),
        )

    @property
    def groups(self) -> int:
        """Scales that a row has."""
        return self.scale.shape[1]


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


def quantize_blocks(x: torch.Tensor, width: int) -> Rounded:
    """x [T, K] rounded with a scale for each `width` inputs of a row: scales [T, ceil(K / width)]."""
    x = x.contiguous()
    tokens, inputs = x.shape
    blocks = triton.cdiv(inputs, width)
    codes = torch.empty(tokens, inputs, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(tokens, blocks, dtype=torch.float32, device=x.device)
    if tokens:
        _quantize_blocks[(tokens, triton.cdiv(blocks, 8))](
            x, codes, scale, K=inputs, BLOCKS=blocks, WIDTH=width, LARGEST=FLOAT8_MAX, num_warps=4
        )
    return Rounded(codes, scale)


@triton.jit
def round_groups(value, LARGEST: tl.constexpr):
    """([G, W] scaled into the range of float8, each line by itself; the scales [G])."""
    largest = tl.maximum(tl.max(tl.abs(value), 1), 1e-12)
    return tl.clamp(value * (LARGEST / largest)[:, None], -LARGEST, LARGEST), largest / LARGEST


@triton.jit
def _quantize_blocks(
    x, codes, scales, K: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr, LARGEST: tl.constexpr
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1) * 8 + tl.arange(0, 8)
    at = block[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    value = tl.load(x + token * K + at, mask=at < K, other=0.0).to(tl.float32)
    eighth, scale = round_groups(value, LARGEST)
    tl.store(codes + token * K + at, eighth.to(codes.dtype.element_ty), mask=at < K)
    tl.store(scales + token * BLOCKS + block, scale, mask=block < BLOCKS)


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
