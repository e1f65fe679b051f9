"""First come, first served.

Idea: in order of arrival; who came last gives way first.
Reference: arXiv 2309.06180, section 4.5.
Cost: one sort of an almost sorted list in a step.
Good for: equal requests; no request waits for ever.
Conflicts: none. A request's priority is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

from nonet.scheduler.policy.base import Policy
from nonet.scheduler.sequence import Sequence

__all__ = ["FcfsPolicy"]


class FcfsPolicy(Policy):
    """Order of `seq_id`, which is the order of arrival."""

    def order(self, sequences: Iterable[Sequence], now: float) -> list[Sequence]:
        return sorted(sequences, key=_rank)

    def victim(self, running: Iterable[Sequence], now: float) -> Sequence:
        return max(running, key=_rank)


_rank = attrgetter("seq_id")
