"""A linear layer over weights in 8 or 4 bits, for few rows: bound by the bytes of its codes.

As in `linear_few`, the (output tile, input tile) pairs are one line that is cut in equal shares, one for each program,
and the last program to arrive at a tile adds its parts in order. Codes become numbers in registers by a mask and a
subtraction, two at a time, and go to the tensor cores as whole numbers, exactly; the sum of a group is then brought to
its scale in float32. A group's minimum counts as often as the sum of its inputs says.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from nonet.kernels.triton.code_numbers import code_numbers, conversion
from nonet.kernels.triton.coded import TILE_OUTPUTS, CodedLinear, dequantize
from nonet.kernels.triton.linear_few import LinearScratch, finish

__all__ = ["MOST_ROWS", "CodedLinears"]

MOST_ROWS = 256  # of one launch
# Of a program. With more rows cuBLAS on numbers made for it is faster, by the parts in
# benchmarks/2026-11-29-h100-kernels.
ROW_TILE = 64
PROGRAMS_EACH = 4  # for each multiprocessor
NUMBERS_AT_ONCE = 32 << 20  # that cuBLAS is given


class CodedLinears:
    """Applies packed codes; owns the memory for partial sums, which all layers share in turn."""

    def __init__(self, device: torch.device, multiprocessors: int) -> None:
        self._device = device
        self._programs = PROGRAMS_EACH * multiprocessors
        self._scratch: dict[tuple[int, int], LinearScratch] = {}
        self._numbers: torch.Tensor | None = None

    def any_rows(self, x: torch.Tensor, coded: CodedLinear) -> torch.Tensor:
        """x [T, K] to [T, N] of the same dtype, the fastest way for that many rows."""
        if x.shape[0] <= ROW_TILE:
            return self(x, coded, x.dtype)
        outputs, inputs = coded.num_outputs, coded.num_inputs
        out = torch.empty(x.shape[0], outputs, dtype=x.dtype, device=x.device)
        if self._numbers is None:
            self._numbers = torch.empty(NUMBERS_AT_ONCE, dtype=x.dtype, device=x.device)
        at_once = max(1, NUMBERS_AT_ONCE // (inputs * TILE_OUTPUTS)) * TILE_OUTPUTS
        for start in range(0, outputs, at_once):
            count = min(at_once, outputs - start)
            numbers = self._numbers[: count * inputs].view(count, inputs)
            dequantize(coded, start, numbers)
            torch.mm(x, numbers.t(), out=out[:, start : start + count])
        return out if coded.bias is None else out.add_(coded.bias)

    def __call__(
        self,
        x: torch.Tensor,
        coded: CodedLinear,
        out_dtype: torch.dtype,
        rows: int | None = None,
    ) -> torch.Tensor:
        """x [T, K] to [T, N] of `out_dtype`. `rows` are a program's at a time; given, the bits of a row depend on no
        other row, however many there are."""
        out = torch.empty(x.shape[0], coded.num_outputs, dtype=out_dtype, device=x.device)
        for start in range(0, x.shape[0], MOST_ROWS):
            part = x[start : start + MOST_ROWS]
            tile = rows or max(16, min(ROW_TILE, triton.next_power_of_2(part.shape[0])))
            self._launch(part, coded, out[start : start + MOST_ROWS], tile)
        return out

    def _launch(self, x: torch.Tensor, coded: CodedLinear, out: torch.Tensor, rows: int) -> None:
        tokens = x.shape[0]
        tiles, steps = coded.words.shape[:2]
        scratch = self._scratch_for(tiles)
        unused = x
        _linear_coded[(self._programs, triton.cdiv(tokens, rows))](
            x,
            coded.words,
            coded.scales,
            coded.scales if coded.minima is None else coded.minima,
            unused if coded.bias is None else coded.bias,
            out,
            scratch.partial,
            scratch.arrivals,
            coded.factor,
            tokens,
            x.stride(0),
            N=coded.num_outputs,
            K=coded.num_inputs,
            STEPS=steps,
            GROUP=coded.group,
            BITS=coded.bits,
            RUN=coded.run,
            OUTPUTS=TILE_OUTPUTS,
            ROWS=rows,
            PROGRAMS=self._programs,
            HAS_MINIMUM=coded.minima is not None,
            HAS_BIAS=coded.bias is not None,
            CONVERT=conversion(coded.bits, x.dtype),
            num_warps=4,
            num_stages=4,
        )

    def _scratch_for(self, tiles: int) -> LinearScratch:
        """Two partial sums for each program, and counters for each tile, for as many row tiles as a launch has."""
        key = (2 * self._programs * TILE_OUTPUTS * MOST_ROWS, tiles * (MOST_ROWS // ROW_TILE))
        if key not in self._scratch:
            self._scratch[key] = LinearScratch.allocate(*key, self._device)
        return self._scratch[key]


@triton.jit(do_not_specialize=["tokens"])
def _linear_coded(
    x, words, scales, minima, bias, out, partial, arrivals, factor, tokens, x_stride,
    N: tl.constexpr, K: tl.constexpr, STEPS: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr,
    RUN: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, PROGRAMS: tl.constexpr,
    HAS_MINIMUM: tl.constexpr, HAS_BIAS: tl.constexpr, CONVERT: tl.constexpr,
):  # fmt: skip
    program, row_tile = tl.program_id(0), tl.program_id(1)
    tiles: tl.constexpr = (N + OUTPUTS - 1) // OUTPUTS
    units: tl.constexpr = tiles * STEPS
    share: tl.constexpr = (units + PROGRAMS - 1) // PROGRAMS
    size: tl.constexpr = OUTPUTS * ROWS
    x += row_tile.to(tl.int64) * ROWS * x_stride
    out += row_tile.to(tl.int64) * ROWS * N
    partial += row_tile * (2 * PROGRAMS * size)
    arrivals += row_tile * tiles
    tokens -= row_tile * ROWS
    within = tl.arange(0, OUTPUTS)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
    at = program * share
    stop = tl.minimum(at + share, units)
    while at < stop:
        tile = at // STEPS
        start = tile * STEPS
        last = tl.minimum(start + STEPS, stop)
        output = tile * OUTPUTS + tl.arange(0, OUTPUTS)
        acc = _sum_codes(
            x, words, scales, minima, tile, output, tokens, x_stride, at - start, last - start,
            K, STEPS, GROUP, BITS, RUN, OUTPUTS, ROWS, tiles * OUTPUTS, HAS_MINIMUM, CONVERT,
        )  # fmt: skip
        if last - at == STEPS:
            finish(out, out, out, bias, acc * factor, output, tokens, N, ROWS, False, HAS_BIAS)
        else:
            segment = 2 * program + (at == start).to(tl.int32)
            tl.store(partial + segment * size + within, acc)
            tl.debug_barrier()
            first = start // share
            others = (start + STEPS - 1) // share - first
            if tl.atomic_add(arrivals + tile, 1, sem="acq_rel") == others:
                segment = 2 * first + 1
                acc = tl.zeros([OUTPUTS, ROWS], tl.float32)
                for place in range(others + 1):
                    acc += tl.load(partial + segment * size + within, cache_modifier=".cg")
                    segment = 2 * (first + place + 1)
                tl.store(arrivals + tile, 0)
                finish(out, out, out, bias, acc * factor, output, tokens, N, ROWS, False, HAS_BIAS)
        at = last


@triton.jit
def _sum_codes(
    x, words, scales, minima, tile, output, tokens, x_stride, begin, end,
    K: tl.constexpr, STEPS: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr, RUN: tl.constexpr,
    OUTPUTS: tl.constexpr, ROWS: tl.constexpr, SCALES: tl.constexpr, HAS_MINIMUM: tl.constexpr,
    CONVERT: tl.constexpr,
):  # fmt: skip
    """[OUTPUTS, ROWS] sums, in units of the factor, over the input tiles [begin, end)."""
    parts: tl.constexpr = 16 // BITS
    inputs: tl.constexpr = RUN * parts
    row = tl.arange(0, OUTPUTS)
    token, lane = tl.arange(0, ROWS), tl.arange(0, RUN)
    words_at = (
        words + tile.to(tl.int64) * (STEPS * OUTPUTS * RUN) + row[:, None] * RUN + lane[None, :]
    )
    x_at = x + token[:, None] * x_stride + lane[None, :]
    acc = tl.zeros([OUTPUTS, ROWS], tl.float32)
    for step in range(begin, end):
        word = tl.load(words_at + step * (OUTPUTS * RUN))
        if GROUP % inputs == 0:
            group = step * inputs // GROUP * SCALES + output
            scale = tl.load(scales + group).to(tl.float32)
            product = tl.zeros([OUTPUTS, ROWS], tl.float32)
            amount = tl.zeros([ROWS], tl.float32)
            for part in tl.static_range(parts):
                piece = _piece(x_at, step * inputs + part * RUN, token, lane, tokens, K, inputs)
                number = code_numbers(word, part, BITS, CONVERT, piece.dtype)
                product = tl.dot(number, tl.trans(piece), product)
                if HAS_MINIMUM:
                    amount += tl.sum(piece.to(tl.float32), 1)
            acc = tl.fma(product, scale[:, None], acc)
            if HAS_MINIMUM:
                minimum = tl.load(minima + group).to(tl.float32)
                acc = tl.fma(minimum[:, None], amount[None, :], acc)
        else:
            for part in tl.static_range(parts):
                first = step * inputs + part * RUN
                group = tl.minimum(first, K - 1) // GROUP * SCALES + output
                scale = tl.load(scales + group).to(tl.float32)
                piece = _piece(x_at, first, token, lane, tokens, K, inputs)
                number = code_numbers(word, part, BITS, CONVERT, piece.dtype)
                acc = tl.fma(tl.dot(number, tl.trans(piece)), scale[:, None], acc)
                if HAS_MINIMUM:
                    minimum = tl.load(minima + group).to(tl.float32)
                    acc = tl.fma(minimum[:, None], tl.sum(piece.to(tl.float32), 1)[None, :], acc)
    return acc


@triton.jit
def _piece(x_at, first, token, lane, tokens, K: tl.constexpr, INPUTS: tl.constexpr):
    """x [ROWS, RUN] from input `first` on; zeros past the end, where codes stand for nothing."""
    there = token[:, None] < tokens
    if K % INPUTS != 0:
        there = there & (first + lane < K)[None, :]
    return tl.load(x_at + first, mask=there, other=0.0)
