"""The model alone, without a scheduler: logits of every position of a text, for tests and quality figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from nonet.config.groups import cache_groups
from nonet.core.sampling_params import SamplingParams
from nonet.core.step import BlockTableUpdate, NewSequence, Row
from nonet.engine.assemble import load_model, make_ops
from nonet.kv.format import KV_FORMATS
from nonet.kv.storage import KVStorage
from nonet.quant.formats import UNQUANTIZED
from nonet.runner.batch import StepBuffers
from nonet.runner.sequences import SequenceTable
from nonet.weights.open import open_weights
from nonet.weights.spec import read_spec

__all__ = ["Scorer"]

BLOCK = 16


class Scorer:
    """A model with its own KV memory for one sequence of at most `max_tokens` tokens, on the CPU.

    `weight_format`, `kernels` and `kv_format` are names of their catalogues; without a KV format, entries are in dtype.
    """

    def __init__(
        self,
        path: Path,
        *,
        kernels: str = "reference",
        dtype: str = "float32",
        weight_format: str = UNQUANTIZED,
        kv_format: str | None = None,
        threads: int = 2,
        max_tokens: int = 512,
    ) -> None:
        self.spec = read_spec(path)
        self.ops = make_ops(kernels, dtype, "cpu", threads)
        self.model = load_model(open_weights(path), self.spec, self.ops, weight_format, max_tokens)
        groups = cache_groups(self.spec)
        blocks = -(-max_tokens // BLOCK)
        entries = None if kv_format is None else KV_FORMATS.build(kv_format)
        storage = KVStorage(self.spec, groups, self.ops, blocks * len(groups), BLOCK, entries)
        self._sequences = SequenceTable(1, blocks, len(groups))
        self._buffers = StepBuffers(
            storage,
            block_size=BLOCK,
            max_tokens=max_tokens,
            max_num_seqs=1,
            max_rows=max_tokens,
            max_blocks=blocks,
            num_groups=len(groups),
            device=self.ops.device,
        )
        self._num_groups = len(groups)
        self._blocks = blocks

    def logits(self, token_ids: Sequence[int], chunks: Sequence[int] | None = None) -> torch.Tensor:
        """float32 [T, V] over the whole sequence, computed in chunks of the sizes given (the last takes the rest)."""
        new = NewSequence(
            seq_id=0,
            token_ids=list(token_ids),
            num_prompt=len(token_ids),
            params=SamplingParams(),
            seed=0,
        )
        self._sequences.add(new)
        for group in range(self._num_groups):
            first = 1 + group * self._blocks
            self._sequences.update_table(
                BlockTableUpdate(0, group, 0, list(range(first, first + self._blocks)))
            )
        parts: list[torch.Tensor] = []
        start = 0
        for size in [*(chunks or ()), len(token_ids)]:
            count = min(size, len(token_ids) - start)
            if count == 0:
                break
            row = Row(seq_id=0, start=start, num_tokens=count, num_samples=count)
            _, step = self._buffers.fill([row], self._sequences)
            with torch.inference_mode():
                parts.append(self.model.forward(step).clone())
            start += count
        self._sequences.remove(0)
        return torch.cat(parts)
