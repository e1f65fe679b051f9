"""How a model gets its weights: it asks for them by name while it is built, already packed for the kernels."""

from __future__ import annotations

from typing import Protocol

import torch

from nonet.kernels.ops import PackedLinear

__all__ = ["Parameters"]


class Parameters(Protocol):
    """Weights by Hugging Face name, without the ending `.weight`. Every call may read the disk."""

    def linear(self, *names: str, bias: bool = False) -> PackedLinear:
        """One packed linear; several names are stacked along the outputs in the order given."""
        ...

    def norm(self, name: str) -> torch.Tensor:
        """float32 [M] scale of an RMSNorm, to be multiplied as it is."""
        ...

    def embedding(self, name: str) -> PackedLinear:
        """A table [V, M] that `Ops.embed` and, when tied, `Ops.logits` read."""
        ...
