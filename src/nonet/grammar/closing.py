"""Which token leads to the end of an output soonest? An order of the vocabulary in which what closes comes first.

A grammar says which tokens are legal and not how far the end is. In this order the first legal token is a good guess:
it closes what is open, so that a text is left, a list gets no further element and an optional member is not begun.
Where nothing closes yet, within a pattern, a `ClosingOrder` names tokens to try. No guess is ever illegal; for an odd
grammar the way may be long, or lead nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["ClosingOrder"]

Legal: TypeAlias = npt.NDArray[np.int32]  # a row of bits [words]
Ids: TypeAlias = npt.NDArray[np.int64]

_TEXT_ONLY = set(b";@!?)_qxQX")  # where one of these is legal, brackets are mere characters
_VISIBLE = set(range(33, 127)) - {ord("\\")}
_OPENING = ("{", "[", "(")
_FEW = 4  # single characters that are all worth a try


class ClosingOrder:
    """`tokens` are the bytes of each id, empty for ids that must not be chosen.

    >>> order = ClosingOrder([b'"', b"{", b"abc", b"}}", b",", b"@"])
    >>> after_a_bracket, within_a_text = np.array([0b001011], np.int32), np.array([0b111011], np.int32)
    >>> order.closing(after_a_bracket), order.closing(within_a_text)
    (3, 0)
    """

    def __init__(self, tokens: Sequence[bytes]) -> None:
        usable = [i for i, token in enumerate(tokens) if token]
        self._marks = _ids(i for i in usable if len(tokens[i]) == 1 and tokens[i][0] in _TEXT_ONLY)
        closing = [(rank, i) for i in usable if (rank := _closing_in_structure(tokens[i]))]
        ending = [(rank, i) for i in usable if (rank := _closing_in_text(tokens[i]))]
        self._closing = [_ids(i for _, i in sorted(found)) for found in (closing, ending)]
        self._filling = _ids(sorted(usable, key=lambda i: (_filling(tokens[i]), tokens[i])))
        single = [i for i in usable if len(tokens[i]) == 1 and tokens[i][0] in _VISIBLE]
        self._single = _ids(sorted(single, key=lambda i: _filling(tokens[i])))
        self._kinds = {i: _kind(tokens[i]) for i in single}

    def closing(self, legal: Legal) -> int | None:
        """The legal token that closes most; None where none closes anything."""
        found = _legal_of(self._closing[bool(len(_legal_of(self._marks, legal)))], legal)
        return int(found[0]) if len(found) else None

    def filling(self, legal: Legal) -> int | None:
        """A legal token that says nothing, long where a text must be long; None for an empty row."""
        found = _legal_of(self._filling, legal)
        return int(found[0]) if len(found) else None

    def tries(self, legal: Legal) -> list[int]:
        """Legal characters worth a try: where they are many, one digit, one letter of each case and all signs.

        What opens something is tried only where nothing else can be: the way out of a recursion is not into it.
        """
        found: list[int] = _legal_of(self._single, legal).tolist()
        found = [i for i in found if self._kinds[i] not in _OPENING] or found
        if len(found) <= _FEW:
            return found
        by_kind = {self._kinds[i]: i for i in reversed(found)}
        return [i for i in found if by_kind[self._kinds[i]] == i]


def _ids(found: Iterable[int]) -> Ids:
    return np.array(list(found), np.int64)


def _legal_of(ids: Ids, legal: Legal) -> Ids:
    found: Ids = ids[(legal[ids >> 5] >> (ids & 31).astype(np.int32)) & 1 == 1]
    return found


def _closing_in_structure(token: bytes) -> tuple[int, int] | None:
    """Between the texts of JSON, and in any other language."""
    if set(token) <= set(b"}]"):
        return 0, -len(token)
    if token in (b'""', b"{}", b"[]"):
        return 1, 0
    if token in (b'"', b",", b":"):
        return 2, b'",:'.index(token)
    return (3, len(token)) if token in (b"null", b"false", b"true") else None


def _closing_in_text(token: bytes) -> tuple[int, int] | None:
    """The end of a text, and what the same token closes behind it."""
    if token[:1] == b'"' and set(token[1:]) <= set(b"}]"):
        return 0, -len(token)
    return (1, 0) if token in (b'",', b'":') else None


def _filling(token: bytes) -> tuple[int, int]:
    """Where more characters are asked for, words are quickest; what opens, and what is odd, comes last."""
    if token.isdigit():
        return 0, len(token) + 10 * (token[:1] == b"0")  # behind a point, zeros may never be enough
    if token.isalpha() and token.islower() and len(token) <= 8:
        return 1, -len(token)
    if token[:1].isspace() or any(byte < 32 or byte > 126 for byte in token) or b"\\" in token:
        return 5, len(token)
    if set(token) & set(b'{[("'):
        return 4, len(token)
    return (2 if token.isalnum() else 3), -len(token)


def _kind(token: bytes) -> str:
    text = token.decode()
    if text.isdigit():
        return "digit"
    return text if not text.isalpha() else "lower" if text.islower() else "upper"
