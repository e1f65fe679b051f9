"""Entries of a paged cache by their slots, in whatever order an implementation keeps its memory.

Letters: N blocks, P block size, K KV heads, D head dim, C caches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

__all__ = ["EntryView", "StoredEntries", "copy_all", "read_all"]


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
        return self.memory[self.places(slots)]

    def read_blocks(self, blocks: torch.Tensor, out: torch.Tensor) -> None:
        """Whole blocks [n] to `out` [K, n, *offsets, ...]."""
        by_head = self.memory.movedim(1 + self.num_offset_axes, 0)
        torch.index_select(by_head, 1, blocks, out=out)

    def write(self, slots: torch.Tensor, entries: torch.Tensor) -> None:
        """Store [n, K, ...] in `slots` [n]."""
        self.memory[self.places(slots)] = entries

    def places(self, slots: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Block and offsets of each slot: what the first axes of the memory are indexed with."""
        found, step = [slots // math.prod(self._offsets)], math.prod(self._offsets)
        for size in self._offsets:
            step //= size
            found.append((slots if step == 1 else slots // step) % size)
        return tuple(found)

    @property
    def _offsets(self) -> tuple[int, ...]:
        return self.memory.shape[1 : 1 + self.num_offset_axes]


@dataclass(frozen=True, slots=True)
class StoredEntries:
    """The keys, or the values, of a layer: codes [N, *offsets, K, *parts], whose parts flatten to an entry's codes.

    With a format there are scales [N, P, K], and `dequantize` makes float32 [n, K, D] of codes [n, K, W] and scales
    [n, K]; without, codes are numbers. Several codes that lie together may be held as one number, which is faster to
    move: `dtype` is then that of a code.
    """

    codes: EntryView
    scales: EntryView | None = None
    dequantize: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    dtype: torch.dtype | None = None

    def read(self, slots: torch.Tensor) -> torch.Tensor:
        """float32 [n, K, D]."""
        codes = self.as_codes(self.codes.read(slots).flatten(2))
        if self.scales is None or self.dequantize is None:
            return codes.float()
        return self.dequantize(codes, self.scales.read(slots))

    def as_codes(self, held: torch.Tensor) -> torch.Tensor:
        """[..., W] of what the memory holds for an entry."""
        return held if self.dtype is None else held.view(self.dtype)


def read_all(stored: Sequence[StoredEntries], blocks: torch.Tensor) -> torch.Tensor:
    """See `Ops.read_keys`: the keys, or the values, of C caches."""
    codes = stored[0].as_codes(_blocks_of([one.codes for one in stored], blocks).flatten(3))
    scales = [one.scales for one in stored if one.scales is not None]
    dequantize = stored[0].dequantize
    if not scales or dequantize is None:
        return codes
    return dequantize(codes, _blocks_of(scales, blocks))


def _blocks_of(views: Sequence[EntryView], blocks: torch.Tensor) -> torch.Tensor:
    """[C, K, n * P, ...]; one operation a cache, which copies what is read once."""
    memory, axes = views[0].memory, views[0].num_offset_axes
    *offsets, heads = memory.shape[1 : 2 + axes]
    parts = memory.shape[2 + axes :]
    out = memory.new_empty((len(views), heads, len(blocks), *offsets, *parts))
    for view, mine in zip(views, out, strict=True):
        view.read_blocks(blocks, mine)
    return out.flatten(2, 2 + axes)


def copy_all(
    stored: Sequence[Sequence[StoredEntries]], sources: torch.Tensor, targets: torch.Tensor
) -> None:
    """See `Ops.copy_entries`: of each of C caches the keys and the values."""
    heads = torch.arange(sources.shape[1], device=sources.device).unsqueeze(1)
    by_cache = [
        [view for one in both for view in (one.codes, one.scales) if view is not None]
        for both in stored
    ]
    for views in zip(*by_cache, strict=True):
        read, written = views[0].places(sources), views[0].places(targets)
        for number, view in enumerate(views):
            entries = view.memory[(*(place[number] for place in read), heads)]  # [K, n, ...]
            view.memory[(*written, heads)] = entries
