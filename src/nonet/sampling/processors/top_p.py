"""Top-p (nucleus): keep the shortest beginning of the ranking whose share of the mass reaches p (arXiv 1904.09751).

The token that crosses p is kept. The share is of what earlier truncations left. p = 0 keeps one token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nonet.core.step import NewSequence
from nonet.sampling.ranking import Ranking
from nonet.sampling.upload import upload

__all__ = ["TopP"]


class TopP:
    """Keeps the nucleus of `params.top_p`; 1 keeps all."""

    def __init__(self, vocab_size: int) -> None:
        self._shares: dict[int, float] = {}

    def add(self, slot: int, sequence: NewSequence) -> bool:
        if sequence.params.top_p >= 1.0:
            return False
        self._shares[slot] = sequence.params.top_p
        return True

    def remove(self, slot: int) -> None:
        self._shares.pop(slot, None)

    def keep(self, ranking: Ranking, kept: torch.Tensor, slots: Sequence[int]) -> torch.Tensor:
        shares = upload([self._shares.get(slot, 1.0) for slot in slots], kept.device, torch.float64)
        needed = shares * ranking.mass(kept)
        # Token j stays while the mass before it is short of p: the first always, j + 1 if cumulative[j] < needed.
        count = 1 + (ranking.cumulative[:, :-1] < needed[:, None]).sum(-1)
        return torch.where(shares < 1.0, torch.minimum(kept, count), kept)
