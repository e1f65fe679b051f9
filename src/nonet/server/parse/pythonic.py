"""Calls as a Python list: `[get_weather(city="Paris"), ...]`.

Idea: the whole answer is a list of calls with keyword arguments, whose values are Python literals. They are read by a
parser of these literals alone; nothing is evaluated. A call is given when it is complete. A list of JSON calls, which
is what a grammar holds such a model to, is read as well.
Reference: the prompt formats of Llama 3.2 and 4; Google's function-calling guide for Gemma 3.
Cost: nothing to speak of.
Good for: Gemma 3, Llama 4, and models that write Python better than JSON.
Conflicts: none.
"""

from __future__ import annotations

import json
import re

from nonet.server.parse.base import Arguments, CallBegin, Event, Frame, Said, ToolParser
from nonet.server.parse.leading import LeadingParser
from nonet.server.parse.literals import LiteralError, NotYetError, read_literal

__all__ = ["Pythonic"]

_NAME = re.compile(r"[A-Za-z_][\w.\-]*")
_WORDS = ("<|python_start|>", "```tool_code", "```python")


class Pythonic:
    """A list of calls as Python writes them."""

    frame = Frame(
        sign="[",
        opening="[",
        head='{"name": "',
        neck='", "arguments": ',
        tail="}",
        between=", ",
        closing="]",
        at_start=True,
    )

    def parser(self) -> ToolParser:
        return _Parser()


class _Parser:
    """Collects until it is clear what the answer is, then call by call."""

    def __init__(self) -> None:
        self._held = ""
        self._json: LeadingParser | None = None
        self._is_text = False
        self._is_inside = False  # past the opening bracket
        self._is_over = False  # past the closing one

    def feed(self, text: str) -> list[Event]:
        if self._is_text:
            return [Said(text)] if text else []
        if self._json is not None:
            return self._json.feed(text)
        if self._is_over:
            return []
        self._held += text
        events: list[Event] = []
        if not self._is_inside and not self._enter(events):
            return events
        # Only these can complete anything; to look at every token would take time in the square of the text.
        if ")" in text or "]" in text:
            while self._held and self._next_call(events):
                pass
        return events

    def finish(self) -> list[Event]:
        if self._json is not None:
            return self._json.finish()
        if self._is_text or self._is_over or self._is_inside or not self._held:
            return []
        return [Said(self._held)]

    def _enter(self, events: list[Event]) -> bool:
        """Find the bracket that opens the list; False when there is none, or not yet."""
        seen = self._held.lstrip()
        word = next((word for word in _WORDS if seen.startswith(word)), None)
        if word is not None:
            seen = seen[len(word) :].lstrip()
        elif any(word.startswith(seen) for word in _WORDS):
            return False
        after = seen[1:].lstrip()
        if seen.startswith("[") and not after:
            return False
        if seen.startswith("[") and after.startswith("{"):
            self._json = LeadingParser()
            events += self._json.feed(seen)
            return False
        if seen.startswith("[") and _NAME.match(after):
            if _NAME.fullmatch(after):
                return False
            if _NAME.sub("", after, count=1).lstrip().startswith("("):
                self._is_inside, self._held = True, after
                return True
        if not seen:
            return False
        self._is_text = True
        events.append(Said(self._held))
        self._held = ""
        return False

    def _next_call(self, events: list[Event]) -> bool:
        """Read one call from what is held; False when it is not complete yet, or the list is over."""
        seen = self._held.lstrip(" \t\r\n,")
        if seen.startswith("]"):
            self._is_over = True
            return False
        try:
            name, arguments, size = _read_call(seen)
        except NotYetError:
            return False
        except LiteralError:
            self._is_over = True
            return False
        events += [CallBegin(name), Arguments(json.dumps(arguments, ensure_ascii=False))]
        self._held = seen[size:]
        return True


def _read_call(text: str) -> tuple[str, dict[str, object], int]:
    """Name, keyword arguments, and the length of the call at the beginning of `text`."""
    match = _NAME.match(text)
    if match is None:
        raise LiteralError if text else NotYetError
    at = _skip(text, match.end(), "(")
    arguments: dict[str, object] = {}
    while not text.startswith(")", at):
        key = _NAME.match(text, at)
        if key is None:
            raise NotYetError if at >= len(text) else LiteralError
        arguments[key[0]], at = read_literal(text, _skip(text, key.end(), "="))
        at = _space(text, at)
        if text.startswith(",", at):
            at = _space(text, at + 1)
        elif at >= len(text):
            raise NotYetError
        elif not text.startswith(")", at):
            raise LiteralError
    return match[0], arguments, at + 1


def _skip(text: str, at: int, char: str) -> int:
    """Past `char`, with the whitespace around it."""
    at = _space(text, at)
    if at >= len(text):
        raise NotYetError
    if text[at] != char:
        raise LiteralError
    return _space(text, at + 1)


def _space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
