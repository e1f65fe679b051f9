"""Run nonet's model alone, without a scheduler: any chunking of one sequence, logits of every position."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from nonet.config.groups import cache_groups
from nonet.core.sampling_params import SamplingParams
from nonet.core.step import BlockTableUpdate, NewSequence, Row
from nonet.kernels import KERNELS
from nonet.kernels.ops import Ops
from nonet.kv.storage import KVStorage
from nonet.models.decoder import Decoder
from nonet.models.registry import FAMILIES
from nonet.quant.formats import WEIGHT_FORMATS
from nonet.runner.batch import StepBuffers
from nonet.runner.sequences import SequenceTable
from nonet.weights.load import LoadedParameters
from nonet.weights.open import open_weights
from nonet.weights.spec import read_spec

__all__ = ["BareModel"]

BLOCK = 16


class BareModel:
    """A model with its own KV memory for one sequence of at most `max_tokens` tokens."""

    def __init__(
        self,
        path: Path,
        *,
        kernels: str = "reference",
        dtype: torch.dtype = torch.float32,
        weight_format: str = "dense",
        max_tokens: int = 512,
    ) -> None:
        self.spec = read_spec(path)
        self.ops: Ops = KERNELS.load(kernels).create(dtype, torch.device("cpu"), 2)
        source = open_weights(path)
        parameters = LoadedParameters(
            source, self.spec, self.ops, WEIGHT_FORMATS.build(weight_format)
        )
        block = FAMILIES.load(self.spec.family)
        self.model = Decoder(self.spec, self.ops, parameters, block, max_tokens)
        source.close()
        groups = cache_groups(self.spec)
        blocks = -(-max_tokens // BLOCK)
        storage = KVStorage(self.spec, groups, self.ops, blocks * len(groups), BLOCK)
        self._sequences = SequenceTable(1, blocks, len(groups))
        self._buffers = StepBuffers(
            storage,
            block_size=BLOCK,
            max_tokens=max_tokens,
            max_num_seqs=1,
            max_rows=max_tokens,
            max_blocks=blocks,
            num_groups=len(groups),
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
