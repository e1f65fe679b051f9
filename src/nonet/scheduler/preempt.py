"""Making room when a running sequence finds no block: another one gives up its blocks and is computed again later."""

from __future__ import annotations

from nonet.scheduler.policy.base import Policy
from nonet.scheduler.roster import Roster
from nonet.scheduler.sequence import Sequence

__all__ = ["make_room"]


def make_room(
    roster: Roster, policy: Policy, seq: Sequence, step_id: int, now: float
) -> Sequence | None:
    """Preempt one running sequence that has no row in step `step_id` yet, for `seq`'s sake; returns it.

    None when nobody is worse placed than `seq`, or when blocks are on their way already: those of a sequence with rows
    in flight come free only when these have landed. Then `seq` sits this step out, with its blocks.
    """
    if roster.leaving:
        return None
    candidates = [other for other in roster.running.values() if other.last_step != step_id]
    victim = policy.victim(candidates, now)
    if victim is seq:
        return None
    roster.preempt(victim)
    return victim
