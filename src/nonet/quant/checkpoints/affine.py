"""Integer weights, `scale * (code - zero)` in groups along the inputs: what every integer layout unpacks to."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nonet.core.errors import ModelFileError, UnsupportedModelError
from nonet.kernels.groupwise import GroupwiseTensor

__all__ = ["AffineWeight", "check_bits", "expect", "regular_group", "unpack_words"]

READABLE_BITS = (4, 8)


@dataclass(frozen=True, slots=True)
class AffineWeight:
    """codes uint8 [N, K]; scale float, zero int32 [N, G] or [N, 1]; column k belongs to group `group_of[k]`.

    `group` is the width of a group where groups are contiguous and equal, else None. Act-order scatters a group over
    the matrix; a `GroupwiseTensor` cannot say that without a permutation of the inputs, so such a matrix has a dense
    form only. It is exact: only memory is lost.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    group_of: torch.Tensor
    group: int | None
    bits: int

    def dense(self) -> torch.Tensor:
        """In the type of the scales, rounded once, by the product."""
        scale, zero = self.scale[:, self.group_of], self.zero[:, self.group_of]
        return (self.codes.to(torch.int32) - zero).to(scale.dtype) * scale

    def as_codes(self) -> GroupwiseTensor | None:
        """The products before `dense` rounds them, exact for scales of 16 bits: none has more than 20 bits."""
        if self.group is None:
            return None
        scale = self.scale.float()
        minimum = -self.zero.float() * scale
        return GroupwiseTensor(
            self.codes, scale.contiguous(), minimum.contiguous(), self.group, self.bits
        )


def unpack_words(words: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """int32 words to uint8 codes, low bits first, spread along dimension `dim` of a matrix."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    rows, columns = words.shape
    if dim == 1:
        spread = (words.unsqueeze(2) >> shifts).reshape(rows, -1)
    else:
        spread = (words.unsqueeze(1) >> shifts.view(1, -1, 1)).reshape(-1, columns)
    codes: torch.Tensor = (spread & (2**bits - 1)).to(torch.uint8)
    return codes


def regular_group(group_of: torch.Tensor, num_groups: int) -> int | None:
    """The width of contiguous, equal groups; None where the columns of a group are scattered or the last is short."""
    columns = len(group_of)
    if num_groups == 0 or columns % num_groups:
        return None
    width = columns // num_groups
    return width if torch.equal(group_of, torch.arange(columns) // width) else None


def check_bits(bits: int, where: str) -> None:
    if bits not in READABLE_BITS:
        raise UnsupportedModelError(
            f"{where}: weights of {bits} bits cannot be read; 4 and 8 bits can"
        )


def expect(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Raise ModelFileError unless a tensor has the shape that its neighbours and the configuration imply."""
    if shape != wanted:
        raise ModelFileError(f"{name} has shape {shape}; {wanted} is needed")
