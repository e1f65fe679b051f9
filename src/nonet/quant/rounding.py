"""Round-to-nearest of float weights: to integers with a scale and a minimum per group, and to 8-bit floats.

Reference: the affine quantisation of LLM.int8() (arXiv 2208.07339) and of the FP8 formats (arXiv 2209.05433).
"""

from __future__ import annotations

import torch

from nonet.kernels.float8 import Float8Tensor
from nonet.kernels.groupwise import GroupwiseTensor
from nonet.kernels.inputs import FLOAT8_MAX, Inputs

__all__ = ["round_to_float8", "round_to_integers"]


def round_to_integers(
    weight: torch.Tensor, *, bits: int, group: int, symmetric: bool, inputs: Inputs
) -> GroupwiseTensor:
    """weight [N, K] to codes `clamp(round((w - m) / s), 0, 2**bits - 1)`, standing for `s * code + m`.

    symmetric: s = max |w| / (2**(bits - 1) - 1) and m = -z * s with the zero point z = 2**(bits - 1). Otherwise
    s = (max - min) / (2**bits - 1) and m = min, with 0 counted among the weights. `group` divides K. Scales and
    minimums are rounded to float16 before they are used, because kernels store them so; a group of zeros has scale 1.
    """
    rows, columns = weight.shape
    grouped = weight.float().view(rows, columns // group, group)
    most, middle = 2**bits - 1, 2 ** (bits - 1)
    if symmetric:
        scale = _stored(grouped.abs().amax(-1) / (middle - 1))
        codes = (grouped / scale.unsqueeze(-1)).round_() + middle
        minimum = scale * -middle
    else:
        low, high = grouped.amin(-1).clamp(max=0.0), grouped.amax(-1).clamp(min=0.0)
        scale = _stored((high - low) / most)
        minimum = low.half().float()
        codes = ((grouped - minimum.unsqueeze(-1)) / scale.unsqueeze(-1)).round_()
    codes = codes.clamp_(0, most).to(torch.uint8).view(rows, columns)
    return GroupwiseTensor(codes, scale, minimum, group, bits, inputs)


def round_to_float8(
    weight: torch.Tensor, *, block: tuple[int, int], inputs: Inputs
) -> Float8Tensor:
    """weight [N, K] to float8_e4m3fn with one scale, max |w| / 448, for each block of rows and columns.

    Blocks at the lower and right edge may be cut off. A block of zeros has scale 1.
    """
    rows, columns = weight.shape
    height, width = min(block[0], rows), min(block[1], columns)
    wide = weight.float()
    padded = torch.nn.functional.pad(wide, (0, -columns % width, 0, -rows % height))
    blocks = padded.view(padded.shape[0] // height, height, padded.shape[1] // width, width)
    scale = blocks.abs().amax((1, 3)) / FLOAT8_MAX
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    by_row = scale.repeat_interleave(height, dim=0)[:rows].contiguous()
    spread = by_row.repeat_interleave(width, dim=1)[:, :columns]
    # A cast beyond the largest number gives NaN, and the division may step over it.
    values = (wide / spread).clamp_(-FLOAT8_MAX, FLOAT8_MAX).to(torch.float8_e4m3fn)
    return Float8Tensor(values, by_row, width, inputs)


def _stored(scale: torch.Tensor) -> torch.Tensor:
    """As float16 holds it, and 1 where that is nothing."""
    rounded = scale.half().float()
    return torch.where(rounded == 0, torch.ones_like(rounded), rounded)
