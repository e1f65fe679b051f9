"""Keys and values as 8-bit integers, one scale for each token and head.

Idea: scale = max |x| / 127 over the D numbers of an entry, code = round(x / scale); keys are rounded after rotation.
Attention multiplies codes: a key's scale goes to its score, a value's scale to its softmax weight.
Reference: per-token quantisation as in SmoothQuant (arXiv 2211.10438) and QServe (arXiv 2405.04532), for the cache.
Cost: lossy, at most half a scale each number; one number far above the others of its entry costs them precision.
Good for: nearly twice the tokens in the same memory, and faster decoding of long contexts.
Conflicts: none. Prefix hashes carry the format, as entries of another one are other numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nonet.kv.format.base import ScaledBytes

if TYPE_CHECKING:
    import torch

__all__ = ["Int8"]


class Int8(ScaledBytes):
    """Codes -127 to 127.

    >>> import torch
    >>> codes, scale = Int8().quantize(torch.tensor([[-254.0, 1.0, 3.0, 100.0]]))
    >>> codes.tolist(), scale.tolist()
    ([[-127, 0, 2, 50]], [2.0])
    """

    name = "int8"
    kernels = ("reference", "padded", "flash", "native", "triton")
    largest = 127.0

    def encode(self, scaled: torch.Tensor) -> torch.Tensor:
        return scaled.round().char()

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes.float()
