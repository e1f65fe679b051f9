"""Logit bias: a number added to the logits of chosen token ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nonet.core.step import NewSequence
from nonet.sampling.processors.base import ProcessorRow
from nonet.sampling.upload import upload

__all__ = ["LogitBias"]


class LogitBias:
    """Adds `params.logit_bias`."""

    reads_tokens = False

    def __init__(self, vocab_size: int) -> None:
        self._biases: dict[int, tuple[list[int], list[float]]] = {}

    def add(self, slot: int, sequence: NewSequence) -> bool:
        bias = sequence.params.logit_bias
        if not bias:
            return False
        self._biases[slot] = (list(bias.keys()), list(bias.values()))
        return True

    def append(self, slot: int, token_ids: Sequence[int]) -> None:
        """A bias does not depend on the tokens so far."""

    def remove(self, slot: int) -> None:
        self._biases.pop(slot, None)

    def apply(self, logits: torch.Tensor, rows: Sequence[ProcessorRow]) -> None:
        lines: list[int] = []
        ids: list[int] = []
        values: list[float] = []
        for row in rows:
            row_ids, row_values = self._biases[row.slot]
            lines += [row.index] * len(row_ids)
            ids += row_ids
            values += row_values
        at = (upload(lines, logits.device), upload(ids, logits.device))
        added = upload(values, logits.device, logits.dtype)
        logits.index_put_(at, logits[at] + added)
