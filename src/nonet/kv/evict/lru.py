"""Least recently used first.

Idea: the block that has been idle longest goes. A sequence's blocks become idle last block first, so of one prefix the
tail is given up before the head that other prompts are likelier to share.
Reference: arXiv 2309.06180.
Cost: constant time for each operation.
Good for: everything; the default.
Conflicts: none.
"""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["LruEvictor"]


class LruEvictor:
    """Idle blocks in the order in which they became idle.

    >>> evictor = LruEvictor()
    >>> for block_id in (4, 2, 9):
    ...     evictor.on_free(block_id)
    >>> evictor.on_use(4)
    >>> evictor.choose()
    2
    """

    def __init__(self) -> None:
        self._idle: OrderedDict[int, None] = OrderedDict()

    def on_free(self, block_id: int) -> None:
        self._idle[block_id] = None

    def on_use(self, block_id: int) -> None:
        del self._idle[block_id]

    def choose(self) -> int:
        return self._idle.popitem(last=False)[0]

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._idle

    def __len__(self) -> int:
        return len(self._idle)
