"""What kernels must know of the way in which keys and values are held; `kv/format` has the ways.

D is the head dim. Without a format, entries are numbers in the kernels' own dtype.
"""

from __future__ import annotations

from typing import Protocol

import torch

__all__ = ["KVFormat"]


class KVFormat(Protocol):
    """Turns one key or value of one head, an *entry* of D numbers, into codes and a scale, and back.

    An entry's codes depend on its own numbers only, so that chunks, prefix hits and recomputation find the same cache.
    The two functions are the specification: plain torch runs them, and other kernels store the same codes and multiply
    what `dequantize` gives.
    """

    name: str
    kernels: tuple[str, ...]  # implementations that hold it; plain torch holds any

    def entry_bytes(self, head_dim: int, dtype_bytes: int) -> int:
        """Bytes of one entry, its scale included, where a number of the model's dtype takes `dtype_bytes`."""
        ...

    def quantize(self, entries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers [..., D] to codes [..., W] and scales [...], in the types in which they are held.

        An entry with a number that is not finite gets a scale that is not finite either.
        """
        ...

    def dequantize(self, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """float32 [..., D]."""
        ...
