"""Calls as Mistral's models write them, after the control token [TOOL_CALLS].

Idea: newer models write `[TOOL_CALLS]name[ARGS]{...}` for each call, older ones one list
`[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`. Both parsers read both.
Reference: github.com/mistralai/mistral-common; the chat templates of Mistral 7B v0.3, Nemo and Small 3.
Cost: nothing to speak of.
Good for: Mistral's models with function calling.
Conflicts: none.
"""

from __future__ import annotations

from nonet.server.parse.base import Arguments, CallBegin, Event, Frame, ToolParser
from nonet.server.parse.scan import ValueScanner
from nonet.server.parse.tagged import CallList, TaggedParser

__all__ = ["Mistral", "MistralList"]

_TAG = "[TOOL_CALLS]"
_LONGEST_NAME = 256
_ID_DIGITS = 9  # the templates refuse other ids


class Mistral:
    """One tag per call."""

    frame = Frame(sign=_TAG, head=_TAG, neck="[ARGS]", tail="", id_prefix="", id_digits=_ID_DIGITS)

    def parser(self) -> ToolParser:
        return TaggedParser(_TAG, _Either)


class MistralList:
    """One tag, then a list."""

    frame = Frame(
        sign=_TAG,
        opening=_TAG + "[",
        head='{"name": "',
        neck='", "arguments": ',
        tail="}",
        between=", ",
        closing="]",
        id_prefix="",
        id_digits=_ID_DIGITS,
    )

    def parser(self) -> ToolParser:
        return TaggedParser(_TAG, _Either)


class _Either:
    """A list of call objects, or a name and its arguments."""

    def __init__(self) -> None:
        self.is_done = False
        self.is_bad = False
        self.rest = ""
        self._calls: CallList | None = None
        self._head = ""  # up to the arguments
        self._arguments: ValueScanner | None = None

    @property
    def has_begun(self) -> bool:
        if self._calls is not None:
            return self._calls.has_begun
        return self._arguments is not None

    def feed(self, text: str) -> list[Event]:
        events: list[Event] = []
        if self._calls is None and self._arguments is None:
            text = self._read_head(text, events)
        if self._calls is not None and text:
            events += self._calls.feed(text)
            self.is_done, self.is_bad = self._calls.is_done, self._calls.is_bad
            self.rest = self._calls.rest
        elif self._arguments is not None and text:
            size = self._arguments.feed(text)
            events.append(Arguments(text[:size]))
            self.is_done, self.rest = self._arguments.is_done, text[size:]
        return events

    def _read_head(self, text: str, events: list[Event]) -> str:
        """Up to what shows which of the two it is; returns what follows."""
        head = (self._head + text).lstrip()
        if head.startswith(("[{", "{")) or (
            head.startswith("[") and head[1:].lstrip().startswith("{")
        ):
            self._calls = CallList()
            return head
        name, brace, _ = head.partition("{")
        if not brace:
            self._head = head
            self.is_bad = len(head) > _LONGEST_NAME
            return ""
        self._arguments = ValueScanner()
        events.append(CallBegin(name.partition("[")[0].strip()))
        return head[len(name) :]
