"""Python and JSON literals read from text: numbers, strings, True, true, None, null, lists, tuples and dicts.

A reader of its own, since model output is never given to Python's evaluator, not even to `ast.literal_eval`.
"""

from __future__ import annotations

import math
import re

__all__ = ["LiteralError", "NotYetError", "read_literal"]

_MAX_DEPTH = 64
_NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?")
_WORD = re.compile(r"[A-Za-z_]\w*")
_WORDS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "\n": ""}
_HEX = {"x": 2, "u": 4, "U": 8}
_MAX_DIGITS = 1000


class LiteralError(Exception):
    """The text is no literal."""


class NotYetError(LiteralError):
    """The text ends before the literal does."""


def read_literal(text: str, at: int, depth: int = 0) -> tuple[object, int]:
    """The literal at `at` and the position after it.

    >>> read_literal("{'a': [1, (True, None)]} and more", 0)
    ({'a': [1, [True, None]]}, 24)
    """
    at = _space(text, at)
    if at >= len(text):
        raise NotYetError
    if depth > _MAX_DEPTH:
        raise LiteralError
    char = text[at]
    if char in "\"'":
        return _string(text, at)
    if char in "[(":
        return _list(text, at, "]" if char == "[" else ")", depth)
    if char == "{":
        return _dict(text, at, depth)
    word = _WORD.match(text, at)
    if word is not None:
        if word.end() == len(text):
            raise NotYetError
        if word[0] not in _WORDS:
            raise LiteralError
        return _WORDS[word[0]], word.end()
    return _number(text, at)


def _number(text: str, at: int) -> tuple[object, int]:
    match = _NUMBER.match(text, at)
    if match is None:
        raise NotYetError if at + 1 >= len(text) else LiteralError
    if match.end() == len(text):
        raise NotYetError
    digits = match[0].replace("_", "")
    if len(digits) > _MAX_DIGITS:
        raise LiteralError
    if digits.lstrip("+-").isdigit():
        return int(digits), match.end()
    number = float(digits)
    if not math.isfinite(number):
        raise LiteralError
    return number, match.end()


def _string(text: str, at: int) -> tuple[str, int]:
    quote = text[at] * 3 if text.startswith(text[at] * 3, at) else text[at]
    at += len(quote)
    parts: list[str] = []
    while not text.startswith(quote, at):
        if at >= len(text):
            raise NotYetError
        if text[at] != "\\":
            parts.append(text[at])
            at += 1
            continue
        char, at = _escaped(text, at + 1)
        parts.append(char)
    return "".join(parts), at + len(quote)


def _escaped(text: str, at: int) -> tuple[str, int]:
    """What a backslash before `at` makes of what follows."""
    if at >= len(text):
        raise NotYetError
    char = text[at]
    if char not in _HEX:
        return _ESCAPES.get(char, char if char in "\\'\"/" else "\\" + char), at + 1
    digits = text[at + 1 : at + 1 + _HEX[char]]
    if len(digits) < _HEX[char]:
        raise NotYetError
    try:
        char = chr(int(digits, 16))
    except (ValueError, OverflowError):
        raise LiteralError from None
    return char.encode("utf-8", "replace").decode(), at + 1 + len(digits)


def _list(text: str, at: int, closing: str, depth: int) -> tuple[list[object], int]:
    items: list[object] = []
    at = _space(text, at + 1)
    while not text.startswith(closing, at):
        item, at = read_literal(text, at, depth + 1)
        items.append(item)
        at = _comma(text, at, closing)
    return items, at + 1


def _dict(text: str, at: int, depth: int) -> tuple[dict[str, object], int]:
    items: dict[str, object] = {}
    at = _space(text, at + 1)
    while not text.startswith("}", at):
        key, at = read_literal(text, at, depth + 1)
        at = _space(text, at)
        if at >= len(text):
            raise NotYetError
        if text[at] != ":" or not isinstance(key, str | int | float):
            raise LiteralError
        items[str(key)], at = read_literal(text, at + 1, depth + 1)
        at = _comma(text, at, "}")
    return items, at + 1


def _comma(text: str, at: int, closing: str) -> int:
    """Past a comma, or at the closing bracket."""
    at = _space(text, at)
    if at >= len(text):
        raise NotYetError
    if text[at] == ",":
        return _space(text, at + 1)
    if text[at] != closing:
        raise LiteralError
    return at


def _space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
