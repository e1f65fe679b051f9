"""Continuous batching.

Idea: whoever finishes gives its seat to the next in the queue at once; the batch never ends.
Reference: Orca (OSDI 2022), iteration-level scheduling.
Cost: none.
Good for: everything; outputs of unequal length most of all.
Conflicts: none.
"""

from __future__ import annotations

__all__ = ["ContinuousBatching"]


class ContinuousBatching:
    """Every free seat is open."""

    def seats(self, num_running: int, num_free: int) -> int:
        return num_free
