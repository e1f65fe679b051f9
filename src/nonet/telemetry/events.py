"""What techniques report of themselves: typed events that the ledger turns into money."""

from __future__ import annotations

import msgspec

__all__ = ["Saving"]


class Saving(msgspec.Struct, frozen=True):
    """Work that a technique spared one request, counted by the technique itself.

    Tokens are those that were not computed; seconds are those that computing them took when it was last done, and 0
    where that is not known.
    """

    technique: str
    prompt_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
