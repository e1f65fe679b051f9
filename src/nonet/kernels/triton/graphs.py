"""CUDA graphs of steps: one for each batch of decodes, and for each size of small steps with chunks of prompts.

Without one, the hundreds of launches of a step take the host longer than the device needs for a few hundred tokens.
A graph runs at a size somewhat above the step's. What pads it runs like the rest, so the buffers must make it harmless:
slots -1 (nothing is stored), kv_len 0 and an empty query range (nothing is attended to), valid token ids, positions and
rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from nonet.core.buckets import (
    FEW_QUERIES,
    MOST_MIXED_TOKENS,
    bucket_of,
    buckets,
    crowd_of,
    crowds,
    mixed_tokens,
    mixed_tokens_of,
)
from nonet.kernels.ops import StepShape

__all__ = ["GraphRecording", "graph_shape", "usual_shapes"]


def graph_shape(shape: StepShape, largest: StepShape) -> StepShape | None:
    """The shape of the graph that a step runs in, no smaller in anything; None if it runs without."""
    size = shape.num_seqs
    most = min(largest.num_tokens, largest.num_seqs, largest.num_rows)
    if shape.num_tokens == size == shape.num_rows and size <= most:
        size = bucket_of(size, most)
        return StepShape(size, size, size, 1)
    seqs = crowd_of(size, largest.num_seqs)
    # More tokens than sequences: as many would be a batch of decodes to the kernels.
    tokens = mixed_tokens_of(max(shape.num_tokens, seqs + 1))
    rows = min(seqs if shape.num_rows <= seqs else tokens, largest.num_rows)
    if tokens > min(largest.num_tokens, MOST_MIXED_TOKENS) or rows < shape.num_rows:
        return None
    few = shape.max_query_len <= FEW_QUERIES[-1]
    longest = 1 << (shape.max_query_len - 1).bit_length() if few else tokens
    return StepShape(tokens, seqs, rows, longest)


def usual_shapes(largest: StepShape) -> list[StepShape]:
    """The graphs of an engine that drafts nothing: batches of decodes, then a piece of a prompt beside others."""
    most = min(largest.num_tokens, largest.num_seqs, largest.num_rows)
    steps = [StepShape(size, size, size, 1) for size in buckets(most)]
    for seqs in crowds(most):
        steps += [StepShape(seqs - 1 + few, seqs, seqs, few) for few in FEW_QUERIES]
        sizes = [tokens for tokens in mixed_tokens(largest.num_tokens) if tokens > seqs]
        steps += [StepShape(tokens, seqs, seqs, tokens) for tokens in sizes]
    return list(dict.fromkeys(filter(None, (graph_shape(step, largest) for step in steps))))


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    output: torch.Tensor


class GraphRecording:
    """Implements `kernels.ops.Recording`: replays a graph where there is one for the shape, else runs the forward.

    The usual ones are captured ahead where there is time. Decode steps are captured the first time their batch is met,
    others the second time: many sizes come once.
    `decodes_only`: others never, for a forward that asks the device for a number there.
    """

    def __init__(
        self,
        forward: Callable[[StepShape], torch.Tensor],
        largest: StepShape,
        *,
        decodes_only: bool = False,
    ) -> None:
        self.num_replays = 0
        self._decodes_only = decodes_only
        self._forward = forward
        self._largest = largest
        self._captured: dict[StepShape, _Captured] = {}
        self._met: set[StepShape] = set()
        self._ahead = usual_shapes(largest)[::-1]
        self._pool = torch.cuda.graph_pool_handle()

    def replay(self, shape: StepShape) -> torch.Tensor:
        """Run on the first rows of the buffers; the result [num_rows, V] is overwritten by the next replay."""
        padded = graph_shape(shape, self._largest)
        if padded is None or not self._may_capture(padded):
            return self._forward(shape)[: shape.num_rows]
        captured = self._captured.get(padded)
        if captured is not None:
            self.num_replays += 1
            captured.graph.replay()
            return captured.output[: shape.num_rows]
        if padded.max_query_len > 1 and padded not in self._met:
            self._met.add(padded)
            return self._forward(shape)[: shape.num_rows]
        return self._capture(padded)[: shape.num_rows]

    def record_ahead(self) -> bool:
        while self._ahead:
            padded = self._ahead.pop()
            if padded not in self._captured and self._may_capture(padded):
                self._capture(padded)
                break
        return bool(self._ahead)

    def _may_capture(self, padded: StepShape) -> bool:
        return not self._decodes_only or padded.max_query_len == 1

    def _capture(self, padded: StepShape) -> torch.Tensor:
        """The first run compiles kernels and gives this step's result; the capture itself computes nothing."""
        result = self._forward(padded)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = self._forward(padded)
        self._captured[padded] = _Captured(graph, _unowned(output))
        return result


def _unowned(output: torch.Tensor) -> torch.Tensor:
    """The same memory without holding it, so that the graphs of a pool put their results in one place.

    Each result is read before the next replay overwrites it; the graphs keep the pool's memory from being given back.
    """
    return torch.as_tensor(_Place(output), device=output.device)


class _Place:
    """A contiguous float32 tensor's memory as the CUDA array interface describes it (version 3)."""

    def __init__(self, of: torch.Tensor) -> None:
        assert of.dtype == torch.float32
        assert of.is_contiguous()
        self.__cuda_array_interface__ = {
            "shape": tuple(of.shape),
            "typestr": "<f4",
            "data": (of.data_ptr(), False),
            "strides": None,
            "version": 3,
        }
