"""Carries out the compactions of a step: a pruner scores the entries, the best of each KV head move to other blocks.

It runs between the forward pass and the next plan. What the pruner wants to know of queries is caught on their way
through the attention layers, which a recorded forward pass cannot show, so such a step is run operation by operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from nonet.core.model_spec import ModelSpec
from nonet.core.step import Compaction, StepPlan
from nonet.kernels.ops import LayerCache, Ops, QKVLayout
from nonet.kv.prune.base import LayersView, Pruner
from nonet.kv.storage import KVStorage
from nonet.layers.forward_step import ForwardStep

__all__ = ["Compactor", "QueryWindows", "best_entries"]

# Keys of a prompt that are looked at together: as many layers at a time as have no more numbers, at least one. Little
# work is launched for many layers of a short prompt at once, and a long prompt does not need much memory.
MOST_NUMBERS = 1 << 25


class QueryWindows:
    """The last queries of the rows that a step compacts; called by each attention layer with all of its queries."""

    def __init__(self, spans: dict[int, slice], layers: Sequence[int], head_dim: int) -> None:
        self._spans = spans  # sequence id -> its tokens in the step
        self._places = {layer: place for place, layer in enumerate(layers)}
        self._head_dim = head_dim
        self._seen: dict[int, torch.Tensor] = {}  # [layers, w, H * D]

    def __call__(self, layer: int, queries: torch.Tensor) -> None:
        place = self._places.get(layer)
        if place is None:
            return
        for seq_id, span in self._spans.items():
            mine = queries[span]
            if seq_id not in self._seen:
                self._seen[seq_id] = mine.new_empty(len(self._places), *mine.shape)
            self._seen[seq_id][place].copy_(mine)

    def of(self, seq_id: int, layers: Sequence[int]) -> torch.Tensor:
        """Queries [C, w, H, D] of a sequence's last tokens in layers that follow each other among those looked at."""
        first = self._places[layers[0]]
        rows = self._seen[seq_id][first : first + len(layers)]
        return rows.view(*rows.shape[:2], -1, self._head_dim)


class Compactor:
    """Thins out KV in the memory of `storage`, with the scores of one pruner."""

    def __init__(self, pruner: Pruner, spec: ModelSpec, ops: Ops, storage: KVStorage) -> None:
        self._pruner = pruner
        self._spec = spec
        self._layout = QKVLayout(spec.num_heads, spec.num_kv_heads, spec.head_dim)
        self._ops = ops
        self._storage = storage

    def windows(self, plan: StepPlan) -> QueryWindows | None:
        """What must see the step's queries; None when the pruner does not ask for any."""
        size = self._pruner.needs.query_window
        if not size or not plan.compactions:
            return None
        wanted = {compaction.seq_id for compaction in plan.compactions}
        groups = {compaction.group for compaction in plan.compactions}
        spans: dict[int, slice] = {}
        end = 0
        for row in plan.rows:
            end += row.num_tokens + len(row.drafts)
            if row.seq_id in wanted:
                assert row.num_tokens >= size, "the query window is spread over several steps"
                spans[row.seq_id] = slice(end - size, end)
        layers = [layer for group in sorted(groups) for layer in self._layers(group)]
        return QueryWindows(spans, layers, self._spec.head_dim)

    def run(self, plan: StepPlan, step: ForwardStep, windows: QueryWindows | None) -> None:
        """All compactions of a step whose forward pass was launched."""
        numbers = {row.seq_id: number for number, row in enumerate(plan.rows)}
        for compaction in plan.compactions:
            number = numbers[compaction.seq_id]
            row, layers = plan.rows[number], self._layers(compaction.group)
            table = step.inputs[layers[0]].block_table[number]
            self._compact(compaction, row.start + row.num_tokens, table, windows)

    def _layers(self, group: int) -> list[int]:
        return [layer for layer, its in enumerate(self._storage.group_of_layer) if its == group]

    def _compact(
        self,
        compaction: Compaction,
        length: int,
        table: torch.Tensor,
        windows: QueryWindows | None,
    ) -> None:
        """`table` holds the blocks of the prompt, on the device."""
        layers = self._layers(compaction.group)
        size = self._storage.caches[layers[0]].block_size
        blocks = table[: -(-length // size)].long()
        slots = _slots(blocks, size)
        targets = _slots(self._on_device(compaction.block_ids), size)[: compaction.length]
        positions = torch.arange(length, device=blocks.device)
        numbers = length * self._layout.num_kv_heads * self._layout.head_dim
        at_once = max(1, MOST_NUMBERS // numbers)
        for first in range(0, len(layers), at_once):
            some = layers[first : first + at_once]
            caches = [self._storage.caches[layer] for layer in some]
            view = LayersView(
                layers=tuple(some),
                layout=self._layout,
                positions=positions,
                queries=self._queries(windows, compaction.seq_id, some),
                scale=self._spec.scale,
                softcap=self._spec.attention_softcap,
                read_keys=partial(_first, self._ops.read_keys, caches, blocks, length),
                read_values=partial(_first, self._ops.read_values, caches, blocks, length),
            )
            kept = best_entries(self._pruner.score(view), compaction.length)
            self._ops.copy_entries(caches, slots[kept], targets)

    def _queries(
        self, windows: QueryWindows | None, seq_id: int, layers: Sequence[int]
    ) -> torch.Tensor:
        if windows is not None:
            return windows.of(seq_id, layers)
        shape = (len(layers), 0, self._layout.num_heads, self._layout.head_dim)
        return torch.empty(shape, device=self._ops.device)

    def _on_device(self, block_ids: list[int]) -> torch.Tensor:
        """The host does not wait until a GPU has taken them over, which would be after the forward pass."""
        is_gpu = self._ops.device.type == "cuda"
        here = torch.tensor(block_ids, pin_memory=is_gpu)
        return here.to(self._ops.device, non_blocking=True)


def best_entries(scores: torch.Tensor, count: int) -> torch.Tensor:
    """scores [..., L] to int64 [..., count]: where the highest of each row are, rising; of equals the first.

    Nothing is sorted: what is above the lowest that stays, stays, and of its equals the first that there is room for.

    >>> best_entries(torch.tensor([[1.0, 5.0, 0.0, 5.0], [4.0, 3.0, 2.0, 1.0]]), 2).tolist()
    [[1, 3], [0, 1]]
    """
    lowest = scores.topk(count, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    # Written so that what is no number is above: at least `count` entries stay whatever the scores are.
    is_above = ~(scores <= lowest)
    is_equal = scores == lowest
    room = count - is_above.sum(-1, keepdim=True)
    stays = is_above | (is_equal & (is_equal.cumsum(-1) <= room))
    # The n-th entry that stays is where their number reaches n.
    numbers = torch.arange(1, count + 1, device=scores.device)
    return torch.searchsorted(stays.cumsum(-1), numbers.expand(*scores.shape[:-1], -1).contiguous())


def _first(
    read: Callable[[Sequence[LayerCache], torch.Tensor], torch.Tensor],
    caches: Sequence[LayerCache],
    blocks: torch.Tensor,
    length: int,
) -> torch.Tensor:
    """The first `length` entries of what is read."""
    return read(caches, blocks)[:, :, :length]


def _slots(blocks: torch.Tensor, block_size: int) -> torch.Tensor:
    """Where in the cache the entries of a sequence with these blocks lie."""
    offsets = torch.arange(block_size, device=blocks.device)
    return (blocks.unsqueeze(1) * block_size + offsets).flatten()
