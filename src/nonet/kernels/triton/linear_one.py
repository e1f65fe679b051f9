"""A linear layer for one row: each program takes whole rows of the weight, and nothing is merged.

A product with one row has nothing to reuse, so tensor cores bring nothing: it is a stream of weights. Here many small
programs stand on each multiprocessor and each asks for all of its next tile at once, so enough bytes are in flight
without a pipeline, and no program waits for another's partial sum. Chained, a program asks for its first tile before
the operation that makes its input has ended.

float8 goes four codes at a time through float16, where the product of two codes is exact and two of them are added:
one by one, their conversion takes longer than their bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from nonet.kernels.triton.chained import chain, let_next_begin, wait_for_last

__all__ = ["OneRowTiling", "linear_one", "one_row_tiling"]

CODES = 4  # in a word
GROUP = 128  # inputs that share a scale where a row has more than one


@dataclass(frozen=True, slots=True)
class OneRowTiling:
    """outputs x inputs of the weight are taken at a time by a program, which owns its outputs."""

    outputs: int
    inputs: int
    warps: int


def one_row_tiling(inputs: int, itemsize: int) -> OneRowTiling:
    """Measured on an H100. Long tiles are the better ones unless the last would be a part of one."""
    if itemsize == 1:
        return OneRowTiling(4, 2048, 4) if inputs % 2048 == 0 else OneRowTiling(4, 1024, 1)
    return OneRowTiling(2, 4096, 4) if inputs % 4096 == 0 else OneRowTiling(8, 1024, 2)


def linear_one(
    x: torch.Tensor,
    x_scale: torch.Tensor | None,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    out: torch.Tensor,
    tiling: OneRowTiling,
    is_chained: bool = False,
) -> None:
    """out [1, N] = x [1, K] times weight [N, K] transposed, plus bias [N].

    float8 is scaled by float32 x_scale [1, 1], or [1, K / GROUP], and scale [N]; both are None for wider types. K must
    be a multiple of GROUP.
    """
    outputs, inputs = weight.shape
    packed = _can_pack(weight)
    _linear_one[(triton.cdiv(outputs, tiling.outputs),)](
        x.view(torch.int32) if packed else x,
        x_scale if x_scale is not None else x,
        weight.view(torch.int32) if packed else weight,
        scale if scale is not None else x,
        bias if bias is not None else x,
        out,
        N=outputs,
        K=inputs // CODES if packed else inputs,
        OUTPUTS=tiling.outputs,
        INPUTS=tiling.inputs // CODES if packed else tiling.inputs,
        GROUP=GROUP // CODES if packed else GROUP,
        PACKED=packed,
        HAS_SCALE=scale is not None,
        GROUPED=x_scale is not None and x_scale.shape[1] > 1,
        HAS_BIAS=bias is not None,
        CHAINED=is_chained,
        num_warps=tiling.warps,
        **chain(is_chained),
    )


def _can_pack(weight: torch.Tensor) -> bool:
    """Words of codes; Triton's interpreter has no inline assembly."""
    return weight.dtype == torch.float8_e4m3fn and weight.is_cuda


@triton.jit
def _linear_one(
    x, x_scale, weight, scale, bias, out,
    N: tl.constexpr, K: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, GROUP: tl.constexpr,
    HAS_SCALE: tl.constexpr, GROUPED: tl.constexpr, HAS_BIAS: tl.constexpr, CHAINED: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, INPUTS)
    inside = output < N
    weight_at = weight + output.to(tl.int64)[:, None] * K + column[None, :]
    w = _tile(weight_at, inside, column, 0, N, K, OUTPUTS, INPUTS)
    wait_for_last(CHAINED)
    let_next_begin(CHAINED)
    acc = tl.zeros([OUTPUTS], tl.float32)
    for start in range(0, K, INPUTS):
        live = start + column < K
        if PACKED:
            part = _products_of_codes(w, tl.load(x + start + column, mask=live, other=0))
        else:
            part = (
                w.to(tl.float32)
                * tl.load(x + start + column, mask=live, other=0.0).to(tl.float32)[None, :]
            )
        if GROUPED:
            part *= tl.load(x_scale + (start + column) // GROUP, mask=live, other=0.0)[None, :]
        acc += tl.sum(part, 1)
        if INPUTS < K:
            w = _tile(weight_at, inside, column, start + INPUTS, N, K, OUTPUTS, INPUTS)
    if HAS_SCALE:
        acc *= tl.load(scale + output, mask=inside, other=0.0)
        if not GROUPED:
            acc *= tl.load(x_scale)
    if HAS_BIAS:
        acc += tl.load(bias + output, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + output, acc.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _products_of_codes(w, x):
    """float32 [OUTPUTS, WORDS]: of words of four float8 each, w [OUTPUTS, WORDS] and x [WORDS], the sums of products.

    x is made 16 times smaller, so that two products of the largest codes (448) do not pass float16's largest number.
    """
    low, high = _widened(x, 0), _widened(x, 1)
    return 16.0 * tl.inline_asm_elementwise(
        """{ .reg .b16 a, b; .reg .b32 c, d; .reg .f32 e, f;
        mov.b32 {a, b}, $1; cvt.rn.f16x2.e4m3x2 c, a; cvt.rn.f16x2.e4m3x2 d, b;
        mul.rn.f16x2 c, c, $2; fma.rn.f16x2 c, d, $3, c;
        mov.b32 {a, b}, c; cvt.f32.f16 e, a; cvt.f32.f16 f, b; add.f32 $0, e, f; }""",
        "=f,r,r,r", [w, low[None, :], high[None, :]], dtype=tl.float32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def _widened(x, HALF: tl.constexpr):
    """Two of the four codes of each word, the lower two or the upper two, in float16, 16 times smaller."""
    code = x if HALF == 0 else x >> 16
    return tl.inline_asm_elementwise(
        """{ .reg .b16 a, b; .reg .b32 c, d;
        mov.b32 {a, b}, $1; cvt.rn.f16x2.e4m3x2 c, a; mov.b32 d, 0x2C002C00; mul.rn.f16x2 $0, c, d; }""",
        "=r,r", [code], dtype=tl.int32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def _tile(
    weight_at, inside, column, start,
    N: tl.constexpr, K: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """Weights from column `start` on; 0 outside of the matrix."""
    if N % OUTPUTS == 0 and K == INPUTS:
        return tl.load(weight_at + start)
    return tl.load(
        weight_at + start, mask=inside[:, None] & (start + column < K)[None, :], other=0.0
    )
