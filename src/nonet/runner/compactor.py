"""Carries out the compactions of a step: a pruner scores the entries, the best of each KV head move to other blocks.

It runs between the forward pass and the next plan. What the pruner wants to know of queries is caught on their way
through the attention layers, which a recorded forward pass cannot show, so such a step is run operation by operation.
"""

from __future__ import annotations

from functools import partial

import torch

from nonet.core.model_spec import ModelSpec
from nonet.core.step import Compaction, StepPlan
from nonet.kernels.ops import Ops, QKVLayout
from nonet.kv.prune.base import LayerView, Pruner
from nonet.kv.storage import KVStorage
from nonet.runner.sequences import SequenceTable

__all__ = ["Compactor", "QueryWindows", "best_entries"]


class QueryWindows:
    """The last queries of the rows that a step compacts; called by each attention layer with all of its queries."""

    def __init__(self, spans: dict[int, slice], layers: frozenset[int], head_dim: int) -> None:
        self._spans = spans  # sequence id -> its tokens in the step
        self._layers = layers
        self._head_dim = head_dim
        self._seen: dict[tuple[int, int], torch.Tensor] = {}

    def __call__(self, layer: int, queries: torch.Tensor) -> None:
        if layer in self._layers:
            for seq_id, span in self._spans.items():
                self._seen[seq_id, layer] = queries[span].clone()

    def take(self, seq_id: int, layer: int) -> torch.Tensor:
        """Queries [w, H, D] of a sequence's last tokens."""
        rows = self._seen.pop((seq_id, layer))
        return rows.view(len(rows), -1, self._head_dim)


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
        layers = [i for i, group in enumerate(self._storage.group_of_layer) if group in groups]
        return QueryWindows(spans, frozenset(layers), self._spec.head_dim)

    def run(self, plan: StepPlan, sequences: SequenceTable, windows: QueryWindows | None) -> None:
        """All compactions of a step whose forward pass was launched."""
        rows = {row.seq_id: row for row in plan.rows}
        for compaction in plan.compactions:
            row = rows[compaction.seq_id]
            table = sequences.tables[compaction.group][sequences[row.seq_id].slot]
            self._compact(compaction, row.start + row.num_tokens, torch.from_numpy(table), windows)

    def _compact(
        self,
        compaction: Compaction,
        length: int,
        table: torch.Tensor,
        windows: QueryWindows | None,
    ) -> None:
        device, caches = self._ops.device, self._storage.caches
        layers = [
            layer
            for layer, group in enumerate(self._storage.group_of_layer)
            if group == compaction.group
        ]
        size = caches[layers[0]].block_size
        slots = _slots(table.to(device, torch.int64), length, size)
        new_blocks = torch.tensor(compaction.block_ids, device=device)
        targets = _slots(new_blocks, compaction.length, size)
        positions = torch.arange(length, device=device)
        none = torch.empty(0, self._layout.num_heads, self._layout.head_dim, device=device)
        for layer in layers:
            view = LayerView(
                layer=layer,
                layout=self._layout,
                positions=positions,
                queries=none if windows is None else windows.take(compaction.seq_id, layer),
                scale=self._spec.scale,
                softcap=self._spec.attention_softcap,
                read=partial(self._ops.gather_entries, caches[layer], slots),
            )
            kept = best_entries(self._pruner.score(view), compaction.length)
            self._ops.copy_entries(caches[layer], slots[kept].T, targets)


def best_entries(scores: torch.Tensor, count: int) -> torch.Tensor:
    """scores [K, L] to int64 [K, count]: where the highest of each row are, rising; of equals the first.

    >>> best_entries(torch.tensor([[1.0, 5.0, 0.0, 5.0], [4.0, 3.0, 2.0, 1.0]]), 2).tolist()
    [[1, 3], [0, 1]]
    """
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return order[:, :count].sort(dim=1).values


def _slots(blocks: torch.Tensor, count: int, block_size: int) -> torch.Tensor:
    """Where in the cache the first `count` entries of a sequence lie."""
    entries = torch.arange(count, device=blocks.device)
    return blocks[entries // block_size] * block_size + entries % block_size
