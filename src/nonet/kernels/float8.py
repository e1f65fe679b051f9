"""A matrix stored as 8-bit floats with a scale per group of inputs: what every FP8 weight format becomes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nonet.kernels.inputs import Inputs

__all__ = ["Float8Tensor"]


@dataclass(frozen=True, slots=True)
class Float8Tensor:
    """A matrix `w[n, k] = scale[n, k // group] * values[n, k]`.

    values: float8_e4m3fn [N, K]. scale: float32 [N, ceil(K / group)]; the last group may be short. A scale for the
    whole row has `group` K; one for the tensor, or for a block of rows, is repeated for each of its rows. `inputs`
    says how activations are rounded, to float8_e4m3fn, before they are multiplied.
    """

    values: torch.Tensor
    scale: torch.Tensor
    group: int
    inputs: Inputs = "token"

    @property
    def shape(self) -> tuple[int, int]:
        return (self.values.shape[0], self.values.shape[1])

    @property
    def is_by_output(self) -> bool:
        """One scale for each output."""
        return self.scale.shape[1] == 1

    def dequantize(self) -> torch.Tensor:
        """float32 [N, K]."""
        spread = self.scale.repeat_interleave(self.group, dim=1)[:, : self.shape[1]]
        return self.values.float() * spread
