"""Weights in 8 or 4 bits as the kernels read them: 16-bit words of two or four codes, in tiles that lie in one piece.

A tile is 64 outputs by 32 words, or by 16 where groups are not made of 32 inputs. Word j of an output holds the codes
of inputs j, 32 + j, ... of its 64 (8 bits) or 128 (4 bits) inputs, lowest bits first: shifted by whole codes, a tile
gives a run of 32 neighbouring inputs at a time, each already where the tensor cores want it.

A number is s * (code - centre) + m, with s and m of its group and 128 or 8 for the centre; where all m are zero they
are left out. s and m are float16 times one power of two for the matrix, which keeps float16's own scales exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from nonet.kernels.groupwise import GroupwiseTensor
from nonet.kernels.triton.code_numbers import code_numbers, conversion

__all__ = ["TILE_OUTPUTS", "CodedLinear", "can_pack", "dequantize", "pack", "take_rows"]

TILE_OUTPUTS = 64
_EXACT = 1e-6  # of a scale: what counts as no minimum


@dataclass(frozen=True, slots=True)
class CodedLinear:
    """A weight [N, K]: int16 words [N / 64, K / tile_inputs, 64, run], both rounded up; float16 scales and minima
    [K / group, N rounded up]; bias [N] or None."""

    words: torch.Tensor
    scales: torch.Tensor
    minima: torch.Tensor | None
    bias: torch.Tensor | None
    factor: float  # of scales and minima
    num_outputs: int
    num_inputs: int
    group: int
    bits: int

    @property
    def run(self) -> int:
        """Words of an output in a tile, and inputs that are taken at a time."""
        return self.words.shape[3]

    @property
    def tile_inputs(self) -> int:
        return self.run * 16 // self.bits


def can_pack(weight: GroupwiseTensor) -> bool:
    """Groups must be made of whole runs, and the tensor cores take no fewer than 16 inputs."""
    return weight.group % 16 == 0


def pack(weight: GroupwiseTensor, bias: torch.Tensor | None, device: torch.device) -> CodedLinear:
    """The weight on the device, a hundred million codes at a time so that little memory is used twice."""
    outputs, inputs = weight.shape
    centre = 1 << (weight.bits - 1)
    scale = weight.scale.to(device).float()
    minimum = weight.minimum.to(device).float() + centre * scale
    factor = 2.0 ** torch.ceil(torch.log2(scale.abs().max().clamp(min=1e-30))).item()
    has_minimum = bool((minimum.abs() > _EXACT * centre * scale.abs()).any())
    rows = -(-outputs // TILE_OUTPUTS) * TILE_OUTPUTS

    def by_group(values: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(values / factor, (0, 0, 0, rows - outputs))
        return padded.to(torch.float16).t().contiguous()

    run = 32 if weight.group % 32 == 0 else 16
    per_tile = run * 16 // weight.bits
    steps = -(-inputs // per_tile)
    words = torch.empty(
        rows // TILE_OUTPUTS, steps, TILE_OUTPUTS, run, dtype=torch.int16, device=device
    )
    at_once = max(1, (100 << 20) // (steps * per_tile * TILE_OUTPUTS))
    for start in range(0, rows // TILE_OUTPUTS, at_once):
        part = weight.codes[start * TILE_OUTPUTS : (start + at_once) * TILE_OUTPUTS].to(device)
        words[start : start + at_once] = _words(part, steps, run, weight.bits)
    return CodedLinear(
        words=words,
        scales=by_group(scale),
        minima=by_group(minimum) if has_minimum else None,
        bias=bias,
        factor=factor,
        num_outputs=outputs,
        num_inputs=inputs,
        group=weight.group,
        bits=weight.bits,
    )


def _words(codes: torch.Tensor, steps: int, run: int, bits: int) -> torch.Tensor:
    """uint8 codes [n, K] to int16 [n / 64, steps, 64, run]; what is filled up has zero codes."""
    outputs, inputs = codes.shape
    per_word = 16 // bits
    missing = (0, steps * run * per_word - inputs, 0, -outputs % TILE_OUTPUTS)
    codes = torch.nn.functional.pad(codes, missing)
    parts = codes.view(-1, TILE_OUTPUTS, steps, per_word, run).int()
    shifts = torch.arange(0, 16, bits, device=codes.device, dtype=torch.int32)
    words = (parts << shifts[:, None]).sum(3, dtype=torch.int32)
    return words.to(torch.int16).transpose(1, 2)


def dequantize(coded: CodedLinear, start: int, out: torch.Tensor) -> None:
    """Outputs from `start` on, a multiple of 64, as numbers [n, K]."""
    _dequantize[(triton.cdiv(out.shape[0], TILE_OUTPUTS), coded.words.shape[1])](
        coded.words,
        coded.scales,
        coded.scales if coded.minima is None else coded.minima,
        out,
        coded.factor,
        start // TILE_OUTPUTS,
        out.shape[0],
        coded.scales.shape[1],
        coded.words.shape[1],
        K=coded.num_inputs,
        GROUP=coded.group,
        BITS=coded.bits,
        RUN=coded.run,
        OUTPUTS=TILE_OUTPUTS,
        HAS_MINIMUM=coded.minima is not None,
        CONVERT=conversion(coded.bits, torch.float16),
    )


def take_rows(
    coded: CodedLinear, rows: torch.Tensor, scale: float, dtype: torch.dtype
) -> torch.Tensor:
    """Outputs at int32 rows [R] as numbers [R, K], times scale: the embedding lookup."""
    out = torch.empty(len(rows), coded.num_inputs, dtype=dtype, device=rows.device)
    if out.numel():
        _take_rows[(len(rows), coded.words.shape[1])](
            coded.words,
            coded.scales,
            coded.scales if coded.minima is None else coded.minima,
            rows,
            out,
            coded.factor * scale,
            coded.scales.shape[1],
            coded.words.shape[1],
            K=coded.num_inputs,
            GROUP=coded.group,
            BITS=coded.bits,
            RUN=coded.run,
            OUTPUTS=TILE_OUTPUTS,
            HAS_MINIMUM=coded.minima is not None,
            CONVERT=conversion(coded.bits, torch.float16),
            num_warps=1,
        )
    return out


@triton.jit(do_not_specialize=["first_tile", "count"])
def _dequantize(
    words, scales, minima, out, factor, first_tile, count, scale_stride, steps,
    K: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr, RUN: tl.constexpr, OUTPUTS: tl.constexpr,
    HAS_MINIMUM: tl.constexpr, CONVERT: tl.constexpr,
):  # fmt: skip
    tile, step = tl.program_id(0), tl.program_id(1)
    row, lane = tl.arange(0, OUTPUTS), tl.arange(0, RUN)
    place = ((first_tile + tile).to(tl.int64) * steps + step) * (OUTPUTS * RUN)
    word = tl.load(words + place + row[:, None] * RUN + lane[None, :])
    output = tile * OUTPUTS + row
    for part in tl.static_range(16 // BITS):
        first = step * (RUN * 16 // BITS) + part * RUN
        at = (first // GROUP) * scale_stride + (first_tile + tile) * OUTPUTS + row
        there = first < K
        scale = tl.load(scales + at, mask=(row >= 0) & there, other=0.0).to(tl.float32)
        code = code_numbers(word, part, BITS, CONVERT, tl.float16).to(tl.float32)
        number = code * scale[:, None]
        if HAS_MINIMUM:
            number += tl.load(minima + at, mask=(row >= 0) & there, other=0.0).to(tl.float32)[
                :, None
            ]
        target = out + output.to(tl.int64)[:, None] * K + first + lane[None, :]
        inside = (output < count)[:, None] & (first + lane < K)[None, :]
        tl.store(target, (number * factor).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _take_rows(
    words, scales, minima, rows, out, factor, scale_stride, steps,
    K: tl.constexpr, GROUP: tl.constexpr, BITS: tl.constexpr, RUN: tl.constexpr, OUTPUTS: tl.constexpr,
    HAS_MINIMUM: tl.constexpr, CONVERT: tl.constexpr,
):  # fmt: skip
    place, step = tl.program_id(0).to(tl.int64), tl.program_id(1)
    output = tl.load(rows + place).to(tl.int64)
    lane = tl.arange(0, RUN)
    tile = (output // OUTPUTS * steps + step) * (OUTPUTS * RUN)
    word = tl.load(words + tile + output % OUTPUTS * RUN + lane)
    for part in tl.static_range(16 // BITS):
        first = step * (RUN * 16 // BITS) + part * RUN
        at = tl.minimum(first, K - 1) // GROUP * scale_stride + output
        code = code_numbers(word, part, BITS, CONVERT, tl.float16).to(tl.float32)
        number = code * tl.load(scales + at).to(tl.float32)
        if HAS_MINIMUM:
            number += tl.load(minima + at).to(tl.float32)
        inside = first + lane < K
        tl.store(
            out + place * K + first + lane, (number * factor).to(out.dtype.element_ty), mask=inside
        )
