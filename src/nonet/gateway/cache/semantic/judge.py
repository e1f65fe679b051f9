"""Are two answers the same? The question that a cache's bound stands on, answered without a model as judge.

Equal texts are the same. Others are when their vectors nearly are and they agree on numbers, units, dates, code and
negations. Where in doubt the answers differ: that costs hits and keeps the bound.
"""

from __future__ import annotations

import unicodedata
from collections import Counter

from nonet.gateway.cache.semantic.gates import marks_of

__all__ = ["agree", "is_equal"]

KINDS = ("number", "unit", "date", "code", "negation")
MIN_WORDS = 4  # shorter answers, such as a name or yes, are the same only when they are equal


def is_equal(one: str, two: str) -> bool:
    """Whether two answers differ in case, space and punctuation at the end only."""
    return _plain(one) == _plain(two)


def agree(one: str, two: str) -> bool:
    """Whether two answers that sound alike state the same: what a vector does not see."""
    if min(len(one.split()), len(two.split())) < MIN_WORDS:
        return False
    first, second = marks_of(one), marks_of(two)
    return all(Counter(first.of(kind)) == Counter(second.of(kind)) for kind in KINDS)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".!")
