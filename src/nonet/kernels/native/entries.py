"""The native cache layout (csrc/cache.h) as torch sees it: to read and move single entries, never in a step.

Letters: N blocks, P block size, K KV heads, D head dim.
"""

from __future__ import annotations

import torch

from nonet.kernels.entries import EntryView
from nonet.kernels.ops import LayerCache

__all__ = ["entry_views", "read_entries"]


def entry_views(cache: LayerCache) -> tuple[EntryView, EntryView]:
    """Keys and values as [N, *offsets, K, *parts], where the parts of an entry flatten to its D numbers in order."""
    blocks, heads, size, dim = cache.keys.shape
    if cache.keys.dtype == torch.float32:
        keys = cache.keys.view(blocks, heads, dim, size).permute(0, 3, 1, 2)
        return EntryView(keys, 1), EntryView(cache.values.permute(0, 2, 1, 3), 1)
    keys = cache.keys.view(blocks, heads, dim // 2, size, 2).permute(0, 3, 1, 2, 4)
    values = cache.values.view(blocks, heads, size // 2, dim, 2).permute(0, 2, 4, 1, 3)
    return EntryView(keys, 1), EntryView(values, 2)


def read_entries(cache: LayerCache, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `Ops.gather_entries`."""
    keys, values = (view.read(slots).flatten(2).float() for view in entry_views(cache))
    return keys, values
