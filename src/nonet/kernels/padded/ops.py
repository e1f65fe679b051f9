"""Plain torch, one padded batch at a time: what a model costs without kernels written for it, and without a straw man.

Like the reference, but attention multiplies in the dtype of the weights, decodes attend as one batch, padded to the
longest sequence, and on a GPU decode steps are replayed as CUDA graphs. The ladder's naive rung runs on it; the
reference, which goes sequence by sequence in float32, is slower than anything that people use.

Letters: S sequences, L padded length, H query heads, K KV heads, G query heads of a KV head, D head dim, P block size.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch

from nonet.kernels.ops import (
    AttentionInputs,
    LayerCache,
    LowRankFactors,
    QKVLayout,
    Recording,
    StepShape,
)
from nonet.kernels.reference.ops import ReferenceOps

__all__ = ["PaddedOps"]


class PaddedOps(ReferenceOps):
    """Implements `kernels.ops.Ops`.

    >>> ops = PaddedOps(torch.float32, torch.device("cpu"))
    >>> ops.linear(torch.ones(1, 2), ops.pack(torch.eye(2))).tolist()
    [[1.0, 1.0]]
    """

    name = "padded"

    def kept_slots(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What goes nowhere is written to the null block, which nobody reads: a graph cannot drop rows."""
        return slots.long().clamp_(min=0), None

    def lora_inner(
        self, x: torch.Tensor, factors: LowRankFactors, slots: torch.Tensor
    ) -> torch.Tensor:
        """[T, P * R]. Every slot multiplies every row, and a row takes what its own made: a graph cannot ask which."""
        inner = x.new_zeros(len(x), factors.first.shape[1], dtype=torch.float32)
        for number, first in enumerate(factors.first, start=1):
            inner = torch.where(_has(slots, number), x.float() @ first.float().T, inner)
        return inner

    def lora_add(
        self,
        out: torch.Tensor,
        inner: torch.Tensor,
        factors: LowRankFactors,
        slots: torch.Tensor,
    ) -> torch.Tensor:
        """As `lora_inner`; a row without a slot keeps its bits."""
        rank = factors.rank
        for number, second in enumerate(factors.second, start=1):
            start = 0
            for part, end in enumerate(factors.ends):
                here = out[:, start:end]
                added = inner[:, part * rank : (part + 1) * rank] @ second[:, start:end].float()
                total = (here.float() + added).to(out.dtype)
                here.copy_(torch.where(_has(slots, number), total, here))
                start = end
        return out

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
        if len(q) == len(
            inputs.kv_len
        ):  # a decode each; this way never asks the device for a number
            return self._decode(q, layout, cache, inputs, scale, window, softcap)
        out = torch.zeros_like(q)
        counts = inputs.query_start.diff()
        alone = (counts == 1).nonzero().squeeze(1)
        if len(alone):
            rows = inputs.query_start[alone].long()
            out[rows] = self._decode(
                q[rows], layout, cache, _only(inputs, alone), scale, window, softcap
            )
        starts = inputs.query_start.tolist()
        for seq, (first, last) in enumerate(pairwise(starts)):
            if last - first > 1:
                mine = _only(inputs, torch.tensor([seq], device=q.device))
                out[first:last] = self._chunk(
                    q[first:last], layout, cache, mine, scale, window, softcap
                )
        return out

    def record(
        self, forward: Callable[[StepShape], torch.Tensor], largest: StepShape
    ) -> Recording | None:
        if self.device.type != "cuda":
            return None
        from nonet.kernels.triton.graphs import GraphRecording

        return GraphRecording(forward, largest, decodes_only=True)

    def _decode(
        self,
        q: torch.Tensor,
        layout: QKVLayout,
        cache: LayerCache,
        inputs: AttentionInputs,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """q [S, H * D]: one query of each sequence, which is its last entry."""
        seqs, heads, kv_heads = len(q), layout.num_heads, layout.num_kv_heads
        width = -(-inputs.max_kv_len // cache.block_size)
        tables = inputs.block_table[:, :width].long()
        place = torch.arange(width * cache.block_size, device=q.device)
        visible = place < inputs.kv_len[:, None]
        if (
            window is not None
        ):  # blocks behind the window are freed: their table entries are the null block
            visible &= place >= inputs.kv_len[:, None] - window
        keys, values = self._padded(cache, tables, q.dtype)
        # Memory behind a sequence's end may hold anything, and 0 * NaN is NaN.
        values.masked_fill_(~visible[:, :, None, None], 0)
        queries = q.view(seqs, kv_heads, heads // kv_heads, layout.head_dim)
        scores = torch.matmul(queries, keys.permute(0, 2, 3, 1)).float() * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores.masked_fill_(~visible[:, None, None, :], float("-inf"))
        mixed = torch.matmul(scores.softmax(-1).to(q.dtype), values.transpose(1, 2))
        return mixed.reshape(seqs, heads * layout.head_dim)

    def _chunk(
        self,
        q: torch.Tensor,
        layout: QKVLayout,
        cache: LayerCache,
        inputs: AttentionInputs,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """q [Q, H * D]: several queries of one sequence, every score of them in memory."""
        queries, heads, kv_heads = len(q), layout.num_heads, layout.num_kv_heads
        width = -(-inputs.max_kv_len // cache.block_size)
        tables = inputs.block_table[:, :width].long()
        place = torch.arange(width * cache.block_size, device=q.device)
        last = torch.arange(inputs.max_kv_len - queries, inputs.max_kv_len, device=q.device)[
            :, None
        ]
        visible = place <= last
        if window is not None:
            visible &= place > last - window
        keys, values = (copy[0].transpose(0, 1) for copy in self._padded(cache, tables, q.dtype))
        values = values.masked_fill(~visible.any(0)[:, None], 0)
        grouped = q.view(queries, kv_heads, heads // kv_heads, layout.head_dim).permute(1, 2, 0, 3)
        scores = torch.matmul(grouped, keys[:, None].transpose(2, 3)).float() * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores.masked_fill_(~visible, float("-inf"))
        mixed = torch.matmul(scores.softmax(-1).to(q.dtype), values[:, None])
        return mixed.permute(2, 0, 1, 3).reshape(queries, heads * layout.head_dim)

    def _padded(
        self, cache: LayerCache, tables: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies [S, L, K, D] of the keys and values of each sequence's blocks [S, L / P]."""
        seqs, width = tables.shape
        if cache.format is None:
            keys, values = (memory[tables].flatten(1, 2) for memory in (cache.keys, cache.values))
            return keys, values
        offsets = torch.arange(cache.block_size, device=tables.device)
        slots = (tables[:, :, None] * cache.block_size + offsets).flatten()
        read, written = self.gathered(cache, slots)
        length = width * cache.block_size
        return (
            read.view(seqs, length, *read.shape[1:]).to(dtype),
            written.view(seqs, length, *written.shape[1:]).to(dtype),
        )


def _has(slots: torch.Tensor, slot: int) -> torch.Tensor:
    """Boolean [T, 1]: which tokens have this slot."""
    return (slots == slot).unsqueeze(1)


def _only(inputs: AttentionInputs, seqs: torch.Tensor) -> AttentionInputs:
    """The step as if it held these sequences alone."""
    counts = inputs.query_start.diff()[seqs]
    kv_len = inputs.kv_len[seqs]
    starts = torch.cat((counts.new_zeros(1), counts.cumsum(0).int()))
    return AttentionInputs(
        positions=inputs.positions,
        query_start=starts,
        kv_len=kv_len,
        block_table=inputs.block_table[seqs],
        slots=inputs.slots,
        max_query_len=int(counts.max()),
        max_kv_len=int(kv_len.max()),
    )
