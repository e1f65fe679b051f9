"""Block formats kept as the file has them: no error beyond the file's own, a quarter to a half of the bytes.

Idea: a GGUF block is already scale * code + minimum, so the kernels multiply it as it is. Reference: the GGUF
container. Cost: 4 or 8 bits a weight and a scale and minimum per group. Good for: decode, which reads every weight.
Conflicts: none; float tensors of the file stay dense.
"""

from __future__ import annotations

import torch

from nonet.kernels.groupwise import GroupwiseTensor
from nonet.quant.formats.base import Role, StoredMatrix

__all__ = ["Native"]


class Native:
    """Codes where the file has codes."""

    def convert(self, stored: StoredMatrix, role: Role) -> torch.Tensor | GroupwiseTensor:
        codes = stored.groupwise()
        return stored.dense() if codes is None else codes
