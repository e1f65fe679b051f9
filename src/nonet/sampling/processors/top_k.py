"""Top-k: keep the k most likely tokens; of equally likely ones those of lower id."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nonet.core.step import NewSequence
from nonet.sampling.ranking import Ranking
from nonet.sampling.upload import upload

__all__ = ["TopK"]


class TopK:
    """Keeps `params.top_k` tokens; 0, -1 and k >= vocabulary keep all."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._limits: dict[int, int] = {}

    def add(self, slot: int, sequence: NewSequence) -> bool:
        if not 0 < sequence.params.top_k < self._vocab_size:
            return False
        self._limits[slot] = sequence.params.top_k
        return True

    def remove(self, slot: int) -> None:
        self._limits.pop(slot, None)

    def keep(self, ranking: Ranking, kept: torch.Tensor, slots: Sequence[int]) -> torch.Tensor:
        limits = [self._limits.get(slot, self._vocab_size) for slot in slots]
        return torch.minimum(kept, upload(limits, kept.device))
