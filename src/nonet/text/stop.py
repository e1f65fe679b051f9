"""Stop strings in a stream of text, wherever the pieces are cut.

The match that is complete first wins; of several complete at the same character, the longest. So the result depends on
the text alone and not on how it arrives. Text is held back only while it may still be the beginning of a stop string.

Each stop string is searched for by Knuth, Morris and Pratt's method, whose table is built only as far as the text has
matched: a request with 64 stop strings of 4,096 characters costs nothing until the model writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["StopMatcher", "StopText"]


@dataclass(frozen=True, slots=True)
class StopText:
    """Text that may be shown, and the stop string that ended the stream, if any."""

    text: str
    stop: str | None = None


class StopMatcher:
    """Looks for the stop strings of one stream; one match ends it.

    >>> matcher = StopMatcher(["</end>"])
    >>> [matcher.feed(piece).text for piece in ("one </", "end", "less> two </en", "d> three")]
    ['one ', '', '</endless> two ', '']
    >>> matcher.feed("more"), matcher.finish()
    (StopText(text='', stop='</end>'), '')
    """

    __slots__ = ("_first_chars", "_held", "_include", "_patterns", "_stop")

    def __init__(self, stops: Sequence[str], include_stop: bool = False) -> None:
        self._patterns = [_Pattern(stop) for stop in dict.fromkeys(stops)]
        self._first_chars = frozenset(stop[0] for stop in stops)
        self._include = include_stop
        self._held = ""
        self._stop: str | None = None

    @property
    def stop(self) -> str | None:
        """The stop string that was found."""
        return self._stop

    def feed(self, text: str, may_stop: bool = True) -> StopText:
        """The text that is now certain not to belong to a stop string.

        With `may_stop` off, a stop string that ends in `text` passes as ordinary text; one that begins there may still
        end in a later call.
        """
        if self._stop is not None:
            return StopText("", self._stop)
        if not self._held and self._first_chars.isdisjoint(text) and not self._is_inside():
            return StopText(text)
        held = self._held
        for position, char in enumerate(text):
            complete = self._advance(char)
            if complete is not None and may_stop:
                self._stop = complete
                seen = held + text[: position + 1]
                self._held = ""
                return StopText(
                    seen if self._include else seen[: len(seen) - len(complete)], complete
                )
        seen = held + text
        keep = 0 if self._include else max(pattern.matched for pattern in self._patterns)
        self._held = seen[len(seen) - keep :]
        return StopText(seen[: len(seen) - keep])

    def finish(self) -> str:
        """What was held back; the stream ends without a stop string."""
        held, self._held = self._held, ""
        return held

    def _is_inside(self) -> bool:
        """Whether text already shown may be the beginning of a match (only when stop strings are shown too)."""
        return self._include and any(pattern.matched for pattern in self._patterns)

    def _advance(self, char: str) -> str | None:
        """Move every pattern on by one character; the longest that is complete."""
        longest: str | None = None
        for pattern in self._patterns:
            if pattern.advance(char) and (longest is None or len(pattern.text) > len(longest)):
                longest = pattern.text
        return longest


class _Pattern:
    """One stop string and how much of it the text now ends with.

    `matched` is the length of the longest proper prefix of `text` that the stream ends with; a complete match is
    reported once and then counts as its longest border, so that overlapping matches are found.
    """

    __slots__ = ("_borders", "matched", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        self._borders = [
            0,
            0,
        ]  # by length of prefix: the longest proper prefix that is also its suffix

    def advance(self, char: str) -> bool:
        text, matched = self.text, self.matched
        while matched and text[matched] != char:
            matched = self._border(matched)
        if text[matched] == char:
            matched += 1
        is_complete = matched == len(text)
        self.matched = self._border(matched) if is_complete else matched
        return is_complete

    def _border(self, length: int) -> int:
        borders, text = self._borders, self.text
        while len(borders) <= length:
            last = len(borders) - 1
            border = borders[last]
            while border and text[border] != text[last]:
                border = borders[border]
            borders.append(border + 1 if text[border] == text[last] else 0)
        return borders[length]
