"""Who looks at logits as they are made: a measurement in the engine's own process."""

from __future__ import annotations

from typing import Protocol

import torch

__all__ = ["LogitsTap"]


class LogitsTap(Protocol):
    """Sees each row that is sampled from, and each prompt row whose log probabilities were asked for."""

    def __call__(self, seq_id: int, position: int, logits: torch.Tensor) -> None:
        """Row i of logits [R, V] is the model's own for the token at `position + i`; copy what is to be kept.

        A position may come again, after a preemption or a rejected draft; the last one counts.
        """
        ...
