"""A linear layer in which a row's bits do not depend on the other rows, however many there are.

The order of every sum follows from the weight's shape alone: the inputs are cut in equal segments, the sum of a segment
starts from zero and takes inputs in rising order, and segments are added first to last. With few rows a program takes
one segment of a tile and the last to arrive adds them up; with many it takes all segments of a tile in turn. The weight
is always the left operand: the tensor cores' instruction is then 64 outputs tall for one row as for thousands, and
works out each row by itself.

Three kinds of scales: none; float32 by row and by output for float8, and for int8, whose sums are whole numbers;
or, for float8 in blocks of 128 inputs, by row and block and by output and block. There each block's product is
brought to its scale in float32 before it is added: the tensor cores keep too few bits to go on adding (DeepSeek-V3,
arXiv 2412.19437, section 3.3.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from nonet.kernels.triton.linear_few import LinearScratch

__all__ = ["FixedLinears", "FixedTiling", "fixed_tiling", "segments_of"]

BLOCK = 128  # inputs of a block of float8
FEW_ROWS = 64  # of a program
MOST_FEW = 256  # rows that go to the kernel for few
OUTPUTS = 64  # of a program
WANTED_PROGRAMS = 256  # about two for each multiprocessor of an H100: enough loads in flight
SHORTEST_SEGMENT = 512


@dataclass(frozen=True, slots=True)
class FixedTiling:
    """outputs x rows are a program's; inputs are taken at a time. Of no effect on a single bit."""

    outputs: int
    rows: int
    inputs: int
    warps: int
    stages: int


