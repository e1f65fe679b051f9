"""CUDA graphs of decode steps, one per batch bucket, captured the first time a bucket is met.

Padding rows of a bucket run like others, so the buffers must make them harmless: slots -1 (nothing is stored), kv_len
0 and an empty query range (nothing is attended to), valid token ids, positions and rows. `StepShape`s other than
one token and one row per sequence run without a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from nonet.core.buckets import bucket_of
from nonet.kernels.ops import StepShape

__all__ = ["GraphRecording"]


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    output: torch.Tensor


class GraphRecording:
    """Implements `kernels.ops.Recording`: replays a graph where there is one for the shape, else runs the forward."""

    def __init__(self, forward: Callable[[StepShape], torch.Tensor], largest: StepShape) -> None:
        self._forward = forward
        self._most = min(largest.num_tokens, largest.num_seqs, largest.num_rows)
        self._captured: dict[int, _Captured] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def replay(self, shape: StepShape) -> torch.Tensor:
        """Run on the first rows of the buffers; the result [num_rows, V] is overwritten by the next replay."""
        size = shape.num_seqs
        if not shape.num_tokens == size == shape.num_rows:
            return self._forward(shape)
        bucket = bucket_of(size, self._most)
        if bucket not in self._captured:
            return self._capture(bucket)[:size]
        captured = self._captured[bucket]
        captured.graph.replay()
        return captured.output[:size]

    def _capture(self, bucket: int) -> torch.Tensor:
        """The first run compiles kernels and gives this step's result; the capture itself computes nothing."""
        padded = StepShape(bucket, bucket, bucket)
        result = self._forward(padded)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = self._forward(padded)
        self._captured[bucket] = _Captured(graph, output)
        return result
