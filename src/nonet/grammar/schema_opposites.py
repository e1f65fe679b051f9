"""The opposite of each plain keyword of JSON Schema, as plain schemas of single types.

`{"minimum": 3}` is broken by a number below 3 and by nothing else, so its opposite is numbers below 3. Where a keyword
is broken in many ways, some of them are named: an object that lacks a pattern's properties, a text of another length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from nonet.grammar.schema_values import Root, holds

__all__ = ["FORMATS", "TYPES", "matching", "modern", "opposites", "others", "types_of"]

Schema = Any
TYPES = ("null", "boolean", "number", "string", "array", "object")
FORMATS = {
    "date-time",
    "date",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "time",
    "unknown",
    "uri",
    "uuid",
}
# Tried where some text is wanted that does or does not match an expression.
TEXTS = (*"abcdxzAZ0123456789-_ ", "aa", "ab", "ba", "00", "abc", "0a", "a0", "")


def types_of(schema: Mapping[str, Any]) -> set[str]:
    """The types that a schema's own keywords allow."""
    if "const" in schema or "enum" in schema:
        listed = [schema["const"]] if "const" in schema else schema["enum"]
        return {_type_of(value) for value in listed}
    kinds = schema.get("type", list(TYPES))
    kinds = kinds if isinstance(kinds, list) else [kinds]
    return {"number" if kind == "integer" else kind for kind in kinds}


def others(kinds: set[str]) -> list[str]:
    """The remaining types, in order."""
    return [kind for kind in TYPES if kind not in kinds]


def opposites(
    schema: Mapping[str, Any],
    opposite: Callable[[Schema], Schema],
    root: Root,
    names: Sequence[str] | None = None,
) -> Iterator[Schema]:
    """For each way named here in which a value can break the schema's own keywords, what does.

    `names` are the only ones that objects may have, where that is settled.
    """
    if "type" in schema:
        left = others(types_of({"type": schema["type"]}))
        if left:
            yield {"type": left}
    if "const" in schema or "enum" in schema:
        yield from _unlisted([schema["const"]] if "const" in schema else schema["enum"])
    yield from _numbers(schema)
    yield from _texts(schema, root)
    yield from _arrays(schema, opposite)
    yield from _objects(schema, opposite, root, names)


def _unlisted(values: Sequence[Any]) -> Iterator[Schema]:
    """Other types, and of the same types what lies outside of all that is listed."""
    left = others({_type_of(value) for value in values})
    if left:
        yield {"type": left}
    flags = {value for value in values if isinstance(value, bool)}
    if len(flags) == 1:
        yield {"enum": [not flags.pop()]}
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if numbers:
        yield {"type": "number", "exclusiveMinimum": max(numbers)}
        yield {"type": "number", "exclusiveMaximum": min(numbers)}
    lengths = [len(value) for value in values if isinstance(value, str)]
    if lengths:
        yield {"type": "string", "minLength": max(lengths) + 1}
        if min(lengths):
            yield {"type": "string", "maxLength": min(lengths) - 1}
    sizes = [len(value) for value in values if isinstance(value, list)]
    if sizes:
        yield {"type": "array", "minItems": max(sizes) + 1}
        if min(sizes):
            yield {"type": "array", "maxItems": min(sizes) - 1}
    keyed = [value for value in values if isinstance(value, Mapping)]
    if keyed:
        if all(keyed):
            yield {"type": "object", "additionalProperties": False}
        name = next(name for name in _fresh() if not any(name in value for value in keyed))
        yield {"type": "object", "properties": {name: True}, "required": [name]}


def _numbers(schema: Mapping[str, Any]) -> Iterator[Schema]:
    for keyword, broken in (
        ("minimum", "exclusiveMaximum"),
        ("exclusiveMinimum", "maximum"),
        ("maximum", "exclusiveMinimum"),
        ("exclusiveMaximum", "minimum"),
    ):
        if keyword in schema:
            yield {"type": "number", broken: schema[keyword]}
    step = schema.get("multipleOf")
    if isinstance(step, (int, float)) and step > 0:
        found = [n for n in range(-12, 48) if abs(n / step - round(n / step)) > 1e-9]
        yield {"enum": found or [step * part for part in (0.5, 1.5, -0.5, 2.5)]}


