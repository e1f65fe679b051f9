"""8-bit floats with a scale for the tensor, for each output or for each block of a grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nonet.core.errors import ModelFileError
from nonet.core.fields import Fields
from nonet.kernels.float8 import Float8Tensor
from nonet.quant.checkpoints.affine import expect
from nonet.quant.checkpoints.declared import FLOAT8_BLOCK

__all__ = ["ScaledWeight", "block_size"]


@dataclass(frozen=True, slots=True)
class ScaledWeight:
    """values float8 [N, K]; scale [R, C], one number for each `block` of rows and columns.

    The block of a per-tensor scale is the matrix, that of a per-output scale a row. Blocks at the lower and right
    edge may be cut off. `rounds_inputs`: the checkpoint means them to be met by inputs in 8-bit floats.
    """

    values: torch.Tensor
    scale: torch.Tensor
    block: tuple[int, int]
    rounds_inputs: bool = True

    @classmethod
    def of(
        cls,
        name: str,
        values: torch.Tensor,
        scale: torch.Tensor,
        block: tuple[int, int] | None,
        *,
        rounds_inputs: bool = True,
    ) -> ScaledWeight:
        """The weight whose scale, stored as `name`, has one of the three shapes; ModelFileError for any other."""
        rows, columns = values.shape
        if scale.numel() == 1:
            return cls(values, scale.view(1, 1), (rows, columns), rounds_inputs)
        if block is None:
            expect(name, tuple(scale.shape), (rows, 1) if scale.dim() == 2 else (rows,))
            return cls(values, scale.view(rows, 1), (1, columns), rounds_inputs)
        expect(name, tuple(scale.shape), (-(-rows // block[0]), -(-columns // block[1])))
        return cls(values, scale, block, rounds_inputs)

    def dense(self) -> torch.Tensor:
        """The product in float32, rounded once to the type of the scale (bfloat16 where that is a power of two)."""
        rows, columns = self.values.shape
        row_of = torch.arange(rows) // self.block[0]
        column_of = torch.arange(columns) // self.block[1]
        spread = self.scale.float()[row_of][:, column_of]
        dtype = self.scale.dtype if self.scale.element_size() >= 2 else torch.bfloat16
        return (self.values.float() * spread).to(dtype)

    def as_codes(self) -> Float8Tensor | None:
        """Inputs get a scale for each token, or for each 128 of them in blocks, where a checkpoint has a static one.

        None for weights that inputs meet unrounded, and for other blocks: no kernel keeps those.
        """
        rows, columns = self.values.shape
        is_blocks = self.block == (FLOAT8_BLOCK, FLOAT8_BLOCK)
        if not self.rounds_inputs or not (is_blocks or self.block[1] == columns):
            return None
        row_of = torch.arange(rows) // self.block[0]
        return Float8Tensor(
            values=self.values,
            scale=self.scale.float()[row_of].contiguous(),
            group=self.block[1],
            inputs="group" if is_blocks else "token",
        )


def block_size(config: Fields, key: str) -> tuple[int, int] | None:
    """Rows and columns of a block, where the configuration gives them."""
    match config.items(key):
        case []:
            return None
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
        case given:
            raise ModelFileError(f"{config.where}: {key} is {given!r}; two sizes are needed")
