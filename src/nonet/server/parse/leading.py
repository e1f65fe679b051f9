"""An answer that is calls from its first character on, or none at all."""

from __future__ import annotations

from nonet.server.parse.base import Event, Said
from nonet.server.parse.tagged import CallList

__all__ = ["LeadingParser"]

_BETWEEN = " \t\r\n;,"


class LeadingParser:
    """JSON calls, singly or in a list, from the beginning, perhaps after `prefix`; otherwise everything is text.

    What follows the last call and is no call is text again.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._held = ""  # all that came, until it is known what it is
        self._is_text = False
        self._calls: CallList | None = None
        self._has_called = False

    def feed(self, text: str) -> list[Event]:
        events: list[Event] = []
        left = text
        while left:
            if self._is_text:
                events.append(Said(left))
                return events
            calls = self._calls
            left = self._look(left) if calls is None else self._read(calls, left, events)
        return events

    def finish(self) -> list[Event]:
        if self._is_text or (self._calls is not None and self._calls.has_begun):
            return []
        held = self._held if not self._has_called else self._held.strip(_BETWEEN)
        return [Said(held)] if held else []

    def _look(self, text: str) -> str:
        """What is coming? Returns the text to go on with."""
        self._held += text
        seen = self._held.lstrip(_BETWEEN if self._has_called else " \t\r\n")
        if self._prefix and seen.startswith(self._prefix):
            seen = seen[len(self._prefix) :].lstrip()
        elif self._prefix and self._prefix.startswith(seen):
            return ""
        if not seen:
            return ""
        if seen[0] not in "{[":
            self._is_text = True
            held, self._held = self._held, ""
            return held.lstrip(_BETWEEN) if self._has_called else held
        self._calls = CallList()
        before = self._held[: len(self._held) - len(seen)]
        self._held = before
        return seen

    def _read(self, calls: CallList, text: str, events: list[Event]) -> str:
        events += calls.feed(text)
        if not calls.has_begun:
            self._held += text
        if calls.is_bad and not calls.has_begun:
            self._is_text = True
            held, self._held = self._held, ""
            return held
        if calls.has_begun:
            self._held = ""
        if not (calls.is_done or calls.is_bad):
            return ""
        self._has_called = True
        self._calls = None
        return calls.rest
