"""Temperature: logits are divided by it, so that less than 1 sharpens and more than 1 flattens.

Greedy sequences (temperature 0, or top-k 1) are not touched: their token is the largest logit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nonet.core.step import NewSequence
from nonet.sampling.processors.base import ProcessorRow
from nonet.sampling.upload import upload

__all__ = ["Temperature"]

# Below this a division could overflow; float32 logits are decided long before, save for exact ties.
_SMALLEST = 1e-20


class Temperature:
    """Divides by `params.temperature`."""

    reads_tokens = False

    def __init__(self, vocab_size: int) -> None:
        self._temperatures: dict[int, float] = {}

    def add(self, slot: int, sequence: NewSequence) -> bool:
        params = sequence.params
        if params.is_greedy or params.temperature == 1.0:
            return False
        self._temperatures[slot] = max(params.temperature, _SMALLEST)
        return True

    def append(self, slot: int, token_ids: Sequence[int]) -> None:
        """A temperature does not depend on the tokens so far."""

    def remove(self, slot: int) -> None:
        self._temperatures.pop(slot, None)

    def apply(self, logits: torch.Tensor, rows: Sequence[ProcessorRow]) -> None:
        divisors = [1.0] * logits.shape[0]  # dividing by 1 changes no bit
        for row in rows:
            divisors[row.index] = self._temperatures[row.slot]
        logits.div_(upload(divisors, logits.device, logits.dtype)[:, None])
