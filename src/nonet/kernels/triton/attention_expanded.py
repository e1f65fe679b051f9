"""Chunks over a cache in codes: the entries they see are made numbers once, in a small cache of the step's own.

Every tile of a chunk's queries walks over the same entries. Made numbers in each of them, codes took longer than bf16
keys and values of twice their bytes (228 against 403 TFLOP/s on an H200); made numbers once, they cost a short launch.

Which sequences fit is found on the device, so a launch is the same whatever the lengths are. Those that do not are
left to `attend_chunks` over codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from nonet.kernels.ops import AttentionInputs, LayerCache, QKVLayout
from nonet.kernels.triton.attention_tile import (
    block_ids,
    entry_offsets,
    entry_scales,
    live_entries,
    seqs_searched,
)

__all__ = ["Expanded", "expand_entries", "expanded_room", "is_expanded"]

FROM_TOKENS = 1024  # of a step; smaller ones are too short for another launch
ENTRIES_EACH = 16  # room for so many entries for each token of the step, and
MOST_BYTES = 256 << 20  # no more than this
BLOCK = 64
PROGRAMS_EACH = 4  # for each multiprocessor


@dataclass(frozen=True, slots=True)
class Expanded:
    """Numbers [blocks, K, 64, D] in place of codes, and where they are: block_table [S, blocks], and taken [S], 1 for
    the sequences that are in it."""

    cache: LayerCache
    block_table: torch.Tensor
    taken: torch.Tensor

    @classmethod
    def allocate(
        cls, room: int, num_seqs: int, layout: QKVLayout, dtype: torch.dtype, device: torch.device
    ) -> Expanded:
        shape = (room, layout.num_kv_heads, BLOCK, layout.head_dim)
        keys, values = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
        none = torch.empty(0, dtype=dtype, device=device)
        return cls(
            LayerCache(keys, values, BLOCK, None, none, none),
            torch.zeros(num_seqs, room, dtype=torch.int32, device=device),
            torch.zeros(num_seqs, dtype=torch.int32, device=device),
        )


def is_expanded(q: torch.Tensor) -> bool:
    """Whether a step with chunks and so many tokens is worth it."""
    return q.element_size() == 2 and q.shape[0] >= FROM_TOKENS


def expanded_room(q: torch.Tensor, layout: QKVLayout) -> int:
    """Blocks of 64 entries; a power of two, so that there are few sizes."""
    each = 2 * layout.num_kv_heads * layout.head_dim * q.element_size()
    entries = min(ENTRIES_EACH * int(triton.next_power_of_2(q.shape[0])), MOST_BYTES // each)
    return max(1, entries // BLOCK)


def expand_entries(
    expanded: Expanded,
    layout: QKVLayout,
    cache: LayerCache,
    inputs: AttentionInputs,
    few_rows: int,
    multiprocessors: int,
) -> None:
    """Fills `expanded` with the sequences of more than `few_rows` rows (queries times group), as far as they fit."""
    num_seqs = len(inputs.kv_len)
    programs = PROGRAMS_EACH * multiprocessors
    _expand[(programs,)](
        cache.keys, cache.values, cache.key_scales, cache.value_scales,
        expanded.cache.keys, expanded.cache.values, expanded.block_table, expanded.block_table.stride(0),
        expanded.taken, inputs.block_table, inputs.block_table.stride(0), inputs.query_start, inputs.kv_len,
        num_seqs, few_rows, expanded.cache.keys.shape[0],
        GROUP=layout.num_heads // layout.num_kv_heads,
        K=layout.num_kv_heads,
        D=layout.head_dim,
        P=cache.block_size,
        BLOCK_D=triton.next_power_of_2(layout.head_dim),
        TILE=BLOCK,
        SEQS=seqs_searched(num_seqs),
        PROGRAMS=programs,
        num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_seqs", "few_rows", "room"])
def _expand(
    keys, values, key_scales, value_scales, out_keys, out_values, out_table, out_stride, taken,
    block_table, table_stride, query_start, kv_len, num_seqs, few_rows, room,
    GROUP: tl.constexpr, K: tl.constexpr, D: tl.constexpr, P: tl.constexpr, BLOCK_D: tl.constexpr,
    TILE: tl.constexpr, SEQS: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    seqs = tl.arange(0, SEQS)
    used = seqs < num_seqs
    start = tl.load(query_start + seqs, mask=used, other=0)
    count = tl.load(query_start + seqs + 1, mask=used, other=0) - start
    length = tl.load(kv_len + seqs, mask=used, other=0)
    blocks = tl.where(count * GROUP > few_rows, (length + TILE - 1) // TILE, 0)
    ends = tl.cumsum(blocks, 0)
    fits = (blocks > 0) & (ends <= room)
    if program == 0:
        tl.store(taken + seqs, fits.to(tl.int32), mask=used)
    everything = tl.max(tl.where(fits, ends, 0), 0) * K
    lane = tl.arange(0, BLOCK_D)[None, :]
    unit = program
    while unit < everything:
        block, head = unit // K, unit % K
        seq = tl.sum((ends <= block).to(tl.int32), 0)
        place = block - tl.sum(tl.where(seqs == seq, ends - blocks, 0), 0)
        at = place * TILE
        stop = tl.load(kv_len + seq)
        ids = block_ids(block_table + seq.to(tl.int64) * table_stride, at, stop, P, TILE)
        live = live_entries(at, stop, 0, TILE)
        k_scale, v_scale = entry_scales(
            key_scales, value_scales, ids, at, head, live, K, P, TILE, True
        )
        wide = live[:, None] & (lane < D)
        source = entry_offsets(ids, at, head, K, P, D, TILE)[:, None] + lane
        k = tl.load(keys + source, mask=wide, other=0.0).to(tl.float32) * k_scale[:, None]
        v = tl.load(values + source, mask=wide, other=0.0).to(tl.float32) * v_scale[:, None]
        target = entry_offsets(block, 0, head, K, TILE, D, TILE)[:, None] + lane
        # All of a tile is written: attention may read what is not live, and must not meet a NaN.
        tl.store(out_keys + target, k.to(out_keys.dtype.element_ty), mask=lane < D)
        tl.store(out_values + target, v.to(out_values.dtype.element_ty), mask=lane < D)
        if head == 0:
            tl.store(out_table + seq.to(tl.int64) * out_stride + place, block)
        unit += PROGRAMS
