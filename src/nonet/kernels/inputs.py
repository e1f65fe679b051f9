"""How a linear rounds its inputs before they meet weights in fewer bits; in plain torch, as the specification.

Every scale belongs to one token, or to one token and one group of inputs, so a token's numbers never depend on its
batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

__all__ = ["FLOAT8_MAX", "INT8_MAX", "InputRounding", "Inputs", "rounding_of"]

# free: as the kernels like best, which may be rounding to int8 by group; exact: not rounded; token: one scale for all
# inputs of a token; group: one for each token and each group of the weight.
Inputs = Literal["free", "exact", "token", "group"]

INT8_MAX = 127.0
FLOAT8_MAX = 448.0  # of e4m3fn


@dataclass(frozen=True, slots=True)
class InputRounding:
    """Symmetric rounding by the largest magnitude, to whole numbers up to 127 or to float8_e4m3fn.

    >>> InputRounding("int8", None).apply(torch.tensor([[127.0, -2.4, 0.6]])).tolist()
    [[127.0, -2.0, 1.0]]
    """

    kind: Literal["int8", "float8"]
    group: int | None  # inputs that share a scale; None: all of a token

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, K] as float32 numbers that the rounded form stands for."""
        rows, columns = x.shape
        group = columns if self.group is None else self.group
        missing = -columns % group
        grouped = F.pad(x.float(), (0, missing)).view(rows, -1, group)
        largest = grouped.abs().amax(-1, keepdim=True).clamp(min=1e-12)
        if self.kind == "int8":
            scale = largest / INT8_MAX
            rounded = (grouped / scale).round_()
        else:
            scale = largest / FLOAT8_MAX
            # A cast beyond the largest number gives NaN, and rounding may step over it.
            inside = (grouped / scale).clamp_(-FLOAT8_MAX, FLOAT8_MAX)
            rounded = inside.to(torch.float8_e4m3fn).float()
        return (rounded * scale).view(rows, columns + missing)[:, :columns]


def rounding_of(
    inputs: Inputs, kind: Literal["int8", "float8"], group: int
) -> InputRounding | None:
    """What `inputs` means for a weight with groups of this size, where nothing is rounded that need not be."""
    if inputs in ("free", "exact"):
        return None
    return InputRounding(kind, None if inputs == "token" else group)
