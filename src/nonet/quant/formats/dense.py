"""Every weight in the model's dtype; block formats are dequantised at load.

Idea: no compression. Reference: none. Cost: 2 or 4 bytes a weight. Good for: exactness. Conflicts: none.
"""

from __future__ import annotations

import torch

from nonet.quant.formats.base import Role, StoredMatrix

__all__ = ["Dense"]


class Dense:
    """The identity."""

    def convert(self, stored: StoredMatrix, role: Role) -> torch.Tensor:
        return stored.dense()
