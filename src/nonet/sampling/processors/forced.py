"""Forced outputs: a request may bring the tokens to be chosen, so that a model is measured on a text it did not write.

Reported log probabilities are the model's own, as they are taken before any processor acts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nonet.core.step import NewSequence
from nonet.sampling.processors.base import ProcessorRow
from nonet.sampling.upload import upload

__all__ = ["Forced"]


class Forced:
    """Leaves one token possible at each of the first `len(params.forced_ids)` outputs."""

    reads_tokens = False

    def __init__(self, vocab_size: int) -> None:
        self._texts: dict[int, tuple[int, list[int]]] = {}  # slot: position of the first, ids

    def add(self, slot: int, sequence: NewSequence) -> bool:
        ids = sequence.params.forced_ids
        if not ids:
            return False
        self._texts[slot] = (sequence.num_prompt, ids)
        return True

    def append(self, slot: int, token_ids: Sequence[int]) -> None:
        """A row's position says how many outputs there are."""

    def remove(self, slot: int) -> None:
        self._texts.pop(slot, None)

    def apply(self, logits: torch.Tensor, rows: Sequence[ProcessorRow]) -> None:
        lines: list[int] = []
        ids: list[int] = []
        for row in rows:
            first, text = self._texts[row.slot]
            place = row.position - first
            if 0 <= place < len(text):
                lines.append(row.index)
                ids.append(text[place])
        if lines:
            at = upload(lines, logits.device)
            logits.index_fill_(0, at, float("-inf"))
            logits[at, upload(ids, logits.device)] = 0.0
