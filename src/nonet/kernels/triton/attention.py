"""Paged attention of any mix: very few decodes, sequences with few queries, and chunks go to a kernel each."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
import triton

from nonet.kernels.ops import AttentionInputs, LayerCache, QKVLayout
from nonet.kernels.triton.attention_decode import (
    DecodeTiling,
    attend_few,
    decode_rows,
    decode_tiling,
)
from nonet.kernels.triton.attention_expanded import (
    LEAST_TILES,
    ExpandedRoom,
    expand_entries,
    is_expanded,
)
from nonet.kernels.triton.attention_join import Scratch
from nonet.kernels.triton.attention_prefill import PrefillTiling, attend_chunks, prefill_tiling
from nonet.kernels.triton.attention_spread import (
    SpreadTiling,
    attend_spread,
    can_spread,
    spread_scratch,
    spread_tiling,
)
from nonet.kernels.triton.attention_tile import head_width
from nonet.kernels.triton.quantize_rows import Rounded

__all__ = ["PagedAttention"]


class PagedAttention:
    """Attention over caches [blocks, K, P, D]; owns the memory for partial results, which layers share in turn."""

    def __init__(self, device: torch.device, multiprocessors: int) -> None:
        self._device = device
        self._multiprocessors = multiprocessors
        # Kept for good: a graph that was captured on one finds it again.
        self._scratch: dict[tuple[DecodeTiling, int, int, int], Scratch] = {}
        self._spread_scratch: dict[tuple[SpreadTiling, QKVLayout], Scratch] = {}
        self.expanded = ExpandedRoom(device)

    def __call__(
        self,
        q: torch.Tensor,
        layout: QKVLayout,
        cache: LayerCache,
        inputs: AttentionInputs,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
        rounded: Rounded | None = None,
        is_chained: bool = False,
        decode: DecodeTiling | None = None,
        spread: SpreadTiling | None = None,
        prefill: PrefillTiling | None = None,
    ) -> torch.Tensor:
        """See `Ops.attention`. Rows of no sequence are left undefined.

        `rounded` is filled too, with a scale for each head; it may be given for decode steps only. Tilings are given
        only to compare them; with `decode`, its kernel is taken where `attention_spread` could be too.
        """
        tokens, num_seqs = q.shape[0], len(inputs.kv_len)
        dim = layout.head_dim
        group = layout.num_heads // layout.num_kv_heads
        out = torch.empty(tokens, layout.num_heads * dim, dtype=q.dtype, device=q.device)
        if not tokens:
            return out
        if decode is None and can_spread(tokens, layout, inputs):
            spread = spread or spread_tiling(layout, q.element_size(), self._multiprocessors)
            attend_spread(
                q, out, layout, cache, inputs, scale=scale, window=window, softcap=softcap,
                rounded=rounded, tiling=spread, scratch=self._scratch_of_spread(spread, layout),
                is_chained=is_chained,
            )  # fmt: skip
            return out
        longest = inputs.max_query_len
        rows = decode_rows(group, longest)
        assert rounded is None or longest == 1, "only decode steps are rounded on the way"
        if longest * group > rows:
            self._chunks(
                q, out, layout, cache, inputs, few_rows=rows, prefill=prefill,
                scale=scale, window=window, softcap=softcap,
            )  # fmt: skip
        decode = decode or decode_tiling(
            dim, q.element_size(), self._multiprocessors, rows, is_coded=cache.format is not None
        )
        attend_few(
            q, out, layout, cache, inputs, scale=scale, window=window, softcap=softcap,
            rows=rows, longest=longest, rounded=rounded, tiling=decode,
            scratch=self._scratch_for(decode, rows, dim, num_seqs * layout.num_kv_heads),
        )  # fmt: skip
        return out

    def _chunks(
        self,
        q: torch.Tensor,
        out: torch.Tensor,
        layout: QKVLayout,
        cache: LayerCache,
        inputs: AttentionInputs,
        *,
        few_rows: int,
        prefill: PrefillTiling | None,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> None:
        tiling = prefill or prefill_tiling(layout.head_dim, q.element_size(), cache.block_size)
        attend = functools.partial(
            attend_chunks,
            few_rows=few_rows, tiling=tiling, scale=scale, window=window, softcap=softcap,
        )  # fmt: skip
        if cache.format is None:
            attend(q, out, layout, cache, inputs)
            return
        num_seqs = len(inputs.kv_len)
        if not is_expanded(q, window):
            # One kernel for both: it need not be compiled again for the first long step.
            attend(q, out, layout, cache, inputs, taken=self.expanded.none_taken(num_seqs))
            return
        numbers = self.expanded.of(layout, q.dtype, num_seqs)
        least_rows = LEAST_TILES * tiling.rows
        expand_entries(numbers, layout, cache, inputs, least_rows, self._multiprocessors)
        there = replace(inputs, block_table=numbers.block_table)
        as_numbers = prefill or prefill_tiling(
            layout.head_dim, q.element_size(), numbers.cache.block_size
        )
        attend(
            q, out, layout, numbers.cache, there, tiling=as_numbers, taken=numbers.taken, is_taken=1
        )
        attend(q, out, layout, cache, inputs, taken=numbers.taken)

    def _scratch_of_spread(self, tiling: SpreadTiling, layout: QKVLayout) -> Scratch:
        key = (tiling, layout)
        if key not in self._spread_scratch:
            self._spread_scratch[key] = spread_scratch(tiling, layout, self._device)
        return self._spread_scratch[key]

    def _scratch_for(self, tiling: DecodeTiling, rows: int, dim: int, pairs: int) -> Scratch:
        block = head_width(dim)
        key = (tiling, rows, block, triton.next_power_of_2(pairs))
        if key not in self._scratch:
            self._scratch[key] = Scratch.allocate(tiling.units, *key[1:], self._device)
        return self._scratch[key]
