"""KV memory of one layer on the GPU: codes or numbers [N, K, P, D], scales [N, K, P].

Letters: N blocks, K KV heads, P block size, D head dim.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from nonet.config.compat import refuse_kv_format
from nonet.kernels.entries import EntryView, StoredEntries
from nonet.kernels.kv_format import KVFormat
from nonet.kernels.ops import LayerCache

__all__ = ["allocate_cache", "encode", "entry_scale", "largest_code", "stored_entries"]

_CODES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
_LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}

# Adding it rounds a float32 of magnitude up to 2 ** 22 to a whole number, ties to even; the other one to 2 ** -9, the
# step of the smallest float8 numbers.
_TO_WHOLE = tl.constexpr(12582912.0)
_TO_SMALLEST = tl.constexpr(24576.0)


def allocate_cache(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    kv_format: KVFormat | None,
) -> LayerCache:
    """Zeroed memory of shape [N, K, P, D]; ConfigError where the kernels do not know the format."""
    if kv_format is not None:
        refuse_kv_format(kv_format.name, kv_format.kernels, "triton")
    codes = dtype if kv_format is None else _CODES[kv_format.name]
    scales = (0,) if kv_format is None else shape[:3]
    return LayerCache(
        keys=torch.zeros(shape, dtype=codes, device=device),
        values=torch.zeros(shape, dtype=codes, device=device),
        block_size=shape[2],
        format=kv_format,
        key_scales=torch.zeros(scales, dtype=torch.bfloat16, device=device),
        value_scales=torch.zeros(scales, dtype=torch.bfloat16, device=device),
    )


def largest_code(cache: LayerCache) -> float:
    """Magnitude of the largest code; 0 for numbers."""
    return 0.0 if cache.format is None else _LARGEST[cache.keys.dtype]


def stored_entries(cache: LayerCache) -> tuple[StoredEntries, StoredEntries]:
    """The keys and the values."""
    if cache.format is None:
        return (
            StoredEntries(EntryView(cache.keys.transpose(1, 2))),
            StoredEntries(EntryView(cache.values.transpose(1, 2))),
        )
    read = cache.format.dequantize
    keys, values = (
        StoredEntries(_bytes(codes), EntryView(scales.transpose(1, 2)), read)
        for codes, scales in ((cache.keys, cache.key_scales), (cache.values, cache.value_scales))
    )
    return keys, values


def _bytes(codes: torch.Tensor) -> EntryView:
    """torch cannot index float8, and formats take its codes as bytes."""
    plain = codes.view(torch.uint8) if codes.dtype == torch.float8_e4m3fn else codes
    return EntryView(plain.transpose(1, 2))


# Rounding is done by hand, ties to even, before each cast: Triton's interpreter cuts bits off.


@triton.jit
def entry_scale(first, second, LARGEST: tl.constexpr):
    """float32 [HEADS, 1] that bfloat16 holds, of entries in two halves [HEADS, HALF]; NaN where one is not finite."""
    largest = tl.maximum(tl.max(tl.abs(first), 1), tl.max(tl.abs(second), 1))
    poison = tl.sum(first * 0.0, 1) + tl.sum(second * 0.0, 1)
    scale = _keep_bits(tl.div_rn(largest, LARGEST), 16)
    return (scale + poison)[:, None]


@triton.jit
def encode(number, scale, like, LARGEST: tl.constexpr):
    """Numbers [HEADS, HALF] over their entries' scales [HEADS, 1], as the type that `like` points to.

    The division is correctly rounded, so that codes are those of the format's own functions.
    """
    # Infinity makes zero codes where the scale is zero or no number.
    divisor = tl.where(scale > 0, scale, float("inf"))
    scaled = tl.clamp(tl.div_rn(number, divisor), -LARGEST, LARGEST)
    if like.dtype.element_ty == tl.int8:
        scaled = (scaled + _TO_WHOLE) - _TO_WHOLE
    else:
        small = (scaled + _TO_SMALLEST) - _TO_SMALLEST
        scaled = tl.where(tl.abs(scaled) < 0.015625, small, _keep_bits(scaled, 20))
    return scaled.to(like.dtype.element_ty)


@triton.jit
def _keep_bits(x, DROPPED: tl.constexpr):
    """x rounded to a float32 whose last DROPPED bits are zero."""
    bits = x.to(tl.int32, bitcast=True)
    bits += (1 << (DROPPED - 1)) - 1 + (bits >> DROPPED & 1)
    return (bits >> DROPPED << DROPPED).to(tl.float32, bitcast=True)
