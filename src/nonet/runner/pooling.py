"""Means of hidden states over whole prompts, gathered chunk by chunk: what a decoder has to say as an embedding."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nonet.core.step import Row
from nonet.runner.sequences import SequenceTable

__all__ = ["Pooler"]


class Pooler:
    """Sums of prompts under way; a sequence that starts over starts its sum over."""

    def __init__(self) -> None:
        self._sums: dict[int, torch.Tensor] = {}

    def add(
        self, rows: Sequence[Row], hidden: torch.Tensor, sequences: SequenceTable
    ) -> dict[int, bytes]:
        """Take in a step's hidden states [T, M]; the means, float32 little endian, of prompts that are complete now."""
        done: dict[int, bytes] = {}
        first = 0
        for row in rows:
            if row.pools:
                num_prompt = sequences[row.seq_id].num_prompt
                num_tokens = min(row.num_tokens, num_prompt - row.start)
                part = hidden[first : first + num_tokens].float().sum(0)
                whole = part if row.start == 0 else self._sums.pop(row.seq_id) + part
                if row.start + num_tokens == num_prompt:
                    done[row.seq_id] = (whole / num_prompt).cpu().numpy().astype("<f4").tobytes()
                else:
                    self._sums[row.seq_id] = whole
            first += row.num_tokens + len(row.drafts)
        return done

    def forget(self, seq_id: int) -> None:
        """The sequence is gone."""
        self._sums.pop(seq_id, None)