def segments_of(outputs: int, inputs: int) -> int:
    """In how many pieces the inputs of a weight are cut: what decides the order of its sums, with nothing else.

    >>> [segments_of(*shape) for shape in ((4096, 4096), (28672, 4096), (4096, 14336), (576, 576))]
    [4, 1, 4, 1]
    """
    tiles = -(-outputs // OUTPUTS)
    most = max(1, min(8, WANTED_PROGRAMS // tiles, inputs // SHORTEST_SEGMENT))
    return 1 << (most.bit_length() - 1)


def fixed_tiling(rows: int, itemsize: int, segments: int, *, has_blocks: bool) -> FixedTiling:
    """Chosen for Hopper's shared memory and registers; float32 is for tests."""
    if itemsize == 4:
        return FixedTiling(OUTPUTS, 16 if rows <= 16 else FEW_ROWS, 32, 4, 2)
    inputs = BLOCK if itemsize == 1 else 64
    if rows <= MOST_FEW:
        wide = max(16, min(FEW_ROWS, triton.next_power_of_2(rows)))
        return FixedTiling(OUTPUTS, wide, inputs, 4, 6 if wide <= 32 else 4)
    # Each accumulator besides the first leaves registers for a smaller tile.
    more = int(segments > 1) + int(has_blocks)
    return FixedTiling(128, 256 >> more, inputs, 8, 4)


class FixedLinears:
    """Applies weights in fixed order; owns the memory for segments' sums, which all layers share in turn."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._scratch: dict[tuple[int, int], LinearScratch] = {}

    def __call__(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        out_dtype: torch.dtype,
        *,
        x_scale: torch.Tensor | None = None,
        scale: torch.Tensor | None = None,
        tiling: FixedTiling | None = None,
    ) -> torch.Tensor:
        """x [T, K] times weight [N, K] transposed, plus bias [N]: [T, N] of `out_dtype`.

        float8 has float32 x_scale [T, 1] and scale [N], or, in blocks of 128, x_scale [T, B] and scale [N, B]; int8 has
        the former. A tiling is given only to compare it.
        """
        tokens, inputs = x.shape
        outputs = weight.shape[0]
        out = torch.empty(tokens, outputs, dtype=out_dtype, device=x.device)
        if not tokens:
            return out
        has_blocks = scale is not None and scale.dim() == 2
        segments = segments_of(outputs, inputs)
        tiling = tiling or fixed_tiling(
            tokens, weight.element_size(), segments, has_blocks=has_blocks
        )
        few = tokens <= MOST_FEW
        row_tiles = triton.cdiv(tokens, tiling.rows)
        tiles = triton.cdiv(outputs, tiling.outputs)
        scratch = self._scratch_for(outputs, segments if few else 1)
        unused = x
        _linear_fixed[(tiles * row_tiles * (segments if few else 1),)](
            x,
            unused if x_scale is None else x_scale,
            weight,
            unused if scale is None else scale,
            unused if bias is None else bias,
            out,
            scratch.partial,
            scratch.arrivals,
            tokens,
            x.stride(0),
            row_tiles,
            N=outputs,
            K=inputs,
            ROWS=tiling.rows,
            OUTPUTS=tiling.outputs,
            INPUTS=tiling.inputs,
            SEGMENT=_segment_inputs(inputs, segments),
            SEGMENTS=segments,
            APART=few and segments > 1,
            SCALED="blocks" if has_blocks else "rows" if scale is not None else "none",
            HAS_BIAS=bias is not None,
            SUM=tl.int32 if weight.dtype == torch.int8 else tl.float32,
            PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
            num_warps=tiling.warps,
            num_stages=tiling.stages,
        )
        return out

    def _scratch_for(self, outputs: int, segments: int) -> LinearScratch:
        """Kept for good: a graph that was captured on it finds it again."""
        tiles = triton.cdiv(outputs, OUTPUTS) if segments > 1 else 0
        elements = tiles * segments * OUTPUTS * MOST_FEW
        key = (elements, tiles * (MOST_FEW // 16))
        if key not in self._scratch:
            self._scratch[key] = LinearScratch.allocate(*key, self._device)
        return self._scratch[key]


def _segment_inputs(inputs: int, segments: int) -> int:
    """Inputs of a segment, whole blocks; the last may be shorter."""
    return -(-inputs // (segments * BLOCK)) * BLOCK


@triton.jit(do_not_specialize=["tokens", "row_tiles"])
def _linear_fixed(
    x, x_scale, weight, scale, bias, out, partial, arrivals, tokens, x_stride, row_tiles,
    N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
    SEGMENT: tl.constexpr, SEGMENTS: tl.constexpr, APART: tl.constexpr, SCALED: tl.constexpr,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    tiles: tl.constexpr = (N + OUTPUTS - 1) // OUTPUTS
    program = tl.program_id(0)
    segment = 0
    if APART:
        segment = program % SEGMENTS
        program = program // SEGMENTS
    tile, row_tile = _place(program, tiles, row_tiles)
    output = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    token = row_tile * ROWS + tl.arange(0, ROWS)
    if APART:
        acc = _sum_segment(
            x, x_scale, weight, scale, output, token, tokens, x_stride, segment * SEGMENT,
            N, K, ROWS, OUTPUTS, INPUTS, SEGMENT, SCALED, PRECISION, SUM,
        )  # fmt: skip
        size: tl.constexpr = OUTPUTS * ROWS
        within = tl.arange(0, OUTPUTS)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
        place = row_tile * tiles + tile
        mine = partial + place.to(tl.int64) * (SEGMENTS * size)
        tl.store(mine + segment * size + within, acc.to(tl.float32))
        tl.debug_barrier()
        if tl.atomic_add(arrivals + place, 1, sem="acq_rel") == SEGMENTS - 1:
            total = tl.load(mine + within, cache_modifier=".cg")
            for later in tl.static_range(1, SEGMENTS):
                total += tl.load(mine + later * size + within, cache_modifier=".cg")
            tl.store(arrivals + place, 0)
            _write(out, x_scale, scale, bias, total, output, token, tokens, N, SCALED, HAS_BIAS)
    else:
        total = _sum_segment(
            x, x_scale, weight, scale, output, token, tokens, x_stride, 0,
            N, K, ROWS, OUTPUTS, INPUTS, SEGMENT, SCALED, PRECISION, SUM,
        )  # fmt: skip
        for later in range(1, SEGMENTS):
            total += _sum_segment(
                x, x_scale, weight, scale, output, token, tokens, x_stride, later * SEGMENT,
                N, K, ROWS, OUTPUTS, INPUTS, SEGMENT, SCALED, PRECISION, SUM,
            )  # fmt: skip
        total = total.to(tl.float32)
        _write(out, x_scale, scale, bias, total, output, token, tokens, N, SCALED, HAS_BIAS)


@triton.jit
def _place(program, tiles: tl.constexpr, row_tiles):
    """(output tile, row tile): eight output tiles at a time go over all rows, so that both are found in the L2."""
    group = program // (8 * row_tiles)
    width = tl.minimum(8, tiles - group * 8)
    within = program - group * (8 * row_tiles)
    return group * 8 + within % width, within // width


@triton.jit
def _sum_segment(
    x, x_scale, weight, scale, output, token, tokens, x_stride, begin,
    N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
    SEGMENT: tl.constexpr, SCALED: tl.constexpr, PRECISION: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """[OUTPUTS, ROWS] sums over the inputs from `begin` on."""
    column = tl.arange(0, INPUTS)[None, :]
    weight_at = weight + output.to(tl.int64)[:, None] * K + column
    x_at = x + token.to(tl.int64)[:, None] * x_stride + column
    blocks: tl.constexpr = (K + INPUTS - 1) // INPUTS
    acc = tl.zeros([OUTPUTS, ROWS], SUM)
    for start in range(begin, tl.minimum(begin + SEGMENT, K), INPUTS):
        present = token[:, None] < tokens
        inside = output[:, None] < N
        if K % INPUTS != 0:
            present = present & (start + column < K)
            inside = inside & (start + column < K)
        if N % OUTPUTS == 0 and K % INPUTS == 0:
            w = tl.load(weight_at + start)
        else:
            w = tl.load(weight_at + start, mask=inside, other=0.0)
        piece = tl.load(x_at + start, mask=present, other=0.0)
        if SCALED == "blocks":
            block = start // INPUTS
            w_scale = tl.load(scale + output * blocks + block, mask=output < N, other=0.0)
            row_scale = tl.load(x_scale + token * blocks + block, mask=token < tokens, other=0.0)
            product = tl.dot(w, tl.trans(piece), input_precision=PRECISION)
            acc = tl.fma(product, w_scale[:, None] * row_scale[None, :], acc)
        else:
            acc = tl.dot(w, tl.trans(piece), acc, input_precision=PRECISION, out_dtype=SUM)
    return acc


@triton.jit
def _write(
    out, x_scale, scale, bias, acc, output, token, tokens,
    N: tl.constexpr, SCALED: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    inside = output < N
    if SCALED == "rows":
        acc *= tl.load(scale + output, mask=inside, other=0.0)[:, None]
        acc *= tl.load(x_scale + token, mask=token < tokens, other=0.0)[None, :]
    if HAS_BIAS:
        acc += tl.load(bias + output, mask=inside, other=0.0).to(tl.float32)[:, None]
    mask = (token[:, None] < tokens) & inside[None, :]
    tl.store(
        out + token.to(tl.int64)[:, None] * N + output[None, :],
        tl.trans(acc).to(out.dtype.element_ty),
        mask=mask,
    )
