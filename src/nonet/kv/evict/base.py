"""The seam: which cached block goes?"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Evictor"]


class Evictor(Protocol):
    """Knows the idle blocks: those that no table refers to and whose content is still in the prefix index."""

    def on_free(self, block_id: int) -> None:
        """The block became idle."""
        ...

    def on_use(self, block_id: int) -> None:
        """The block is live again."""
        ...

    def choose(self) -> int:
        """Give up one idle block and forget it; there is at least one."""
        ...

    def __contains__(self, block_id: int) -> bool: ...

    def __len__(self) -> int: ...
