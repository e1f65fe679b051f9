"""The native cache layout (csrc/cache.h) as torch sees it: to allocate it, and to read and move entries between steps.

Letters: N blocks, P block size, K KV heads, D head dim.
"""

from __future__ import annotations

import torch

from nonet.config.compat import refuse_kv_format
from nonet.core.errors import ConfigError
from nonet.kernels.entries import EntryView, StoredEntries
from nonet.kernels.kv_format import KVFormat
from nonet.kernels.native.memory import HugePages
from nonet.kernels.ops import LayerCache

__all__ = ["allocate_cache", "storage_number", "stored_entries"]

_STORAGES = {"int8": 1, "fp8": 2}  # Storage of csrc/cache.h; 0 are numbers in the kernels' dtype


def storage_number(kv_format: KVFormat | None) -> int:
    """How csrc/cache.h calls the format."""
    return 0 if kv_format is None else _STORAGES[kv_format.name]


def allocate_cache(
    pages: HugePages,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int],
    kv_format: KVFormat | None,
) -> LayerCache:
    """Zeroed memory of shape [N, K, P, D]; ConfigError where the layout cannot hold it."""
    _, _, block_size, dim = shape
    if block_size % 16 or dim % 16 or dim > 256:
        raise ConfigError(
            f"the native kernels need a block size that is a multiple of 16 (given: {block_size}) and a head "
            f"dimension that is a multiple of 16 up to 256 (given: {dim}); use the reference kernels"
        )
    if kv_format is not None:
        refuse_kv_format(kv_format.name, kv_format.kernels, "native")
    codes = dtype if kv_format is None else torch.uint8
    scales = (0,) if kv_format is None else shape[:3]
    return LayerCache(
        keys=pages.allocate(shape, codes),
        values=pages.allocate(shape, codes),
        block_size=block_size,
        format=kv_format,
        key_scales=pages.allocate(scales, torch.bfloat16),
        value_scales=pages.allocate(scales, torch.bfloat16),
    )


def stored_entries(cache: LayerCache, dtype: torch.dtype) -> tuple[StoredEntries, StoredEntries]:
    """The keys and the values, in kernels of `dtype`."""
    kv_format = cache.format
    if kv_format is None:
        return _numbers(cache)

    def dequantize(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        return kv_format.dequantize(_plain(kv_format.name, codes), scales)

    keys, values = _codes(cache, dtype)
    return (
        StoredEntries(keys, EntryView(cache.key_scales.transpose(1, 2)), dequantize),
        StoredEntries(values, EntryView(cache.value_scales.transpose(1, 2)), dequantize),
    )


def _plain(name: str, codes: torch.Tensor) -> torch.Tensor:
    """Codes as the format has them. Here each is a sign and seven bits, as those of fp8 are anyway."""
    if name != "int8":
        return codes
    magnitudes = (codes & 127).char()
    return torch.where(codes > 127, -magnitudes, magnitudes)


def _numbers(cache: LayerCache) -> tuple[StoredEntries, StoredEntries]:
    blocks, heads, size, dim = cache.keys.shape
    if cache.keys.dtype == torch.float32:
        keys = cache.keys.view(blocks, heads, dim, size).permute(0, 3, 1, 2)
        values = cache.values.permute(0, 2, 1, 3)
        return StoredEntries(EntryView(keys)), StoredEntries(EntryView(values))
    pairs = cache.keys.view(torch.int32).view(blocks, heads, dim // 2, size).permute(0, 3, 1, 2)
    values = cache.values.view(blocks, heads, size // 2, dim, 2).permute(0, 2, 4, 1, 3)
    return (
        StoredEntries(EntryView(pairs), dtype=cache.keys.dtype),
        StoredEntries(EntryView(values, 2)),
    )


def _codes(cache: LayerCache, dtype: torch.dtype) -> tuple[EntryView, EntryView]:
    blocks, heads, size, dim = cache.keys.shape
    if dtype == torch.float32:
        keys = cache.keys.view(blocks, heads, dim // 4, size, 4).permute(0, 3, 1, 2, 4)
        values = cache.values.view(blocks, heads, size // 4, dim, 4).permute(0, 2, 4, 1, 3)
        return EntryView(keys), EntryView(values, 2)
    # A line of 64 bytes holds 4 codes of 16 columns as [4 columns][2 pairs][4 columns][2 codes].
    keys = cache.keys.view(blocks, heads, dim // 4, size // 16, 4, 2, 4, 2)
    values = cache.values.view(blocks, heads, size // 4, dim // 16, 4, 2, 4, 2)
    return (
        EntryView(keys.permute(0, 3, 4, 6, 1, 2, 5, 7), 3),
        EntryView(values.permute(0, 2, 5, 7, 1, 3, 4, 6), 3),
    )
