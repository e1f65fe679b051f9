"""How the text of an answer is read: thoughts first, then calls in what is left."""

from __future__ import annotations

from nonet.gateway.answer import ChoiceText
from nonet.server.calls import CallFinder
from nonet.server.thoughts import ThoughtFinder

__all__ = ["AnswerReader"]


class AnswerReader:
    """One answer's readers; pieces go through `split` in order."""

    def __init__(self, thoughts: ThoughtFinder | None, calls: CallFinder | None) -> None:
        self._thoughts = thoughts
        self._calls = calls

    @property
    def num_thought_tokens(self) -> int:
        return self._thoughts.num_tokens if self._thoughts is not None else 0

    def split(self, piece: ChoiceText) -> ChoiceText:
        """The piece with thoughts and calls taken out of its text; the one given stays as it is."""
        if self._thoughts is not None:
            piece = self._thoughts.split(piece)
        return piece if self._calls is None else self._calls.split(piece)
