"""A matrix stored as small codes with a scale and a minimum per group: what every integer weight format becomes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nonet.kernels.inputs import Inputs

__all__ = ["GroupwiseTensor"]


@dataclass(frozen=True, slots=True)
class GroupwiseTensor:
    """A matrix held as small unsigned codes: `w[n, k] = scale[n, k // group] * codes[n, k] + minimum[n, k // group]`.

    codes: uint8 [N, K], values below 2**bits. scale, minimum: float32 [N, K / group]. Every GGUF block format fits:
    symmetric ones have `minimum = -zero * scale`. `inputs` says how activations are rounded, to int8, before they are
    multiplied.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    minimum: torch.Tensor
    group: int
    bits: int  # 4 or 8 (5- and 6-bit formats are 8 here)
    inputs: Inputs = "free"

    @property
    def shape(self) -> tuple[int, int]:
        return (self.codes.shape[0], self.codes.shape[1])

    def dequantize(self) -> torch.Tensor:
        """float32 [N, K]."""
        rows, columns = self.shape
        grouped = self.codes.view(rows, columns // self.group, self.group).float()
        return (grouped * self.scale.unsqueeze(-1) + self.minimum.unsqueeze(-1)).view(rows, columns)

    def to(self, device: torch.device) -> GroupwiseTensor:
        codes, scale, minimum = (one.to(device) for one in (self.codes, self.scale, self.minimum))
        return GroupwiseTensor(codes, scale, minimum, self.group, self.bits, self.inputs)

    def in_groups_of(self, group: int) -> GroupwiseTensor:
        """The same numbers with each group cut in equal smaller ones; `group` divides the present size."""
        assert self.group % group == 0, (self.group, group)
        times = self.group // group
        if times == 1:
            return self
        return GroupwiseTensor(
            self.codes,
            self.scale.repeat_interleave(times, dim=1),
            self.minimum.repeat_interleave(times, dim=1),
            group,
            self.bits,
            self.inputs,
        )
