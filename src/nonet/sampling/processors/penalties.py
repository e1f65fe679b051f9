"""Repetition, frequency and presence penalties on tokens that were seen.

Repetition counts prompt and output: a positive logit is divided by it, a negative one multiplied, as in CTRL
(arXiv 1909.05858) and Hugging Face transformers. Frequency and presence, as in the OpenAI API, count the output only:
`frequency * occurrences` and, once, `presence` are subtracted. Repetition comes first.

The work grows with the number of distinct tokens seen, not with the vocabulary: they are kept on the host, and only
their logits are read and written.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from nonet.core.sampling_params import SamplingParams
from nonet.core.step import NewSequence
from nonet.sampling.processors.base import ProcessorRow
from nonet.sampling.upload import upload

__all__ = ["Penalties"]


class Penalties:
    """Applies the three penalties."""

    reads_tokens = True

    def __init__(self, vocab_size: int) -> None:
        self._seen: dict[int, _Seen] = {}

    def add(self, slot: int, sequence: NewSequence) -> bool:
        if not sequence.params.needs_penalties:
            return False
        seen = _Seen(sequence.params)
        if sequence.params.repetition_penalty != 1.0:
            seen.count(sequence.token_ids[: sequence.num_prompt], 0)
        seen.count(sequence.token_ids[sequence.num_prompt :], 1)
        self._seen[slot] = seen
        return True

    def append(self, slot: int, token_ids: Sequence[int]) -> None:
        self._seen[slot].count(token_ids, 1)

    def remove(self, slot: int) -> None:
        self._seen.pop(slot, None)

    def apply(self, logits: torch.Tensor, rows: Sequence[ProcessorRow]) -> None:
        parts = [_RowPenalties(row, self._seen[row.slot]) for row in rows]
        lengths = [len(part.ids) for part in parts]
        if not any(lengths):
            return
        device = logits.device
        lines = np.repeat([row.index for row in rows], lengths)
        at = (
            upload(lines, device),
            upload(np.concatenate([part.ids for part in parts]), device),
        )
        factors = np.repeat([part.seen.params.repetition_penalty for part in parts], lengths)
        amounts = np.concatenate([part.amounts for part in parts])
        factor = upload(factors.astype(np.float32), device)
        values = logits[at]
        values = torch.where(values > 0, values / factor, values * factor)
        values -= upload(amounts.astype(np.float32), device)
        logits.index_put_(at, values)


class _Seen:
    """Distinct tokens of one sequence in the order first seen, with how often each is in the output."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self._place: dict[int, int] = {}
        self._ids = np.zeros(256, dtype=np.int64)
        self._counts = np.zeros(256, dtype=np.int64)

    def count(self, token_ids: Sequence[int], occurrences: int) -> None:
        for token_id in token_ids:
            place = self._place.setdefault(token_id, len(self._place))
            if place == len(self._ids):
                self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._ids[place] = token_id
            self._counts[place] += occurrences

    def with_drafts(
        self, drafts: Sequence[int]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Ids and output counts as if `drafts` had been accepted; views when there are none."""
        size = len(self._place)
        ids, counts = self._ids[:size], self._counts[:size]
        if not drafts:
            return ids, counts
        more = dict.fromkeys(token_id for token_id in drafts if token_id not in self._place)
        place = {token_id: size + i for i, token_id in enumerate(more)}
        ids = np.concatenate([ids, np.array(list(more), dtype=np.int64)])
        counts = np.concatenate([counts, np.zeros(len(more), dtype=np.int64)])
        for token_id in drafts:
            known = self._place.get(token_id)
            counts[place[token_id] if known is None else known] += 1
        return ids, counts


class _RowPenalties:
    """Ids that one row penalises and what is subtracted from each."""

    def __init__(self, row: ProcessorRow, seen: _Seen) -> None:
        self.seen = seen
        self.ids, counts = seen.with_drafts(row.draft_prefix)
        params = seen.params
        self.amounts = params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
