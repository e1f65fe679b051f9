"""The seam: how many newcomers may join this step?"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Batching"]


class Batching(Protocol):
    """Asked once in each step that has seats left and somebody waiting."""

    def seats(self, num_running: int, num_free: int) -> int:
        """Of `num_free` seats, how many may be taken now beside `num_running` sequences."""
        ...
