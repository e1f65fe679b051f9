"""Every weight in the model's dtype; block formats are dequantised at load.

Idea: no compression. Reference: none. Cost: 2 or 4 bytes a weight. Good for: exactness. Conflicts: none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nonet.core.model_spec import ModelSpec
from nonet.quant.formats.base import Form, Role, StoredMatrix

if TYPE_CHECKING:
    import torch

__all__ = ["Dense"]


class Dense:
    """The identity."""

    def form_of(self, spec: ModelSpec) -> Form:
        return "dense"

    def num_bytes(self, spec: ModelSpec, float_bytes: int, path: str) -> int:
        return spec.num_parameters * float_bytes

    def convert(self, stored: StoredMatrix, role: Role) -> torch.Tensor:
        return stored.dense()
