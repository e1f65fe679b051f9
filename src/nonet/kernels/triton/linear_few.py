"""A linear layer for few rows: bound by the bytes of its weight, so the weight is dealt out evenly over the device.

All (output tile, input tile) pairs form one line, cut into equal shares, one per program. A program whose share ends
inside an output tile leaves a partial sum; the last of the tile's programs to arrive adds them in order, so the result
does not depend on who came when, nor on the other rows. Weight and activations may be float8, with a scale per output
and one per row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

__all__ = ["FewRowsTiling", "LinearScratch", "few_rows_tiling", "finish", "linear_few"]


@dataclass(frozen=True, slots=True)
class FewRowsTiling:
    """outputs x inputs of the weight are taken at a time by each of `programs` programs."""

    outputs: int
    inputs: int
    warps: int
    stages: int
    programs: int


@dataclass(frozen=True, slots=True)
class LinearScratch:
    """Partial sums of two segments a program, and arrival counters that are zero between launches."""

    partial: torch.Tensor
    arrivals: torch.Tensor

    @classmethod
    def allocate(cls, elements: int, tiles: int, device: torch.device) -> LinearScratch:
        return cls(
            torch.empty(elements, dtype=torch.float32, device=device),
            torch.zeros(tiles, dtype=torch.int32, device=device),
        )


def few_rows_tiling(rows: int, itemsize: int, multiprocessors: int) -> FewRowsTiling:
    """Measured on an H200."""
    if itemsize == 1:
        stages = 6 if rows <= 32 else 4
        return FewRowsTiling(
            outputs=64, inputs=128, warps=4, stages=stages, programs=2 * multiprocessors
        )
    return FewRowsTiling(outputs=64, inputs=128, warps=4, stages=5, programs=multiprocessors)


def linear_few(
    x: torch.Tensor,
    x_scale: torch.Tensor | None,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    out: torch.Tensor,
    tiling: FewRowsTiling,
    scratch: LinearScratch,
) -> None:
    """out [T, N] = x [T, K], T at most 64, times weight [N, K] transposed, plus bias [N].

    float8 is scaled by float32 x_scale [T, 1], or [T, K / tiling.inputs], and scale [N]; both are None for wider types.
    """
    tokens, inputs = x.shape
    outputs = weight.shape[0]
    _linear_few[(tiling.programs,)](
        x,
        x_scale if x_scale is not None else x,
        weight,
        scale if scale is not None else x,
        bias if bias is not None else x,
        out,
        scratch.partial,
        scratch.arrivals,
        tokens,
        x.stride(0),
        N=outputs,
        K=inputs,
        ROWS=max(16, triton.next_power_of_2(tokens)),
        OUTPUTS=tiling.outputs,
        INPUTS=tiling.inputs,
        PROGRAMS=tiling.programs,
        HAS_SCALE=scale is not None,
        GROUPED=x_scale is not None and x_scale.shape[1] > 1,
        HAS_BIAS=bias is not None,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        num_warps=tiling.warps,
        num_stages=tiling.stages,
    )


@triton.jit(do_not_specialize=["tokens"])
def _linear_few(
    x, x_scale, weight, scale, bias, out, partial, arrivals, tokens, x_stride,
    N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr, PROGRAMS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr, GROUPED: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    steps: tl.constexpr = K // INPUTS
    units: tl.constexpr = (N + OUTPUTS - 1) // OUTPUTS * steps
    share: tl.constexpr = (units + PROGRAMS - 1) // PROGRAMS
    at = program * share
    stop = tl.minimum(at + share, units)
    while at < stop:
        tile = at // steps
        start = tile * steps
        last = tl.minimum(start + steps, stop)
        output = tile * OUTPUTS + tl.arange(0, OUTPUTS)
        acc = _sum_segment(
            x, x_scale, weight, output, tokens, x_stride, (at - start) * INPUTS, (last - start) * INPUTS,
            N, K, ROWS, OUTPUTS, INPUTS, PRECISION, GROUPED,
        )  # fmt: skip
        if last - at == steps:
            finish(
                    out, x_scale, scale, bias, acc, output, tokens,
                    N, ROWS, HAS_SCALE, HAS_BIAS, GROUPED,
                )  # fmt: skip
        else:
            within = tl.arange(0, OUTPUTS)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
            segment = 2 * program + (at == start).to(tl.int32)
            tl.store(partial + segment * (OUTPUTS * ROWS) + within, acc)
            tl.debug_barrier()
            first = start // share
            others = (start + steps - 1) // share - first
            if tl.atomic_add(arrivals + tile, 1, sem="acq_rel") == others:
                segment = 2 * first + 1
                acc = tl.zeros([OUTPUTS, ROWS], tl.float32)
                for place in range(others + 1):
                    acc += tl.load(
                        partial + segment * (OUTPUTS * ROWS) + within, cache_modifier=".cg"
                    )
                    segment = 2 * (first + place + 1)
                tl.store(arrivals + tile, 0)
                finish(
                    out, x_scale, scale, bias, acc, output, tokens,
                    N, ROWS, HAS_SCALE, HAS_BIAS, GROUPED,
                )  # fmt: skip
        at = last


@triton.jit
def _sum_segment(
    x, x_scale, weight, output, tokens, x_stride, begin, end,
    N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr, PRECISION: tl.constexpr, GROUPED: tl.constexpr,
):  # fmt: skip
    """[OUTPUTS, ROWS] sums over inputs [begin, end). The weight is the left operand: its tile is the tall one."""
    token = tl.arange(0, ROWS)
    column = tl.arange(0, INPUTS)[None, :]
    weight_at = weight + output.to(tl.int64)[:, None] * K + column
    x_at = x + token[:, None] * x_stride + column
    group = x_scale + token * (K // INPUTS)
    if GROUPED:
        own = tl.load(group + begin // INPUTS, mask=token < tokens, other=0.0)
    acc = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for start in range(begin, end, INPUTS):
        if N % OUTPUTS == 0:
            w = tl.load(weight_at + start)
        else:
            w = tl.load(weight_at + start, mask=output[:, None] < N, other=0.0)
        piece = tl.load(x_at + start, mask=token[:, None] < tokens, other=0.0)
        if GROUPED:
            # Asked for one tile ahead: what no product reads, the compiler does not fetch early.
            follows = (token < tokens) & (start + INPUTS < end)
            ahead = tl.load(group + start // INPUTS + 1, mask=follows, other=0.0)
            acc += tl.dot(w, tl.trans(piece), input_precision=PRECISION) * own[None, :]
            own = ahead
        else:
            acc = tl.dot(w, tl.trans(piece), acc, input_precision=PRECISION)
    return acc


@triton.jit
def finish(
    out, x_scale, scale, bias, acc, output, tokens,
    N: tl.constexpr, ROWS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr,
    GROUPED: tl.constexpr = False,
):  # fmt: skip
    inside = output < N
    if HAS_SCALE:
        acc *= tl.load(scale + output, mask=inside, other=0.0)[:, None]
        if not GROUPED:
            row = tl.arange(0, ROWS)
            acc *= tl.load(x_scale + row, mask=row < tokens, other=0.0)[None, :]
    if HAS_BIAS:
        acc += tl.load(bias + output, mask=inside, other=0.0).to(tl.float32)[:, None]
    token = tl.arange(0, ROWS)[:, None]
    mask = (token < tokens) & inside[None, :]
    tl.store(
        out + token.to(tl.int64) * N + output[None, :],
        tl.trans(acc).to(out.dtype.element_ty),
        mask=mask,
    )
