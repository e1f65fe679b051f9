"""Min-p: drop tokens less likely than `min_p` times the most likely one (arXiv 2407.01082)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nonet.core.step import NewSequence
from nonet.sampling.ranking import Ranking
from nonet.sampling.upload import upload

__all__ = ["MinP"]


class MinP:
    """Keeps tokens with probability >= `params.min_p` * the row's largest."""

    def __init__(self, vocab_size: int) -> None:
        self._shares: dict[int, float] = {}

    def add(self, slot: int, sequence: NewSequence) -> bool:
        if sequence.params.min_p <= 0.0:
            return False
        self._shares[slot] = sequence.params.min_p
        return True

    def remove(self, slot: int) -> None:
        self._shares.pop(slot, None)

    def keep(self, ranking: Ranking, kept: torch.Tensor, slots: Sequence[int]) -> torch.Tensor:
        shares = upload([self._shares.get(slot, 0.0) for slot in slots], kept.device)
        least = shares * ranking.probabilities[:, 0]
        count = (ranking.probabilities >= least[:, None]).sum(-1).clamp_(min=1)
        return torch.where(shares > 0.0, torch.minimum(kept, count), kept)
