"""Names of properties that a schema is about: for objects that are held to a few names instead of patterns of names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nonet.grammar.schema_opposites import matching

__all__ = ["universe"]

Schema = Any
MOST_PATTERNS = 24  # that are tried with each other


def universe(schema: Schema) -> list[str]:
    """Names that a schema mentions, and some that match one of its patterns or two of them at once."""
    named, patterns = _mentioned(schema)
    plain_texts = {pattern: pattern.strip("^$") for pattern in sorted(patterns)[:MOST_PATTERNS]}
    for pattern in patterns:
        named |= set(matching(pattern)[:4])
    for first, before in plain_texts.items():
        for second, after in plain_texts.items():
            both = matching(first, known=[before + after])
            named |= set(matching(second, known=both))
    return sorted(named)


def _mentioned(schema: Schema) -> tuple[set[str], set[str]]:
    """Names of properties, and patterns of names."""
    if isinstance(schema, list):
        found = [_mentioned(one) for one in schema]
        return set().union(*(a for a, _ in found)), set().union(*(b for _, b in found))
    if not isinstance(schema, Mapping):
        return set(), set()
    inner = [_mentioned(one) for key, one in schema.items() if key not in ("enum", "const")]
    named = set().union(*(a for a, _ in inner)) | {
        n for n in schema.get("required", ()) if isinstance(n, str)
    }
    patterns = set().union(*(b for _, b in inner)) | set(schema.get("patternProperties", ()))
    for key in ("properties", "dependencies", "dependentRequired", "dependentSchemas"):
        named |= set(schema[key]) if isinstance(schema.get(key), Mapping) else set()
    names = schema.get("propertyNames")
    while isinstance(names, Mapping):
        named |= {n for n in [names.get("const"), *names.get("enum", ())] if isinstance(n, str)}
        patterns |= {names["pattern"]} if "pattern" in names else set()
        names = names.get("not")
    return named, patterns
