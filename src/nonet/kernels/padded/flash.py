"""Plain torch with one kernel: Triton's attention, which reads the paged cache in tiles and keeps no score in memory.

The rung between the naive one and all Triton kernels: it shows what attention alone brings.
"""

from __future__ import annotations

import torch

from nonet.kernels.entries import StoredEntries
from nonet.kernels.kv_format import KVFormat
from nonet.kernels.ops import AttentionInputs, LayerCache, QKVLayout
from nonet.kernels.padded.ops import PaddedOps
from nonet.kernels.triton.cache import stored_entries
from nonet.kernels.triton.ops import TritonOps

__all__ = ["FlashOps"]


class FlashOps(PaddedOps):
    """Implements `kernels.ops.Ops` on a GPU.

    >>> ops = FlashOps(torch.bfloat16, torch.device("cuda"))  # doctest: +SKIP
    >>> ops.linear(x, ops.pack(weight)).shape  # doctest: +SKIP
    torch.Size([8, 4096])
    """

    name = "flash"

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(dtype, device)
        self._triton = TritonOps(dtype, device)

    def attention(
        self,
        q: torch.Tensor,
        layout: QKVLayout,
        cache: LayerCache,
        inputs: AttentionInputs,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        return self._triton.attention(
            q, layout, cache, inputs, scale=scale, window=window, softcap=softcap
        )

    def allocate_cache(
        self,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        kv_format: KVFormat | None = None,
    ) -> LayerCache:
        return self._triton.allocate_cache(
            num_blocks, block_size, num_kv_heads, head_dim, kv_format
        )

    def stored(self, cache: LayerCache) -> tuple[StoredEntries, StoredEntries]:
        return stored_entries(cache)
