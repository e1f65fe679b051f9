"""A linear layer for one row, or very few: each program takes whole rows of the weight, and nothing is merged.

A product with one row has nothing to reuse, so tensor cores bring nothing: it is a stream of weights. Here many small
programs stand on each multiprocessor and each asks for all of its next tile at once, so enough bytes are in flight
without a pipeline, and no program waits for another's partial sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

__all__ = ["MOST_TOKENS", "OneRowTiling", "linear_one", "one_row_tiling"]

MOST_TOKENS = 4
GROUP = 128  # inputs that share a scale where a row has more than one


@dataclass(frozen=True, slots=True)
class OneRowTiling:
    """outputs x inputs of the weight are taken at a time by a program, which owns its outputs."""

    outputs: int
    inputs: int
    warps: int


def one_row_tiling(itemsize: int) -> OneRowTiling:
    return OneRowTiling(outputs=4, inputs=1024, warps=itemsize)


def linear_one(
    x: torch.Tensor,
    x_scale: torch.Tensor | None,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    out: torch.Tensor,
    tiling: OneRowTiling,
) -> None:
    """out [T, N] = x [T, K], T at most MOST_TOKENS, times weight [N, K] transposed, plus bias [N].

    float8 is scaled by float32 x_scale [T, 1], or [T, K / GROUP], and scale [N]; both are None for wider types. K must
    be a multiple of GROUP.
    """
    tokens, inputs = x.shape
    outputs = weight.shape[0]
    _linear_one[(triton.cdiv(outputs, tiling.outputs),)](
        x,
        x_scale if x_scale is not None else x,
        weight,
        scale if scale is not None else x,
        bias if bias is not None else x,
        out,
        x.stride(0),
        T=tokens,
        TOKENS=triton.next_power_of_2(tokens),
        N=outputs,
        K=inputs,
        OUTPUTS=tiling.outputs,
        INPUTS=tiling.inputs,
        GROUP=GROUP,
        HAS_SCALE=scale is not None,
        GROUPED=x_scale is not None and x_scale.shape[1] > 1,
        HAS_BIAS=bias is not None,
        num_warps=tiling.warps,
    )


@triton.jit
def _linear_one(
    x, x_scale, weight, scale, bias, out, x_stride,
    T: tl.constexpr, TOKENS: tl.constexpr, N: tl.constexpr, K: tl.constexpr, OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr, GROUP: tl.constexpr, HAS_SCALE: tl.constexpr, GROUPED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    token = tl.arange(0, TOKENS)
    column = tl.arange(0, INPUTS)
    inside = output < N
    weight_at = weight + output.to(tl.int64)[:, None] * K + column[None, :]
    x_at = x + token[:, None] * x_stride + column[None, :]
    acc = tl.zeros([TOKENS, OUTPUTS], tl.float32)
    for start in range(0, K, INPUTS):
        live = start + column < K
        if N % OUTPUTS == 0 and K % INPUTS == 0:
            w = tl.load(weight_at + start)
        else:
            w = tl.load(weight_at + start, mask=inside[:, None] & live[None, :], other=0.0)
        asked = (token < T)[:, None] & live[None, :]
        piece = tl.load(x_at + start, mask=asked, other=0.0).to(tl.float32)
        if GROUPED:
            group = token[:, None] * (K // GROUP) + (start + column)[None, :] // GROUP
            piece *= tl.load(x_scale + group, mask=asked, other=0.0)
        acc += tl.sum(piece[:, None, :] * w.to(tl.float32)[None, :, :], 2)
    if HAS_SCALE:
        acc *= tl.load(scale + output, mask=inside, other=0.0)[None, :]
        if not GROUPED:
            acc *= tl.load(x_scale + token, mask=token < T, other=0.0)[:, None]
    if HAS_BIAS:
        acc += tl.load(bias + output, mask=inside, other=0.0).to(tl.float32)[None, :]
    at = out + token.to(tl.int64)[:, None] * N + output[None, :]
    tl.store(at, acc.to(out.dtype.element_ty), mask=(token < T)[:, None] & inside[None, :])
