"""What shape an output must have, as a value that crosses sockets: a kind and its text."""

from __future__ import annotations

from typing import Literal

import msgspec

from nonet.core.limits import check

__all__ = ["Grammar", "GrammarKind"]

GrammarKind = Literal["json_schema", "json_object", "regex", "choice", "lark"]


class Grammar(msgspec.Struct, frozen=True):
    """`text` is a JSON Schema, nothing, a regular expression, a JSON list of strings, or a Lark or GBNF grammar.

    >>> Grammar("regex", "[0-9]+").kind
    'regex'
    """

    kind: GrammarKind
    text: str = ""

    def verify(self) -> None:
        """Raise InvalidRequestError for a text over its limit; whether it can be compiled is another matter."""
        check("grammar", self.text)
