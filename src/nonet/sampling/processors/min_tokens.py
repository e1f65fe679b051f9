"""Minimum length: no token that would end the output before `min_tokens` outputs.

Forbids `stop_token_ids` and, unless the request ignores them, the end-of-sequence ids. Stop strings are not known here;
`nonet.text` does not look for them before the minimum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nonet.core.step import NewSequence
from nonet.sampling.processors.base import ProcessorRow
from nonet.sampling.upload import upload

__all__ = ["MinTokens"]


class MinTokens:
    """Sets the ending tokens' logits to -inf while the output is too short."""

    reads_tokens = False

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._until: dict[
            int, tuple[int, list[int]]
        ] = {}  # slot: first free position, forbidden ids

    def add(self, slot: int, sequence: NewSequence) -> bool:
        params = sequence.params
        ending = set(params.stop_token_ids)
        if not params.ignore_eos:
            ending.update(sequence.eos_ids)
        if params.min_tokens <= 0 or not ending:
            return False
        # A model file may name an end-of-sequence id that its vocabulary does not reach.
        forbidden = sorted(token_id for token_id in ending if token_id < self._vocab_size)
        self._until[slot] = (sequence.num_prompt + params.min_tokens, forbidden)
        return True

    def append(self, slot: int, token_ids: Sequence[int]) -> None:
        """A row's position says how many outputs there are."""

    def remove(self, slot: int) -> None:
        self._until.pop(slot, None)

    def apply(self, logits: torch.Tensor, rows: Sequence[ProcessorRow]) -> None:
        lines: list[int] = []
        ids: list[int] = []
        for row in rows:
            first_free, ending = self._until[row.slot]
            if row.position < first_free:
                lines += [row.index] * len(ending)
                ids += ending
        if lines:
            at = (
                upload(lines, logits.device),
                upload(ids, logits.device),
            )
            logits.index_put_(at, logits.new_full((), float("-inf")))
