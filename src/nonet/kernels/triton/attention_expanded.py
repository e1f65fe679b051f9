"""Chunks over a cache in codes: the entries they see are made numbers once, in a small cache of the step's own.

Every tile of a chunk's queries walks over the same entries. Made numbers in each of them, codes took longer than bf16
keys and values of twice their bytes (228 against 403 TFLOP/s on an H200); made numbers once, they cost a short launch.

Which sequences are taken is found on the device, so a launch is the same whatever the lengths are. The others, those
with few queries and those for which there is no room left, are read as codes by `attend_chunks`.

S sequences, K KV heads, D head dim, P block size of the cache in codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from nonet.config.memory import NUMBERS_BYTES
from nonet.kernels.ops import AttentionInputs, LayerCache, QKVLayout
from nonet.kernels.triton.attention_tile import (
    block_ids,
    entry_offsets,
    entry_scales,
    live_entries,
    seqs_searched,
)

__all__ = ["Expanded", "ExpandedRoom", "expand_entries", "is_expanded"]

FROM_TOKENS = 1024  # of a step; a shorter one has too little to gain
# Tiles of queries from which a sequence is worth it: codes are read, and numbers are written and read again.
LEAST_TILES = 4
BLOCK = 64
PROGRAMS_EACH = 4  # for each multiprocessor


@dataclass(frozen=True, slots=True)
class Expanded:
    """Numbers [blocks, K, 64, D] in place of codes, and where they are: block_table [S or more, blocks], and taken
    [S or more], 1 for the sequences that are in it."""

    cache: LayerCache
    block_table: torch.Tensor
    taken: torch.Tensor


class ExpandedRoom:
    """Owns one cache of numbers for each layout, which layers and steps share in turn, and tables for it.

    Nothing is ever given back or made larger: a graph that was captured on it finds it again.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._caches: dict[tuple[QKVLayout, torch.dtype], LayerCache] = {}
        self._expanded: dict[tuple[QKVLayout, torch.dtype, int], Expanded] = {}
        self._none_taken: dict[int, torch.Tensor] = {}

    def of(self, layout: QKVLayout, dtype: torch.dtype, num_seqs: int) -> Expanded:
        """What a step of so many sequences uses."""
        size = seqs_searched(num_seqs)
        key = (layout, dtype, size)
        if key not in self._expanded:
            cache = self._cache(layout, dtype)
            table = torch.zeros(size, len(cache.keys), dtype=torch.int32, device=self._device)
            taken = torch.zeros(size, dtype=torch.int32, device=self._device)
            self._expanded[key] = Expanded(cache, table, taken)
        return self._expanded[key]

    def none_taken(self, num_seqs: int) -> torch.Tensor:
        """Zeros [S or more]."""
        size = seqs_searched(num_seqs)
        if size not in self._none_taken:
            self._none_taken[size] = torch.zeros(size, dtype=torch.int32, device=self._device)
        return self._none_taken[size]

    def _cache(self, layout: QKVLayout, dtype: torch.dtype) -> LayerCache:
        key = (layout, dtype)
        if key not in self._caches:
            shape = (_num_blocks(layout, dtype), layout.num_kv_heads, BLOCK, layout.head_dim)
            keys, values = (torch.empty(shape, dtype=dtype, device=self._device) for _ in range(2))
            none = torch.empty(0, dtype=dtype, device=self._device)
            self._caches[key] = LayerCache(keys, values, BLOCK, None, none, none)
        return self._caches[key]


def is_expanded(q: torch.Tensor, window: int | None) -> bool:
    """Whether a step is long enough, and sees whole contexts, in 16 bits: of a window little is read."""
    return window is None and q.element_size() == 2 and q.shape[0] >= FROM_TOKENS


def _num_blocks(layout: QKVLayout, dtype: torch.dtype) -> int:
    """Blocks of 64 entries that the planned memory holds, a power of two.

    >>> _num_blocks(QKVLayout(32, 8, 128), torch.bfloat16)
    512
    """
    block_bytes = 2 * BLOCK * layout.num_kv_heads * layout.head_dim * dtype.itemsize
    fitting = max(1, NUMBERS_BYTES["triton"] // block_bytes)
    return 1 << (fitting.bit_length() - 1)


def expand_entries(
    expanded: Expanded,
    layout: QKVLayout,
    cache: LayerCache,
    inputs: AttentionInputs,
    least_rows: int,
    multiprocessors: int,
) -> None:
    """Fills `expanded` with the sequences of at least `least_rows` rows (queries times group), in order, as far as they
    fit; one that is larger than all of it is passed over."""
    num_seqs = len(inputs.kv_len)
    programs = PROGRAMS_EACH * multiprocessors
    _expand[(programs,)](
        cache.keys, cache.values, cache.key_scales, cache.value_scales,
        expanded.cache.keys, expanded.cache.values, expanded.block_table, expanded.block_table.stride(0),
        expanded.taken, inputs.block_table, inputs.block_table.stride(0), inputs.query_start, inputs.kv_len,
        num_seqs, least_rows, len(expanded.cache.keys),
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


@triton.jit(do_not_specialize=["num_seqs", "least_rows", "room"])
def _expand(
    keys, values, key_scales, value_scales, out_keys, out_values, out_table, out_stride, taken,
    block_table, table_stride, query_start, kv_len, num_seqs, least_rows, room,
    GROUP: tl.constexpr, K: tl.constexpr, D: tl.constexpr, P: tl.constexpr, BLOCK_D: tl.constexpr,
    TILE: tl.constexpr, SEQS: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    seqs = tl.arange(0, SEQS)
    used = seqs < num_seqs
    start = tl.load(query_start + seqs, mask=used, other=0)
    count = tl.load(query_start + seqs + 1, mask=used, other=0) - start
    length = tl.load(kv_len + seqs, mask=used, other=0)
    wanted = (length + TILE - 1) // TILE
    blocks = tl.where((count * GROUP >= least_rows) & (wanted <= room), wanted, 0)
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
