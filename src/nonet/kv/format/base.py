"""The seam: how is an entry of the KV cache held? `kernels/kv_format.py` has the interface; here is what formats share.

torch is imported when tensors come: sizes are asked for by processes that never load it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["SCALE_BYTES", "ScaledBytes"]

SCALE_BYTES = 2  # bfloat16: the range of float32; codes are made with the rounded scale, so its precision costs nothing


class ScaledBytes(ABC):
    """A byte for each number, and one bfloat16 scale for each entry: the largest magnitude gets the largest code.

    All arithmetic is float32 with correctly rounded divisions, so that any machine stores the same codes.
    """

    name: str
    kernels: tuple[str, ...]
    largest: float  # magnitude of the largest code

    def entry_bytes(self, head_dim: int, dtype_bytes: int) -> int:
        return head_dim + SCALE_BYTES

    def quantize(self, entries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        wide = entries.float()
        scales = (wide.abs().amax(-1) / self.largest).bfloat16()
        divisor = scales.float().unsqueeze(-1)
        usable = (
            divisor > 0
        ) & divisor.isfinite()  # zeros, and what is not a number, get zero codes
        scaled = (wide / divisor.where(usable, divisor.new_ones(()))).where(
            usable, divisor.new_zeros(())
        )
        return self.encode(scaled.clamp(-self.largest, self.largest)), scales

    def dequantize(self, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        return self.decode(codes) * scales.float().unsqueeze(-1)

    @abstractmethod
    def encode(self, scaled: torch.Tensor) -> torch.Tensor:
        """float32 numbers of magnitude `largest` at most, to the nearest codes, ties to even."""

    @abstractmethod
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """float32 numbers, exactly."""
