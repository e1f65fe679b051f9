"""JSON as it streams in: where a value ends, and what the members of an object are, without waiting for the end."""

from __future__ import annotations

import json
from dataclasses import dataclass

from nonet.server.parse.base import Arguments, CallBegin, Event

__all__ = ["CallScanner", "ValueScanner"]

_SPACE = " \t\r\n"
_NAMES = ("name", "function")
_ARGUMENTS = ("arguments", "parameters")


class ValueScanner:
    """Finds the end of one JSON value in a text that comes in pieces; looks at brackets and strings only.

    >>> scanner = ValueScanner()
    >>> scanner.feed('{"a": "}'), scanner.feed('"}, more'), scanner.is_done
    (8, 2, True)
    """

    __slots__ = ("_depth", "_in_string", "_is_begun", "_is_escaped", "is_done")

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self._is_begun = False
        self.is_done = False

    def feed(self, text: str) -> int:
        """How many characters of `text` belong to the value; all of them while it is not done.

        A number or a word ends before the character that cannot be its own.
        """
        for position, char in enumerate(text):
            if self._take(char):
                self.is_done = True
                # A bare word ends before this character, all else with it.
                return position + (char in '"}]' and self._is_begun)
        return len(text)

    def _take(self, char: str) -> bool:
        """Whether the value ends with (or, for a bare word, before) this character."""
        if self._in_string:
            if self._is_escaped:
                self._is_escaped = False
            elif char == "\\":
                self._is_escaped = True
            elif char == '"':
                self._in_string = False
                return self._depth == 0
            return False
        if char == '"':
            self._in_string = self._is_begun = True
        elif char in "{[":
            self._depth += 1
            self._is_begun = True
        elif char in "}]":
            self._depth -= 1
            return self._depth <= 0
        elif self._depth == 0 and not self._is_begun:
            return char in _SPACE or char == ","
        return False


@dataclass(slots=True)
class _Member:
    """The member being read: its key, and the raw text of its value so far, unless that is handed on as it comes."""

    key: str
    value: ValueScanner
    text: str = ""
    is_handed_on: bool = False


class CallScanner:
    """Reads one call `{"name": ..., "arguments": {...}}` and gives it as events while it comes.

    After `feed`, `rest` is what follows the object once it `is_done`, or, once it `is_bad`, what could not be read.
    Members other than the name and the arguments are passed over.
    """

    def __init__(self) -> None:
        self.is_done = False
        self.is_bad = False
        self.rest = ""
        self._buffer = ""
        self._expects = "{"  # one of: { key : value ,
        self._key = ""
        self._member: _Member | None = None
        self._has_begun = False  # the call was announced
        self._early = ""  # arguments that came before the name
        self._has_arguments = False

    @property
    def has_begun(self) -> bool:
        """Whether a call was announced."""
        return self._has_begun

    def feed(self, text: str) -> list[Event]:
        events: list[Event] = []
        self._buffer += text
        while self._buffer and not (self.is_done or self.is_bad):
            if self._member is not None:
                if not self._read_value(self._member, events):
                    break
            elif not self._read_joint():
                break
        if self.is_done:
            self._end(events)
        if self.is_done or self.is_bad:
            self.rest, self._buffer = self._buffer, ""
        return events

    def _read_joint(self) -> bool:
        """Take what stands between values; False when more text is needed."""
        self._buffer = self._buffer.lstrip(_SPACE)
        if not self._buffer:
            return False
        char = self._buffer[0]
        if self._expects == "value":
            self._member = _Member(self._key, ValueScanner())
            return True
        if self._expects == "key" and char == '"':
            return self._read_key()
        if char == "}" and self._expects in ("key", ","):
            self.is_done = True
        elif char == self._expects:
            self._expects = {"{": "key", ",": "key", ":": "value"}[char]
        else:
            self.is_bad = True
            return True
        self._buffer = self._buffer[1:]
        return True

    def _read_key(self) -> bool:
        scanner = ValueScanner()
        size = scanner.feed(self._buffer)
        if not scanner.is_done:
            return False
        key = _decoded(self._buffer[:size])
        self._buffer = self._buffer[size:]
        self.is_bad = not isinstance(key, str)
        self._key, self._expects = str(key), ":"
        return True

    def _read_value(self, member: _Member, events: list[Event]) -> bool:
        size = member.value.feed(self._buffer)
        piece, self._buffer = self._buffer[:size], self._buffer[size:]
        if not member.text and member.key in _ARGUMENTS and piece.startswith("{"):
            member.is_handed_on = True
        if member.is_handed_on:
            self._argue(piece, events)
        else:
            member.text += piece
        if not member.value.is_done:
            return False
        self._complete(member, events)
        self._member, self._expects = None, ","
        return True

    def _complete(self, member: _Member, events: list[Event]) -> None:
        if member.key in _NAMES and not self._has_begun:
            name = _decoded(member.text)
            if not isinstance(name, str) or not name:
                self.is_bad = True
                return
            self._has_begun = True
            events.append(CallBegin(name))
            if self._early:
                events.append(Arguments(self._early))
        elif member.key in _ARGUMENTS and not member.is_handed_on:
            inner = _decoded(member.text)  # some models put the object into a string
            if isinstance(inner, str) and isinstance(_decoded(inner), dict):
                self._argue(inner.strip(), events)
            elif inner is not None:
                self.is_bad = True

    def _argue(self, text: str, events: list[Event]) -> None:
        self._has_arguments = True
        if self._has_begun:
            events.append(Arguments(text))
        else:
            self._early += text

    def _end(self, events: list[Event]) -> None:
        if not self._has_begun:
            self.is_done, self.is_bad = False, True
        elif not self._has_arguments:
            events.append(Arguments("{}"))


def _decoded(text: str) -> object:
    """The value of a JSON text; None for what is none. Half a surrogate pair, which is no character, becomes "?"."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
