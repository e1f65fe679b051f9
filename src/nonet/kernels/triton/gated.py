"""activation(gate) * up in one pass over a fused projection's output; also rounded to float8 where that is wanted."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from nonet.kernels.ops import Activation
from nonet.kernels.triton.chained import chain, let_next_begin, wait_for_last
from nonet.kernels.triton.quantize_rows import FLOAT8_MAX, Rounded, round_groups, round_row
from nonet.kernels.triton.scaled import Scaled, load_scaled, open_product

__all__ = ["gated"]

ELEMENTS_PER_PROGRAM = 1024


def gated(
    gate_up: torch.Tensor | Scaled,
    activation: Activation,
    rounded: Rounded | None = None,
    is_chained: bool = False,
) -> torch.Tensor:
    """[T, 2 I] to [T, I]: the first half goes through the activation; fills `rounded` if given."""
    numbers, rows, columns, is_scaled = open_product(gate_up)
    tokens, both = numbers.shape
    width = both // 2
    out = torch.empty(tokens, width, dtype=numbers.dtype, device=numbers.device)
    whole = triton.next_power_of_2(width)
    # A row's scale needs all of the row in one program.
    groups = 1 if rounded is None else rounded.groups
    is_row = rounded is not None and groups == 1
    block = whole if is_row else min(ELEMENTS_PER_PROGRAM, whole)
    if out.numel():
        _gated[(tokens, triton.cdiv(width, block))](
            numbers,
            rows,
            columns,
            out,
            out if rounded is None else rounded.codes,
            out if rounded is None else rounded.scale,
            WIDTH=width,
            BLOCK=block,
            SILU=activation == "silu",
            ROUND=is_row,
            GROUP=width // groups if groups > 1 else 0,
            LARGEST=FLOAT8_MAX,
            SCALED=is_scaled,
            CHAINED=is_chained,
            num_warps=min(16, max(4, block // 512)),
            **chain(is_chained),
        )
    return out


@triton.jit
def _gated(
    numbers,
    rows,
    columns,
    out,
    codes,
    scales,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    SILU: tl.constexpr,
    ROUND: tl.constexpr,
    GROUP: tl.constexpr,
    LARGEST: tl.constexpr,
    SCALED: tl.constexpr,
    CHAINED: tl.constexpr,
):
    wait_for_last(CHAINED)
    let_next_begin(CHAINED)
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < WIDTH
    gate = load_scaled(numbers, token, at, rows, columns, 2 * WIDTH, inside, SCALED)
    up = load_scaled(numbers, token, WIDTH + at, rows, columns, 2 * WIDTH, inside, SCALED)
    if SILU:
        active = gate / (1 + tl.exp(-gate))
    else:
        # tanh(y) = 1 - 2 / (1 + exp(2 y)); both constants of the GeLU approximation are inside 2 y.
        doubled = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
        active = gate * (1 - 1 / (1 + tl.exp(doubled)))
    product = (active * up).to(out.dtype.element_ty)
    tl.store(out + token * WIDTH + at, product, mask=inside)
    if ROUND:
        eighth, scale = round_row(product.to(tl.float32), LARGEST)
        tl.store(codes + token * WIDTH + at, eighth.to(codes.dtype.element_ty), mask=inside)
        tl.store(scales + token, scale)
    if GROUP:
        lines = tl.reshape(product.to(tl.float32), [BLOCK // GROUP, GROUP])
        eighth, line_scales = round_groups(lines, LARGEST)
        spread = tl.reshape(eighth, [BLOCK]).to(codes.dtype.element_ty)
        tl.store(codes + token * WIDTH + at, spread, mask=inside)
        group = tl.program_id(1) * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
        place = scales + token * (WIDTH // GROUP) + group
        tl.store(place, line_scales, mask=group < WIDTH // GROUP)
