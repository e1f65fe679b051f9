"""The memory behind the block tables: the only file that knows which layer's entries lie where.

All cache groups share one pool of equal pages. A page holds one block for each of the `layers_per_group` layers of
whichever group owns it, so layer j of every group uses the same tensors; two groups never own the same block id.
"""

from __future__ import annotations

from nonet.config.resolved import CacheGroup
from nonet.core.model_spec import ModelSpec
from nonet.kernels.kv_format import KVFormat
from nonet.kernels.ops import LayerCache, Ops

__all__ = ["KVStorage"]


class KVStorage:
    """KV memory for `num_blocks` usable blocks and the null block 0; entries in the kernels' dtype or in a format."""

    def __init__(
        self,
        spec: ModelSpec,
        groups: tuple[CacheGroup, ...],
        ops: Ops,
        num_blocks: int,
        block_size: int,
        kv_format: KVFormat | None = None,
    ) -> None:
        depth = max(len(group.layers) for group in groups)
        pages = [
            ops.allocate_cache(
                num_blocks + 1, block_size, spec.num_kv_heads, spec.head_dim, kv_format
            )
            for _ in range(depth)
        ]
        place = {layer: index for group in groups for index, layer in enumerate(group.layers)}
        self.caches: tuple[LayerCache, ...] = tuple(
            pages[place[layer]] for layer in range(spec.num_layers)
        )
        self.group_of_layer: tuple[int, ...] = tuple(
            next(number for number, group in enumerate(groups) if layer in group.layers)
            for layer in range(spec.num_layers)
        )
