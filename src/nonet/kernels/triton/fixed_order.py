"""The Triton kernels with every sum in one order: a token's bits are the same alone, in any batch and in any chunk.

Idea: batch-invariant kernels (Horace He and Thinking Machines Lab, "Defeating Nondeterminism in LLM Inference", 2025).
Norms, gates, rotation and rounding work row by row as they are; products and attention have kernels of their own, in
place of cuBLAS, whose choice of a kernel follows the number of rows, and of shares cut evenly over the device.
"""

from __future__ import annotations

import torch

from nonet.kernels.ops import AttentionInputs, LayerCache, QKVLayout
from nonet.kernels.triton.attention_fixed import FixedAttention
from nonet.kernels.triton.coded import CodedLinear
from nonet.kernels.triton.linear import DenseLinear, Float8Blocks
from nonet.kernels.triton.linear_integers import IntegerLinear
from nonet.kernels.triton.logits import soft_cap
from nonet.kernels.triton.ops import TritonLinear, TritonOps

__all__ = ["FixedOrderOps"]

CODED_ROWS = (
    64  # of a program, for one row as for many: the sum of a row's inputs is taken as the tile lies
)


class FixedOrderOps(TritonOps):
    """`TritonOps` whose results for a token depend on its own sequence alone, to the bit."""

    rounds_groups = False  # how a row is rounded must not depend on how many there are

    def __init__(self, dtype: torch.dtype, device: torch.device, threads: int = 1) -> None:
        super().__init__(dtype, device, threads)
        self.fixed_attention = FixedAttention(device, self.multiprocessors)

    def linear(self, x: torch.Tensor, weight: TritonLinear) -> torch.Tensor:
        if isinstance(weight, DenseLinear):
            return self.fixed_linears(x, weight.weight, weight.bias, self.dtype)
        if isinstance(weight, CodedLinear):
            return self.coded_linears(x, weight, self.dtype, CODED_ROWS)
        if isinstance(weight, Float8Blocks):
            return self.float8_blocks(x, weight)
        if isinstance(weight, IntegerLinear):
            return self.integers(x, weight)
        rounded = self.rounded(x)
        return self.fixed_linears(
            rounded.codes,
            weight.weight,
            weight.bias,
            self.dtype,
            x_scale=rounded.scale,
            scale=weight.scale,
        )

    def logits(
        self, x: torch.Tensor, weight: DenseLinear | CodedLinear, softcap: float | None
    ) -> torch.Tensor:
        if isinstance(weight, CodedLinear):
            wide = self.coded_linears(x, weight, torch.float32, CODED_ROWS)
        else:
            wide = self.fixed_linears(x, weight.weight, weight.bias, torch.float32)
        return soft_cap(wide, softcap)

    def attention(
        self,
        q: torch.Tensor,
        layout: QKVLayout,
        cache: LayerCache,
        inputs: AttentionInputs,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        return self.fixed_attention(
            q, layout, cache, inputs, scale=scale, window=window, softcap=softcap
        )