def _texts(schema: Mapping[str, Any], root: Root) -> Iterator[Schema]:
    if schema.get("minLength", 0) > 0:
        yield {"type": "string", "maxLength": schema["minLength"] - 1}
    if "maxLength" in schema:
        yield {"type": "string", "minLength": schema["maxLength"] + 1}
    if "pattern" in schema:
        pattern = {"pattern": schema["pattern"]}
        broken = [text for text in TEXTS if holds(text, pattern, root) is False]
        if broken:
            yield {"type": "string", "enum": broken}


def _arrays(schema: Mapping[str, Any], opposite: Callable[[Schema], Schema]) -> Iterator[Schema]:
    if schema.get("minItems", 0) > 0:
        yield {"type": "array", "maxItems": schema["minItems"] - 1}
    if "maxItems" in schema:
        yield {"type": "array", "minItems": schema["maxItems"] + 1}
    if schema.get("uniqueItems"):
        yield {"type": "array", "prefixItems": [{"const": None}] * 2, "minItems": 2}
    first = schema.get("prefixItems", [])
    places = list(enumerate(first))
    if "items" in schema:
        places.append((len(first), schema["items"]))
    for place, one in places:
        broken = opposite(one)
        if broken is not False:
            yield {"type": "array", "prefixItems": [True] * place + [broken], "minItems": place + 1}


def _objects(
    schema: Mapping[str, Any],
    opposite: Callable[[Schema], Schema],
    root: Root,
    universe: Sequence[str] | None,
) -> Iterator[Schema]:
    for name in schema.get("required", ()):
        yield {"type": "object", "properties": {name: False}}
    named = schema.get("properties", {})
    for name, one in named.items():
        yield from _with(name, opposite(one))
    patterns = schema.get("patternProperties", {})
    for pattern, one in patterns.items():
        names = matching(pattern, root, universe)
        for name in names[: 1 if universe is None else 12]:
            yield from _with(name, opposite(one))
    if "additionalProperties" in schema:
        for name in _fresh() if universe is None else universe:
            hits = [holds(name, {"pattern": pattern}, root) for pattern in patterns]
            if name not in named and not any(hit is not False for hit in hits):
                yield from _with(name, opposite(schema["additionalProperties"]))
                break
    if schema.get("minProperties", 0) == 1:
        yield {"type": "object", "additionalProperties": False}
    if "maxProperties" in schema:
        names = [f"p{number}" for number in range(min(schema["maxProperties"] + 1, 64))]
        if len(names) > schema["maxProperties"]:
            yield {"type": "object", "properties": dict.fromkeys(names, True), "required": names}
    if "propertyNames" in schema:
        known = TEXTS if universe is None else universe
        broken = [text for text in known if holds(text, schema["propertyNames"], root) is False]
        for name in broken[:12]:
            yield from _with(name, True)


def _with(name: str, broken: Schema) -> Iterator[Schema]:
    if broken is not False:
        yield {"type": "object", "properties": {name: broken}, "required": [name]}


def matching(
    pattern: str, root: Root | None = None, known: Sequence[str] | None = None
) -> list[str]:
    """Texts that match an expression, of the given ones or of a few made up for it."""
    tried = known if known is not None else (pattern.strip("^$"), *TEXTS)
    asked = {"pattern": pattern}
    return [text for text in tried if text and holds(text, asked, root or Root({}))]


def _fresh() -> Iterator[str]:
    """Names that a schema is unlikely to use; without end."""
    yield from ("other", "more", "extra")
    number = 0
    while True:
        number += 1
        yield f"other{number}"


def _type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def modern(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema's own keywords as 2020-12 spells them."""
    found = dict(schema)
    for bound, strict in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        flag = found.get(strict)
        if isinstance(flag, bool):
            del found[strict]
            if flag and bound in found:
                found[strict] = found.pop(bound)
    if isinstance(found.get("items"), list):
        found["prefixItems"] = found.pop("items")
        if "additionalItems" in found:
            found["items"] = found["additionalItems"]
    return found
