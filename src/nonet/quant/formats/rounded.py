"""Integer weights by round-to-nearest at load, one scale and minimum per group of inputs.

Idea: q = round((w - min) / scale), scale = (max - min) / (2**bits - 1), per group along the inputs.
Reference: techniques of LLM.int8() (arXiv 2208.07339) in its weight-only, groupwise form.
Cost: lossy; 4-bit needs groups of 32. Good for: decode speed and memory. Conflicts: none.
"""

from __future__ import annotations

import torch

from nonet.kernels.groupwise import GroupwiseTensor
from nonet.quant.formats.base import Role, StoredMatrix

__all__ = ["Int4", "Int8", "round_to_nearest"]


class Int8:
    """8 bits in groups of 32."""

    def convert(self, stored: StoredMatrix, role: Role) -> GroupwiseTensor:
        return round_to_nearest(stored.dense(), bits=8, group=32)


class Int4:
    """4 bits in groups of 32; the embedding and the output head, where errors hurt most, have 8."""

    def convert(self, stored: StoredMatrix, role: Role) -> GroupwiseTensor:
        return round_to_nearest(stored.dense(), bits=4 if role == "linear" else 8, group=32)


def round_to_nearest(weight: torch.Tensor, *, bits: int, group: int) -> GroupwiseTensor:
    """weight [N, K] to codes. Scales and minima are rounded to float16 first, so that kernels may store them so.

    Where `group` does not divide K, the largest divisor of K below it is the group.
    """
    rows, columns = weight.shape
    if columns % group:
        group = _largest_divisor(columns, group)
    grouped = weight.float().view(rows, columns // group, group)
    low = grouped.amin(-1).clamp(max=0.0)
    high = grouped.amax(-1).clamp(min=0.0)
    levels = 2**bits - 1
    scale = ((high - low) / levels).half().float()
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    minimum = low.half().float()
    codes = ((grouped - minimum.unsqueeze(-1)) / scale.unsqueeze(-1)).round_().clamp_(0, levels)
    return GroupwiseTensor(codes.to(torch.uint8).view(rows, columns), scale, minimum, group, bits)


def _largest_divisor(columns: int, group: int) -> int:
    """The largest divisor of `columns` that is at most `group`."""
    return next(size for size in range(group, 0, -1) if columns % size == 0)
