"""Keys and values as 8-bit floats (e4m3), one scale for each token and head.

Idea: scale = max |x| / 448 over the D numbers of an entry, code = x / scale rounded to 4 exponent and 3 mantissa bits;
keys are rounded after rotation. A key's scale goes to its score, a value's scale to its softmax weight.
Reference: FP8 Formats for Deep Learning (arXiv 2209.05433); caches in it as in vLLM, there with one scale for a tensor.
Cost: lossy, about 3 % of each number at most; coarser than int8 for most entries, finer where one number is far above
the others.
Good for: nearly twice the tokens in the same memory; keys with outliers.
Conflicts: none. Prefix hashes carry the format, as entries of another one are other numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nonet.kv.format.base import ScaledBytes

if TYPE_CHECKING:
    import torch

__all__ = ["Float8"]


class Float8(ScaledBytes):
    """Codes are the bytes of float8_e4m3fn; the one that is no number is never stored.

    >>> import torch
    >>> codes, scale = Float8().quantize(torch.tensor([[448.0, -17.0, 1.0]]))
    >>> Float8().dequantize(codes, scale).tolist()
    [[448.0, -16.0, 1.0]]
    """

    name = "fp8"
    kernels = ("reference", "padded", "flash", "native", "triton")
    largest = 448.0

    def encode(self, scaled: torch.Tensor) -> torch.Tensor:
        import torch

        return scaled.to(torch.float8_e4m3fn).view(torch.uint8)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        import torch

        return codes.view(torch.float8_e4m3fn).float()
