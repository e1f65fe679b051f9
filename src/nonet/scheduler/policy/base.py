"""The seam: who first, and who is the victim?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from nonet.scheduler.sequence import Sequence

__all__ = ["Policy"]


class Policy(Protocol):
    """Ranks sequences. Both methods must agree on one order at one time, and neither changes a sequence."""

    def order(self, sequences: Iterable[Sequence], now: float) -> list[Sequence]:
        """First to run first."""
        ...

    def victim(self, running: Iterable[Sequence], now: float) -> Sequence:
        """The one that gives its blocks back when there are too few: the last in `order`. At least one is given."""
        ...
