"""Where tensors come from: one small interface for safetensors directories, GGUF files and made-up weights.

Names are Hugging Face's (`model.layers.0.self_attn.q_proj.weight`); a source with other names or other row orders
translates, so that the loader sees one vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from nonet.quant.checkpoints.base import Codes

__all__ = ["WeightSource"]


class WeightSource(Protocol):
    """Read-only tensors by name. Nothing is kept after `close`; tensors handed out stay valid."""

    format: str  # "safetensors", "safetensors, gptq", "gguf", "dummy"

    def names(self) -> Sequence[str]:
        """All tensor names, Hugging Face spelling."""
        ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def load(self, name: str) -> torch.Tensor:
        """The tensor in its stored float type; block formats dequantised to float32. May read the disk."""
        ...

    def load_codes(self, name: str) -> Codes | None:
        """The tensor as stored codes or 8-bit floats, or None when it is stored as neither."""
        ...

    def close(self) -> None: ...
