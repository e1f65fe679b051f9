"""Which modules a list of `targets` or `ignore` means: exact names, class names, and `re:` patterns.

A pattern comes with the model file, so one that could take for ever to match is refused: nothing published needs a
repeated group or more than a few wildcards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from nonet.core.errors import ModelFileError, UnsupportedModelError

__all__ = ["matches"]

MAX_WILDCARDS = 4
MAX_GROUPS = 4
MAX_CHARACTERS = 500


def matches(module: str, entries: Iterable[object], where: str) -> bool:
    """Whether an entry means the module. A pattern is anchored at the start of the name, not at its end."""
    return any(_matches_one(module, entry, where) for entry in entries)


def _matches_one(module: str, entry: object, where: str) -> bool:
    if not isinstance(entry, str):
        raise ModelFileError(f"{where}: {entry!r} is no module name or pattern")
    if entry.startswith("re:"):
        return _pattern(entry.removeprefix("re:"), where).match(module) is not None
    return entry in (module, _class_name(module))


def _class_name(module: str) -> str:
    """What the module is in the model it was saved from."""
    return "Embedding" if module.endswith("embed_tokens") else "Linear"


def _pattern(text: str, where: str) -> re.Pattern[str]:
    wildcards = sum(text.count(sign) for sign in "*+?{")
    if (
        len(text) > MAX_CHARACTERS
        or wildcards > MAX_WILDCARDS
        or text.count("(") > MAX_GROUPS
        or re.search(r"\)[*+?{]", text)
    ):
        raise UnsupportedModelError(
            f"{where}: the pattern {text[:80]!r} is not read: at most {MAX_CHARACTERS} characters, {MAX_WILDCARDS} "
            f"wildcards and {MAX_GROUPS} groups, none of them repeated"
        )
    try:
        return re.compile(text)
    except (re.error, OverflowError) as error:
        raise ModelFileError(f"{where}: {text!r} is no pattern: {error}") from None
