"""Calls between texts, each made known by a tag; and the pieces that such parsers are put together from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from nonet.server.parse.base import Event, Said
from nonet.server.parse.scan import CallScanner

__all__ = ["CallList", "Reader", "TagSplitter", "TaggedParser"]

_SPACE = " \t\r\n"


class Reader(Protocol):
    """Reads what follows a tag. Once it `is_done` or `is_bad`, `rest` is the text that it did not use."""

    is_done: bool
    is_bad: bool
    rest: str

    @property
    def has_begun(self) -> bool: ...
    def feed(self, text: str) -> list[Event]: ...


class TagSplitter:
    """Finds a tag in a text that comes in pieces; what may be the tag's beginning is held back.

    >>> splitter = TagSplitter("<call>")
    >>> splitter.feed("a <ca"), splitter.feed("ke> <call>b")
    (('a ', None), ('<cake> ', 'b'))
    """

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """The text before the tag, and what follows it; None while it was not found."""
        text = self._held + text
        self._held = ""
        before, tag, after = text.partition(self._tag)
        if tag:
            return before, after
        size = next(
            n
            for n in range(min(len(self._tag) - 1, len(text)), -1, -1)
            if text.endswith(self._tag[:n])
        )
        self._held = text[len(text) - size :]
        return text[: len(text) - size], None

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


class TaggedParser:
    """Text, then `tag` and what a reader makes of what follows, then text again, and so on.

    Whitespace next to calls belongs to nobody. A tag that no call follows is text like any other.
    """

    def __init__(self, tag: str, make_reader: Callable[[], Reader]) -> None:
        self._tag = tag
        self._make_reader = make_reader
        self._splitter = TagSplitter(tag)
        self._space = ""  # whitespace that is shown only when text follows
        self._has_called = False
        self._has_said = False  # since the last call
        self._reader: Reader | None = None
        self._raw = ""  # what the reader got, until it has announced a call

    def feed(self, text: str) -> list[Event]:
        events: list[Event] = []
        left: str | None = text
        while left:
            if self._reader is None:
                said, left = self._splitter.feed(left)
                self._say(said, events)
                if left is not None:
                    self._reader, self._raw = self._make_reader(), self._tag
                    left = left or None
                continue
            left = self._read(self._reader, left, events)
        return events

    def finish(self) -> list[Event]:
        events: list[Event] = []
        if self._reader is None:
            self._say(self._splitter.finish(), events)
        elif not self._reader.has_begun:
            self._say(self._raw, events)
        if self._space and not self._has_called:
            events.append(Said(self._space))
        return events

    def _read(self, reader: Reader, text: str, events: list[Event]) -> str | None:
        events += reader.feed(text)
        if not reader.has_begun:
            self._raw += text
        if reader.is_bad and not reader.has_begun:
            self._reader = None
            self._say(self._raw, events)
            return None
        if reader.has_begun:
            self._raw = ""
        if not (reader.is_done or reader.is_bad):
            return None
        self._reader = None
        if reader.has_begun:
            self._space, self._has_called, self._has_said = "", True, False
        return reader.rest

    def _say(self, text: str, events: list[Event]) -> None:
        text = self._space + text
        kept = text.rstrip(_SPACE)
        self._space = text[len(kept) :]
        if not kept:
            return
        if self._has_called and not self._has_said:
            kept = kept.lstrip(_SPACE)
        self._has_said = True
        events.append(Said(kept))


class CallList:
    """One call object, or a list of them in brackets; then `closing`, if it comes."""

    def __init__(self, closing: str = "") -> None:
        self.is_done = False
        self.is_bad = False
        self.rest = ""
        self._closing = closing
        self._buffer = ""
        self._has_begun = False
        self._is_list = False
        self._needs_object = True
        self._call: CallScanner | None = None
        self._is_closing = False

    @property
    def has_begun(self) -> bool:
        return self._has_begun

    def feed(self, text: str) -> list[Event]:
        events: list[Event] = []
        self._buffer += text
        while self._buffer and not (self.is_done or self.is_bad):
            if self._call is not None:
                self._read_call(self._call, events)
            elif not (self._read_closing() if self._is_closing else self._read_joint()):
                break
        if self.is_done or self.is_bad:
            self.rest, self._buffer = self._buffer, ""
        return events

    def _read_call(self, call: CallScanner, events: list[Event]) -> None:
        text, self._buffer = self._buffer, ""
        events += call.feed(text)
        self._has_begun = self._has_begun or call.has_begun
        if call.is_bad:
            self.is_bad, self._buffer = True, call.rest
        elif call.is_done:
            self._buffer, self._call = call.rest, None
            self._needs_object = False
            self._is_closing = not self._is_list

    def _read_joint(self) -> bool:
        self._buffer = self._buffer.lstrip(_SPACE)
        if not self._buffer:
            return False
        char = self._buffer[0]
        if char == "{" and self._needs_object:
            self._call = CallScanner()
            return True
        self._buffer = self._buffer[1:]
        if char == "[" and self._needs_object and not self._is_list:
            self._is_list = True
        elif char == "," and self._is_list and not self._needs_object:
            self._needs_object = True
        elif char == "]" and self._is_list:
            self._is_closing = True
        else:
            self._buffer = char + self._buffer
            self.is_bad = True
        return True

    def _read_closing(self) -> bool:
        """Skip whitespace and the closing tag; anything else is for others to read."""
        stripped = self._buffer.lstrip(_SPACE)
        if not self._closing or stripped.startswith(self._closing):
            self._buffer = stripped[len(self._closing) :] if self._closing else self._buffer
            self.is_done = True
        elif stripped and not self._closing.startswith(stripped):
            self.is_done = True
        return self.is_done
