"""Entries of a paged cache by their slots, in whatever order an implementation keeps its memory.

Letters: N blocks, P block size, K KV heads, D head dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

__all__ = ["EntryView", "StoredEntries", "copy_all"]


@dataclass(frozen=True, slots=True)
class EntryView:
    """One tensor of a cache seen as [N, *offsets, K, ...]: sizes of `offsets` multiply to P, the first one slowest.

    >>> view = EntryView(torch.arange(12).view(3, 2, 2, 1), num_offset_axes=1)
    >>> view.read(torch.tensor([3])).flatten().tolist()
    [6, 7]
    """

    memory: torch.Tensor
    num_offset_axes: int = 1

    def read(self, slots: torch.Tensor) -> torch.Tensor:
        """[n, K, ...] of the entries in `slots` [n].

        On a CPU whole blocks are read where they hold little else: that takes a fifth of the time of single entries.
        """
        if slots.device.type == "cpu" and len(slots):
            size = math.prod(self._offsets)
            blocks, which = (slots // size).unique(return_inverse=True)
            if len(blocks) * size <= 2 * len(slots):
                whole = self.memory[blocks].flatten(0, self.num_offset_axes)
                return whole[which * size + slots % size]
        return self.memory[self._places(slots)]

    def read_heads(self, slots: torch.Tensor) -> torch.Tensor:
        """[n, K, ...]: of KV head h what lies in slots[:, h]; `slots` is [n, K]."""
        heads = torch.arange(slots.shape[1], device=slots.device)
        return self.memory[(*self._places(slots), heads)]

    def write(self, slots: torch.Tensor, entries: torch.Tensor) -> None:
        """Store [n, K, ...] in `slots` [n]."""
        self.memory[self._places(slots)] = entries

    @property
    def _offsets(self) -> tuple[int, ...]:
        return self.memory.shape[1 : 1 + self.num_offset_axes]

    def _places(self, slots: torch.Tensor) -> tuple[torch.Tensor, ...]:
        step = math.prod(self._offsets)
        places, rest = [slots // step], slots % step
        for size in self._offsets:
            step //= size
            places.append(rest // step)
            rest = rest % step
        return tuple(places)


@dataclass(frozen=True, slots=True)
class StoredEntries:
    """The keys, or the values, of a layer: codes [N, *offsets, K, *parts], whose parts flatten to an entry's codes.

    With a format there are scales [N, P, K], and `dequantize` makes float32 [n, K, D] of codes [n, K, W] and scales
    [n, K]; without, codes are numbers.
    """

    codes: EntryView
    scales: EntryView | None = None
    dequantize: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None

    def read(self, slots: torch.Tensor) -> torch.Tensor:
        """float32 [n, K, D]."""
        codes = self.codes.read(slots).flatten(2)
        if self.scales is None or self.dequantize is None:
            return codes.float()
        return self.dequantize(codes, self.scales.read(slots))


def copy_all(stored: Sequence[StoredEntries], sources: torch.Tensor, targets: torch.Tensor) -> None:
    """See `Ops.copy_entries`."""
    for entries in stored:
        for view in (entries.codes, entries.scales):
            if view is not None:
                view.write(targets, view.read_heads(sources))
