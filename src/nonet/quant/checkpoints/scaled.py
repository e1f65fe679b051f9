"""8-bit floats with a scale for the tensor, for each output or for each block of a grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nonet.core.errors import ModelFileError
from nonet.core.fields import Fields
from nonet.kernels.groupwise import GroupwiseTensor
from nonet.quant.checkpoints.affine import expect

__all__ = ["ScaledWeight", "block_size"]


@dataclass(frozen=True, slots=True)
class ScaledWeight:
    """values float8 [N, K]; scale [R, C], one number for each `block` of rows and columns.

    The block of a per-tensor scale is the matrix, that of a per-output scale a row. Blocks at the lower and right
    edge may be cut off.
    """

    values: torch.Tensor
    scale: torch.Tensor
    block: tuple[int, int]

    @classmethod
    def of(
        cls, name: str, values: torch.Tensor, scale: torch.Tensor, block: tuple[int, int] | None
    ) -> ScaledWeight:
        """The weight whose scale, stored as `name`, has one of the three shapes; ModelFileError for any other."""
        rows, columns = values.shape
        if scale.numel() == 1:
            return cls(values, scale.view(1, 1), (rows, columns))
        if block is None:
            expect(name, tuple(scale.shape), (rows, 1) if scale.dim() == 2 else (rows,))
            return cls(values, scale.view(rows, 1), (1, columns))
        expect(name, tuple(scale.shape), (-(-rows // block[0]), -(-columns // block[1])))
        return cls(values, scale, block)

    def dense(self) -> torch.Tensor:
        """The product in float32, rounded once to the type of the scale (bfloat16 where that is a power of two)."""
        rows, columns = self.values.shape
        row_of = torch.arange(rows) // self.block[0]
        column_of = torch.arange(columns) // self.block[1]
        spread = self.scale.float()[row_of][:, column_of]
        dtype = self.scale.dtype if self.scale.element_size() >= 2 else torch.bfloat16
        return (self.values.float() * spread).to(dtype)

    def groupwise(self) -> GroupwiseTensor | None:
        return None


def block_size(config: Fields, key: str) -> tuple[int, int] | None:
    """Rows and columns of a block, where the configuration gives them."""
    match config.items(key):
        case []:
            return None
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
        case given:
            raise ModelFileError(f"{config.where}: {key} is {given!r}; two sizes are needed")
