"""Linear layers: which of cuBLAS and our own kernel for few rows runs, for weights in bfloat16 and in float8."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from nonet.kernels.ops import Activation
from nonet.kernels.triton.linear_ends import PLAIN, Around, Normed
from nonet.kernels.triton.linear_few import (
    FewRowsTiling,
    LinearScratch,
    few_rows_tiling,
    linear_few,
)
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
    "Pending",
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
MOST_ROWS_PENDING = 16  # up to here a step is a chain of short launches
LEAST_WEIGHTS = 1 << 20  # with fewer our own kernel gains nothing
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


@dataclass(frozen=True, slots=True)
class Pending:
    """The product of x [T, K] and a weight that has not run: the operation after it says what it ends with."""

    x: torch.Tensor | Normed
    packed: DenseLinear | Float8Linear

    @property
    def numbers(self) -> torch.Tensor:
        """What the kernel reads for x."""
        return self.x.residual if isinstance(self.x, Normed) else self.x

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.numbers.shape[0], self.packed.weight.shape[0]))


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
        self._one = torch.ones((), dtype=torch.float32, device=device)
        self._small = self._one / FLOAT16_DIVISOR
        self.least_weights = LEAST_WEIGHTS

    def dense(self, x: torch.Tensor, packed: DenseLinear) -> torch.Tensor:
        """x [T, K] to [T, N]."""
        few = 0 < x.shape[0] <= MOST_ROWS_DENSE and packed.weight.numel() <= MOST_WEIGHTS_DENSE
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
        around: Around = PLAIN,
    ) -> None:
        """Our own kernel, for at most MOST_ROWS rows. A tiling is given only to compare it."""
        tiling = tiling or few_rows_tiling(x.shape[0], weight.element_size(), self._multiprocessors)
        elements = 2 * tiling.programs * tiling.outputs * MOST_ROWS
        key = (elements, -(-weight.shape[0] // tiling.outputs))
        if key not in self._scratch:
            self._scratch[key] = LinearScratch.allocate(*key, self._device)
        scratch = self._scratch[key]
        linear_few(
            x, x_scale, weight, scale, bias,
            out=out, tiling=tiling, scratch=scratch, around=around,
        )  # fmt: skip

    def can_wait(self, tokens: int, packed: DenseLinear | Float8Linear) -> bool:
        """Whether a product of so many rows may be a `Pending` one."""
        is_exact = packed.weight.dtype == torch.float32
        return 0 < tokens <= MOST_ROWS_PENDING and self._fits(packed.weight) and not is_exact

    def run(self, waiting: Pending) -> torch.Tensor:
        """The product [T, N] itself."""
        return self._run(waiting, waiting.packed.weight.shape[0], PLAIN)

    def run_gated(self, waiting: Pending, activation: Activation) -> torch.Tensor | None:
        """activation(gate) * up of a fused projection, [T, N / 2]; None where halves of tiles would not fit."""
        width = waiting.packed.weight.shape[0] // 2
        if width % (self._tiling(waiting).outputs // 2):
            return None
        return self._run(waiting, width, Around(activation=activation))

    def run_added(
        self, waiting: Pending, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> Normed:
        """Adds the product to residual [T, N] in place; the norm of the sum."""
        tokens, outputs = residual.shape
        tiles = -(-outputs // self._tiling(waiting).outputs)
        squares = torch.empty(tokens, tiles, dtype=torch.float32, device=residual.device)
        self._run(waiting, 0, Around(residual=residual, squares=squares))
        return Normed(residual, squares, weight, eps)

    def _run(self, waiting: Pending, width: int, around: Around) -> torch.Tensor:
        x, packed = waiting.numbers, waiting.packed
        scale = packed.scale if isinstance(packed, Float8Linear) else None
        normed = waiting.x if isinstance(waiting.x, Normed) else None
        out = torch.empty(x.shape[0], width, dtype=x.dtype, device=x.device)
        around = replace(around, normed=normed, rounds=scale is not None)
        self.few(x, None, packed.weight, scale, packed.bias, out, around=around)
        return out

    def _tiling(self, waiting: Pending) -> FewRowsTiling:
        rows, itemsize = waiting.numbers.shape[0], waiting.packed.weight.element_size()
        return few_rows_tiling(rows, itemsize, self._multiprocessors)

    def _fits(self, weight: torch.Tensor) -> bool:
        """Whole input tiles only; small layers gain nothing."""
        return weight.shape[1] % 256 == 0 and weight.numel() >= self.least_weights
