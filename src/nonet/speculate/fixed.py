"""Fixed length: every draft is verified as long as it was proposed.

Idea: none; the proposer's own limit is the length. For measurements, and for machines on which a step's time does not
depend on its tokens.
Reference: speculative decoding as first described, arXiv 2211.17192.
Cost: every wrong draft is paid for in full.
Good for: comparing proposers.
Conflicts: none.
"""

from __future__ import annotations

from nonet.speculate.base import Proposer

__all__ = ["FixedLength"]


class FixedLength:
    """Leaves a proposer as it is."""

    def wrap(self, inner: Proposer) -> Proposer:
        return inner
