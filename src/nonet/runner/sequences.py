"""What the runner remembers of each live sequence between steps: its token ids, its block tables, its slot.

A slot is a small number, 0 to max_num_seqs - 1, that indexes every per-sequence array of the runner and the sampler.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nonet.core.sampling_params import SamplingParams
from nonet.core.step import BlockTableUpdate, NewSequence
from nonet.speculate.base import NO_DRAFT, Draft

__all__ = ["LiveSequence", "SequenceTable"]


@dataclass(slots=True)
class LiveSequence:
    """One sequence; `token_ids` grows with what the sampler brings.

    `unread` is the number, among the samples of the newest step, of a token that is still on the device. `num_flying`
    counts the steps with a row of it that were launched and not collected.
    """

    slot: int
    token_ids: list[int]
    num_prompt: int
    params: SamplingParams
    adapter: int = 0  # slot of its adapter, 0 for none
    unread: int | None = None
    num_flying: int = 0
    draft: Draft = (
        NO_DRAFT  # proposed after the last step; the next one may verify a beginning of it
    )


class SequenceTable:
    """Live sequences by id, and their block tables as one int32 array [slots, blocks] per cache group.

    `adapter_slot` tells where the adapter of a sequence lies; it stays there while the sequence lives.
    """

    def __init__(
        self,
        max_num_seqs: int,
        max_blocks: int,
        num_groups: int,
        adapter_slot: Callable[[str], int] | None = None,
    ) -> None:
        self.tables = [
            np.zeros((max_num_seqs, max_blocks), dtype=np.int32) for _ in range(num_groups)
        ]
        self._free_slots = list(range(max_num_seqs - 1, -1, -1))
        self._live: dict[int, LiveSequence] = {}
        self._adapter_slot = adapter_slot if adapter_slot is not None else _no_adapter

    def __getitem__(self, seq_id: int) -> LiveSequence:
        return self._live[seq_id]

    def __len__(self) -> int:
        return len(self._live)

    def only(self, group: int) -> SequenceTable:
        """The same live sequences, with the table of one group alone."""
        view = copy.copy(self)
        view.tables = [self.tables[group]]
        return view

    def add(self, new: NewSequence) -> LiveSequence:
        """Give the sequence a slot with empty tables."""
        assert new.seq_id not in self._live, f"sequence {new.seq_id} is already live"
        slot = self._free_slots.pop()
        for table in self.tables:
            table[slot] = 0
        adapter = self._adapter_slot(new.adapter_id)
        sequence = LiveSequence(slot, list(new.token_ids), new.num_prompt, new.params, adapter)
        self._live[new.seq_id] = sequence
        return sequence

    def remove(self, seq_id: int) -> int | None:
        """Free the slot and return it; None for a sequence that never got here."""
        sequence = self._live.pop(seq_id, None)
        if sequence is None:
            return None
        self._free_slots.append(sequence.slot)
        return sequence.slot

    def update_table(self, update: BlockTableUpdate) -> None:
        row = self.tables[update.group][self._live[update.seq_id].slot]
        row[update.start : update.start + len(update.block_ids)] = update.block_ids


def _no_adapter(adapter_id: str) -> int:
    assert not adapter_id, f"adapter {adapter_id!r} was let in although there are none"
    return 0
