"""Linear layers: which of cuBLAS and our own kernel for few rows runs, for weights in bfloat16 and in float8."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nonet.kernels.triton.chained import can_chain
from nonet.kernels.triton.linear_few import (
    FewRowsTiling,
    LinearScratch,
    few_rows_tiling,
    linear_few,
)
from nonet.kernels.triton.linear_one import linear_one, one_row_tiling
from nonet.kernels.triton.quantize_rows import FLOAT8_MAX, Rounded
from nonet.kernels.triton.scale_product import scale_product
from nonet.kernels.triton.scaled import Scaled

__all__ = [
    "GROUP",
    "MOST_ROWS_FLOAT8",
    "DenseLinear",
    "Float8Blocks",
    "Float8Linear",
    "Linears",
    "float8_linear",
]

# Above these cuBLAS is as fast or faster (measured on an H200).
MOST_ROWS_DENSE = 16
MOST_WEIGHTS_DENSE = 4096 * 4096
MOST_ROWS_FLOAT8 = 16
# cuBLAS's kernels for scales by row are slow for few rows, by a third or more: up to here one without, and our own
# scaling behind it, is faster.
MOST_ROWS_UNSCALED = 512
# What both sides of an unscaled product are divided by where the result is float16: codes go up to 448, and sums of
# their products would be infinite.
FLOAT16_DIVISOR = 512.0
MOST_ROWS = 128  # that our own kernel can take
GROUP = (
    128  # inputs of a row that share a scale, where a row is rounded piece by piece as it is made
)


@dataclass(frozen=True, slots=True)
class DenseLinear:
    """A linear layer's weight [N, K] and bias [N] or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Float8Linear:
    """Weight float8_e4m3fn [N, K], float32 scale per output [N], bias [N] or None."""

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Float8Blocks:
    """Weight float8_e4m3fn [N, K], float32 scales [N, ceil(K / 128)] for each 128 inputs, bias [N] or None."""

    weight: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor | None


def float8_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Float8Linear:
    """A dense weight rounded to float8 with one scale per output."""
    wide = weight.float()
    scale = wide.abs().amax(1).clamp(min=1e-12) / FLOAT8_MAX
    codes = (wide / scale[:, None]).clamp(-FLOAT8_MAX, FLOAT8_MAX).to(torch.float8_e4m3fn)
    return Float8Linear(codes, scale, bias)


class Linears:
    """Applies packed linears; owns the memory for partial sums, which all layers share in turn."""

    def __init__(self, device: torch.device, multiprocessors: int) -> None:
        self._device = device
        self._multiprocessors = multiprocessors
        self._scratch: dict[tuple[int, int], LinearScratch] = {}
        self.is_chained = can_chain(device)
        self._one = torch.ones((), dtype=torch.float32, device=device)
        self._small = self._one / FLOAT16_DIVISOR

    def dense(self, x: torch.Tensor, packed: DenseLinear) -> torch.Tensor:
        """x [T, K] to [T, N]."""
        is_small = packed.weight.numel() <= MOST_WEIGHTS_DENSE
        few = x.shape[0] == 1 or (0 < x.shape[0] <= MOST_ROWS_DENSE and is_small)
        if not few or x.dtype == torch.float32 or not self._fits(packed.weight):
            return F.linear(x, packed.weight, packed.bias)
        out = torch.empty(x.shape[0], packed.weight.shape[0], dtype=x.dtype, device=x.device)
        self.few(x, None, packed.weight, None, packed.bias, out)
        return out

    def takes_groups(self, tokens: int, weight: torch.Tensor) -> bool:
        """Whether `float8` takes rows rounded in groups of GROUP inputs: our own kernel does, cuBLAS does not."""
        return 0 < tokens <= MOST_ROWS_FLOAT8 and self._fits(weight)

    def float8(
        self, rounded: Rounded, packed: Float8Linear, dtype: torch.dtype
    ) -> torch.Tensor | Scaled:
        """Rounded rows [T, K] to [T, N] of `dtype`, which may still wait for its scales."""
        tokens, outputs = rounded.codes.shape[0], packed.weight.shape[0]
        if self.takes_groups(tokens, packed.weight):
            out = torch.empty(tokens, outputs, dtype=dtype, device=rounded.codes.device)
            self.few(rounded.codes, rounded.scale, packed.weight, packed.scale, packed.bias, out)
            return out
        # With a scale by row it gives bfloat16 only.
        if tokens <= MOST_ROWS_UNSCALED or dtype == torch.float16:
            factor, scale = self._one, packed.scale
            if dtype == torch.float16:
                factor, scale = self._small, scale * FLOAT16_DIVISOR**2
            out = self._product(rounded.codes, packed.weight, factor, factor, dtype)
            if packed.bias is None:
                return Scaled(out, rounded.scale, scale)
            scale_product(out, rounded.scale, scale, packed.bias)
            return out
        out = self._product(
            rounded.codes, packed.weight, rounded.scale, packed.scale[None, :], dtype
        )
        return out if packed.bias is None else out.add_(packed.bias)

    def _product(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        x_scale: torch.Tensor,
        scale: torch.Tensor,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """cuBLAS through the only door that torch has to float8 products."""
        return torch._scaled_mm(
            x, weight.t(), scale_a=x_scale, scale_b=scale, out_dtype=dtype, use_fast_accum=True
        )

    def few(
        self,
        x: torch.Tensor,
        x_scale: torch.Tensor | None,
        weight: torch.Tensor,
        scale: torch.Tensor | None,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        tiling: FewRowsTiling | None = None,
    ) -> None:
        """Our own kernels, for at most MOST_ROWS rows: one row has its own. A tiling is given only to compare it."""
        if len(x) == 1 and tiling is None:
            one = one_row_tiling(weight.shape[1], weight.element_size())
            linear_one(
                x, x_scale, weight, scale, bias, out=out, tiling=one, is_chained=self.is_chained
            )
            return
        tiling = tiling or few_rows_tiling(x.shape[0], weight.element_size(), self._multiprocessors)
        elements = 2 * tiling.programs * tiling.outputs * MOST_ROWS
        key = (elements, -(-weight.shape[0] // tiling.outputs))
        if key not in self._scratch:
            self._scratch[key] = LinearScratch.allocate(*key, self._device)
        scratch = self._scratch[key]
        linear_few(x, x_scale, weight, scale, bias, out=out, tiling=tiling, scratch=scratch)

    def _fits(self, weight: torch.Tensor) -> bool:
        """Whole input tiles only; small layers gain nothing."""
        return weight.is_cuda and weight.shape[1] % 256 == 0 and weight.numel() >= 1 << 20
