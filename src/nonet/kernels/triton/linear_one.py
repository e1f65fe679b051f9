"""A linear layer for one row: each program takes whole rows of the weight, and nothing is merged.

A product with one row has nothing to reuse, so tensor cores bring nothing: it is a stream of weights. Here many small
programs stand on each multiprocessor and each asks for all of its next tile at once, so enough bytes are in flight
without a pipeline, and no program waits for another's partial sum. Chained, a program asks for its first tile before
the operation that makes its input has ended.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from nonet.kernels.triton.chained import chain, let_next_begin, wait_for_last

__all__ = ["OneRowTiling", "linear_one", "one_row_tiling"]

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
    _linear_one[(triton.cdiv(outputs, tiling.outputs),)](
        x,
        x_scale if x_scale is not None else x,
        weight,
        scale if scale is not None else x,
        bias if bias is not None else x,
        out,
        N=outputs,
        K=inputs,
        OUTPUTS=tiling.outputs,
        INPUTS=tiling.inputs,
        GROUP=GROUP,
        HAS_SCALE=scale is not None,
        GROUPED=x_scale is not None and x_scale.shape[1] > 1,
        HAS_BIAS=bias is not None,
        CHAINED=is_chained,
        num_warps=tiling.warps,
        **chain(is_chained),
    )


@triton.jit
def _linear_one(
    x, x_scale, weight, scale, bias, out,
    N: tl.constexpr, K: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, GROUP: tl.constexpr,
    HAS_SCALE: tl.constexpr, GROUPED: tl.constexpr, HAS_BIAS: tl.constexpr, CHAINED: tl.constexpr,
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
        piece = tl.load(x + start + column, mask=live, other=0.0).to(tl.float32)
        if GROUPED:
            piece *= tl.load(x_scale + (start + column) // GROUP, mask=live, other=0.0)
        acc += tl.sum(piece[None, :] * w.to(tl.float32), 1)
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
