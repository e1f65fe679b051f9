"""What a linear layer for few rows can do beside multiplying: norm and round what it reads, gate or add what it makes.

At a few rows a step is a chain of short launches, and each costs about as long as the work of a norm itself. So the
product before a norm adds to the residual stream and leaves the sums of squares; the product after it takes the norm's
weights in as it reads and the root as it ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from nonet.kernels.ops import Activation
from nonet.kernels.triton.quantize_rows import round_groups

__all__ = ["PLAIN", "Around", "Normed", "end_tile", "finish", "outputs_of_tile", "take_in"]


@dataclass(frozen=True, slots=True)
class Normed:
    """RMSNorm of residual [T, M] that is worked out where it is read, while the residual is as it is.

    squares float32 [T, parts] are sums over parts of a row, parts anyhow; weight float32 [M].
    """

    residual: torch.Tensor
    squares: torch.Tensor
    weight: torch.Tensor
    eps: float

    @property
    def shape(self) -> torch.Size:
        return self.residual.shape


@dataclass(frozen=True, slots=True)
class Around:
    """What to do beside multiplying.

    normed: x is its residual, and what is multiplied is its norm. rounds: what is multiplied is first rounded to
    float8, a scale for each tile of inputs. activation: the first half of the outputs are gates, and
    activation(gate) * up is made of them. residual [T, N]: the outputs are added to it in place, and squares float32
    [T, tiles] get the sums of squares of its rows by tiles of outputs; no other output is left.
    """

    normed: Normed | None = None
    rounds: bool = False
    activation: Activation | None = None
    residual: torch.Tensor | None = None
    squares: torch.Tensor | None = None


PLAIN = Around()


@triton.jit
def outputs_of_tile(tile, N: tl.constexpr, OUTPUTS: tl.constexpr, GATE: tl.constexpr):
    """The outputs [OUTPUTS] of a tile: neighbours, or as many gates followed by their ups."""
    lane = tl.arange(0, OUTPUTS)
    if GATE:
        half: tl.constexpr = OUTPUTS // 2
        return tile * half + lane % half + lane // half * (N // 2)
    return tile * OUTPUTS + lane


@triton.jit
def take_in(piece, norm, column, NORM: tl.constexpr, ROUND: tl.constexpr, LARGEST: tl.constexpr):
    """(inputs [ROWS, INPUTS] as they are multiplied, but for the cast to float8; their scales [ROWS] or 1.0)."""
    if NORM:
        piece = (piece.to(tl.float32) * tl.load(norm + column)).to(piece.dtype)
    scales = 1.0
    if ROUND:
        piece, scales = round_groups(piece.to(tl.float32), LARGEST)
    return piece, scales


@triton.jit
def end_tile(
    out, x_scale, scale, bias, acc, output, tile, tokens, squares, eps, residual, new_squares,
    N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
    HAS_SCALE: tl.constexpr, HAS_ROW_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr,
    NORM: tl.constexpr, GATE: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Scales the sums [OUTPUTS, ROWS] of a tile and leaves what is made of them. NORM: parts of a row's squares."""
    inside = output < N
    row = tl.arange(0, ROWS)
    if HAS_SCALE:
        acc *= tl.load(scale + output, mask=inside, other=0.0)[:, None]
    if HAS_ROW_SCALE:
        acc *= tl.load(x_scale + row, mask=row < tokens, other=0.0)[None, :]
    if NORM:
        acc *= _roots(squares, row, tokens, eps, K, NORM)[None, :]
    if GATE or ADD:
        if HAS_BIAS:
            acc += tl.load(bias + output, mask=inside, other=0.0).to(tl.float32)[:, None]
        if GATE:
            _leave_gated(out, acc, tile, tokens, N, ROWS, OUTPUTS, GATE)
        else:
            _add(residual, new_squares, acc, output, tile, tokens, N, ROWS, OUTPUTS)
    else:
        finish(out, bias, acc, output, tokens, N, ROWS, HAS_BIAS)


@triton.jit
def finish(
    out, bias, acc, output, tokens, N: tl.constexpr, ROWS: tl.constexpr, HAS_BIAS: tl.constexpr
):  # fmt: skip
    """out [T, N] gets the sums [OUTPUTS, ROWS] and the bias."""
    inside = output < N
    if HAS_BIAS:
        acc += tl.load(bias + output, mask=inside, other=0.0).to(tl.float32)[:, None]
    row = tl.arange(0, ROWS)[:, None]
    at = row.to(tl.int64) * N + output[None, :]
    mask = (row < tokens) & inside[None, :]
    tl.store(out + at, tl.trans(acc).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _add(
    residual, squares, acc, output, tile, tokens,
    N: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """To the residual stream, as it is kept; squares [T, tiles] are of what is kept."""
    row = tl.arange(0, ROWS)
    at = row.to(tl.int64)[:, None] * N + output[None, :]
    mask = (row < tokens)[:, None] & (output < N)[None, :]
    value = tl.trans(acc) + tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    kept = value.to(residual.dtype.element_ty)
    tl.store(residual + at, kept, mask=mask)
    wide = tl.where(mask, kept.to(tl.float32), 0.0)
    tiles: tl.constexpr = (N + OUTPUTS - 1) // OUTPUTS
    tl.store(squares + row * tiles + tile, tl.sum(wide * wide, 1), mask=row < tokens)


@triton.jit
def _roots(squares, row, tokens, eps, K: tl.constexpr, PARTS: tl.constexpr):
    """1 / sqrt(mean of squares + eps) of each row [ROWS]."""
    part = tl.arange(0, triton.next_power_of_2(PARTS))[None, :]
    mask = (row < tokens)[:, None] & (part < PARTS)
    sums = tl.load(squares + row[:, None] * PARTS + part, mask=mask, other=0.0)
    return tl.rsqrt(tl.sum(sums, 1) / K + eps)


@triton.jit
def _leave_gated(
    out, acc, tile, tokens,
    N: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """GATE 1: SiLU, 2: GeLU's tanh approximation. There is no tile with half a pair."""
    half: tl.constexpr = OUTPUTS // 2
    pairs = tl.permute(tl.reshape(acc, [2, half, ROWS]), (1, 2, 0))
    gate, up = tl.split(pairs)
    if GATE == 1:
        active = gate / (1 + tl.exp(-gate))
    else:
        # tanh(y) = 1 - 2 / (1 + exp(2 y)); both constants of the approximation are inside 2 y.
        doubled = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
        active = gate * (1 - 1 / (1 + tl.exp(doubled)))
    row = tl.arange(0, ROWS)[:, None]
    column = tile * half + tl.arange(0, half)[None, :]
    at = row.to(tl.int64) * (N // 2) + column
    tl.store(out + at, tl.trans(active * up).to(out.dtype.element_ty), mask=row < tokens)
