"""A paged cache full of random entries, with the inputs of attention over it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nonet.bench.device.kernels.problem import Bench
from nonet.kernels.ops import AttentionInputs, LayerCache, QKVLayout

__all__ = ["Paged", "kv_bytes", "layout", "paged"]


@dataclass(frozen=True, slots=True)
class Paged:
    """The same problem several times over, in different blocks of one cache."""

    cache: LayerCache
    inputs: list[AttentionInputs]


def paged(
    bench: Bench, *, batch: int, queries: int, length: int, copies: int, stores: bool = False
) -> Paged:
    """Every sequence computes its last `queries` of `length` tokens; blocks are shuffled."""
    spec, size, device = bench.spec, bench.block_size, bench.device
    each = -(-length // size)
    blocks = batch * each * copies
    cache = bench.ops.allocate_cache(
        blocks + 1, size, spec.num_kv_heads, spec.head_dim, bench.kv_format
    )
    _fill(cache)
    order = torch.randperm(blocks, device=device).int().view(copies, batch, each) + 1
    positions = torch.arange(length - queries, length, device=device).int().repeat(batch)
    return Paged(
        cache,
        [_inputs(order[copy], positions, queries, length, size, stores) for copy in range(copies)],
    )


def layout(bench: Bench) -> QKVLayout:
    spec = bench.spec
    return QKVLayout(spec.num_heads, spec.num_kv_heads, spec.head_dim)


def kv_bytes(bench: Bench) -> int:
    """Keys and values of one token in one layer."""
    each = bench.spec.head_dim * bench.element_bytes
    if bench.kv_format is not None:
        each = bench.kv_format.entry_bytes(bench.spec.head_dim, bench.element_bytes)
    return 2 * bench.spec.num_kv_heads * each


def _inputs(
    table: torch.Tensor,
    positions: torch.Tensor,
    queries: int,
    length: int,
    size: int,
    stores: bool,
) -> AttentionInputs:
    batch, device = len(table), table.device
    slots = torch.full((batch * queries,), -1, dtype=torch.int32, device=device)
    if stores:
        owner = torch.arange(batch, device=device).repeat_interleave(queries)
        place = positions.long()
        slots = table[owner, place // size] * size + (place % size).int()
    return AttentionInputs(
        positions=positions,
        query_start=(torch.arange(batch + 1, device=device) * queries).int(),
        kv_len=torch.full((batch,), length, dtype=torch.int32, device=device),
        block_table=table.contiguous(),
        slots=slots.int(),
        max_query_len=queries,
        max_kv_len=length,
    )


def _fill(cache: LayerCache) -> None:
    """Random entries, block by block so that no second copy of a large cache is ever held."""
    for stored in (cache.keys, cache.values):
        for first in range(0, len(stored), 1024):
            part = stored[first : first + 1024]
            if part.dtype.is_floating_point:
                part.copy_(torch.randn(part.shape, device=part.device))
            else:  # below 120 every code of every format is a finite number
                part.copy_(torch.randint(0, 120, part.shape, device=part.device))
    for scales in (cache.key_scales, cache.value_scales):
        scales.fill_(0.01)
