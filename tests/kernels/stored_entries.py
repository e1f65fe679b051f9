"""Entries of a cache by their slots, for tests: read in whole blocks, as the operations do, and picked out of them."""

from __future__ import annotations

import torch

from nonet.kernels.ops import LayerCache, Ops

__all__ = ["entries_of"]


def entries_of(
    ops: Ops, cache: LayerCache, slots: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values float32 [n, K, D] of the entries in `slots` (int64 [n])."""
    blocks, which = (slots // cache.block_size).unique(return_inverse=True)
    places = which * cache.block_size + slots % cache.block_size
    keys, values = (
        read([cache], blocks)[0].transpose(0, 1)[places].float()
        for read in (ops.read_keys, ops.read_values)
    )
    return keys, values
