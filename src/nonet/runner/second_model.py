"""A second model on the target's sequences: it shares their block tables and has weights and KV memory of its own.

Its blocks have the ids of the target's, in the first cache group that keeps every token. So they come and go with the
target's, and nobody has to manage them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from nonet.core.step import Row
from nonet.kernels.ops import Recording
from nonet.models.decoder import Decoder
from nonet.runner.batch import StepBuffers
from nonet.runner.rehearsal import time_step
from nonet.runner.sequences import SequenceTable
from nonet.sampling.sampler import Sampler
from nonet.sampling.samples import SampleRow
from nonet.speculate.base import Guess, SecondRow

__all__ = ["SideModel"]


class SideModel:
    """Implements `speculate.base.SecondModel`. `sequences` has the shared table alone; `sampler` is the target's."""

    def __init__(
        self,
        model: Decoder,
        buffers: StepBuffers,
        sequences: SequenceTable,
        sampler: Sampler,
        recording: Recording | None,
        block_size: int,
        num_blocks: int,
    ) -> None:
        self.max_tokens = buffers.largest.num_tokens
        self.max_rows = buffers.max_rows
        self.block_size = block_size
        self.num_blocks = num_blocks
        self._model = model
        self._buffers = buffers
        self._sequences = sequences
        self._sampler = sampler
        self._recording = recording

    def blocks(self, slot: int) -> npt.NDArray[np.int32]:
        table: npt.NDArray[np.int32] = self._sequences.tables[0][slot]
        held: npt.NDArray[np.int32] = table[: np.count_nonzero(table)]
        return held

    def run(self, rows: Sequence[SecondRow]) -> list[Guess | None]:
        found: list[Guess | None] = [None] * len(rows)
        logits = self.logits([_planned(row) for row in rows])
        wanting = [number for number, row in enumerate(rows) if row.wants_guess]
        if logits is None:
            return found
        asked = [SampleRow(row.slot, _stop(row), row.prefix) for row in rows if row.wants_guess]
        for number, drafted in zip(wanting, self._sampler.draft(logits, asked), strict=True):
            if drafted is not None:
                found[number] = Guess(drafted.token_id, drafted.distribution)
        return found

    def logits(self, rows: Sequence[Row]) -> torch.Tensor | None:
        """Logits of the rows' samples; None where there are none."""
        shape, step = self._buffers.fill(rows, self._sequences)
        recorded = self._recording
        logits = self._model.forward(step) if recorded is None else recorded.replay(shape)
        return logits if shape.num_rows else None

    def time_step(self, num_tokens: int) -> float:
        """Seconds of a pass of that many tokens."""
        return time_step(self.logits, self._sequences, num_tokens, self._buffers.device)


def _planned(row: SecondRow) -> Row:
    return Row(
        seq_id=row.seq_id,
        start=row.start,
        num_tokens=row.num_known,
        drafts=() if row.num_known else row.prefix[-1:],
        num_samples=int(row.wants_guess),
    )


def _stop(row: SecondRow) -> int:
    """The position of the token to be guessed."""
    return row.start + max(1, row.num_known)
