"""A product of float8 matrices that still waits for its scales: the operation after it multiplies while it reads.

A pass of its own over the product costs a launch and two trips through memory for each linear layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from nonet.kernels.triton.scale_product import scale_product

__all__ = ["Scaled", "load_scaled", "open_product", "settled"]


@dataclass(frozen=True, slots=True)
class Scaled:
    """product [T, N] times rows [T, 1] times columns [N] is the value; both scales are float32."""

    product: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor

    def settle(self) -> torch.Tensor:
        """The value; uses the product's memory, so nothing else may read this any more."""
        scale_product(self.product, self.rows, self.columns, None)
        return self.product


def settled(x: torch.Tensor | Scaled) -> torch.Tensor:
    """The value itself, for an operation that does not know scales."""
    return x.settle() if isinstance(x, Scaled) else x


def open_product(
    x: torch.Tensor | Scaled,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]:
    """(numbers, scales of rows, scales of columns, whether the scales count), as a kernel takes them."""
    if isinstance(x, Scaled):
        return x.product, x.rows, x.columns, True
    plain = x.contiguous()
    return plain, plain, plain, False


@triton.jit
def load_scaled(numbers, token, column, rows, columns, WIDTH: tl.constexpr, mask, SCALED: tl.constexpr):  # fmt: skip
    """float32 of one token's numbers at `column`, at their scale."""
    value = tl.load(numbers + token * WIDTH + column, mask=mask, other=0.0).to(tl.float32)
    if SCALED:
        value *= tl.load(rows + token) * tl.load(columns + column, mask=mask, other=0.0)
    return value
