"""Does a value satisfy a JSON Schema? For the few values that a schema lists, so that hard keywords need no grammar.

`holds` answers None where it does not know: a keyword beyond it, a reference that is not local, an odd pattern.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Root", "holds", "same"]

DEPTH = 24  # of references within references, before it is given up
BEYOND = {"unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef"}
MOST_QUESTIONS = 200_000  # about one schema, before nothing is known any more
MOST_TEXT = 64  # characters that a pattern is tried on
MOST_PATTERN = 400  # characters of it


class Root:
    """A whole schema, for its references.

    Drafts up to 7 ignore what stands beside a `$ref`, and later ones the keyword `dependencies`.
    """

    def __init__(self, schema: Any) -> None:
        self.schema = schema
        self.left = MOST_QUESTIONS
        draft = str(schema.get("$schema", "")) if isinstance(schema, Mapping) else ""
        self.is_old = any(f"draft-0{n}" in draft for n in (3, 4, 6, 7))

    def target(self, reference: Any) -> Any:
        """What a local reference points at; KeyError for another one."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise KeyError(reference)
        found = self.schema
        for part in reference[1:].split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~").replace("%25", "%").replace("%22", '"')
            if isinstance(found, list):
                if not key.isdigit() or int(key) >= len(found):
                    raise KeyError(reference)
                found = found[int(key)]
            elif isinstance(found, Mapping) and key in found:
                found = found[key]
            else:
                raise KeyError(reference)
        if not isinstance(found, (bool, Mapping)) or (reference != "#" and "/" not in reference):
            raise KeyError(reference)
        return found

    def opened(self, schema: Mapping[str, Any]) -> list[Any]:
        """A schema with a reference, as the schemas that must all hold."""
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        aim = self.target(schema["$ref"])
        return [aim] if self.is_old or not rest else [aim, rest]


def holds(value: Any, schema: Any, root: Root, depth: int = 0) -> bool | None:
    """Whether the value satisfies the schema.

    >>> holds(3, {"not": {"multipleOf": 2}}, Root({})), holds(3, {"unevaluatedItems": False}, Root({}))
    (True, None)
    """
    if isinstance(schema, bool):
        return schema
    root.left -= 1
    if not isinstance(schema, Mapping) or depth > DEPTH or root.left < 0 or BEYOND & schema.keys():
        return None
    if "$ref" in schema:
        try:
            return _all(holds(value, one, root, depth + 1) for one in root.opened(schema))
        except KeyError:
            return None
    return _all(
        (
            _applied(value, schema, root, depth),
            _of_any(value, schema),
            _of_number(value, schema),
            _of_string(value, schema),
            _of_array(value, schema, root, depth),
            _of_object(value, schema, root, depth),
        )
    )


def same(a: Any, b: Any) -> bool:
    """Equality of JSON: 1 is 1.0 and neither is true."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


def _all(answers: Iterable[bool | None]) -> bool | None:
    is_sure = True
    for answer in answers:
        if answer is False:
            return False
        is_sure &= answer is not None
    return True if is_sure else None


def _opposite(answer: bool | None) -> bool | None:
    return None if answer is None else not answer


def _any(answers: Iterable[bool | None]) -> bool | None:
    return _opposite(_all(_opposite(answer) for answer in answers))


def _applied(value: Any, schema: Mapping[str, Any], root: Root, depth: int) -> bool | None:
    def ask(one: Any) -> bool | None:
        return holds(value, one, root, depth + 1)

    parts: list[bool | None] = [ask(one) for one in schema.get("allOf", ())]
    if "anyOf" in schema:
        parts.append(_any(ask(one) for one in schema["anyOf"]))
    if "oneOf" in schema:
        found = [ask(one) for one in schema["oneOf"]]
        parts.append(None if None in found else found.count(True) == 1)
    if "not" in schema:
        parts.append(_opposite(ask(schema["not"])))
    if "if" in schema:
        condition = ask(schema["if"])
        branch = schema.get("then" if condition else "else", True)
        parts.append(None if condition is None else ask(branch))
    return _all(parts)


def _is(value: Any, kind: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    match kind:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return is_number and value == int(value)
        case "number":
            return is_number
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
    return kind == "object" and isinstance(value, Mapping)


def _of_any(value: Any, schema: Mapping[str, Any]) -> bool:
    kinds = schema.get("type", [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if kinds and not any(_is(value, kind) for kind in kinds):
        return False
    if "const" in schema and not same(value, schema["const"]):
        return False
    return "enum" not in schema or any(same(value, one) for one in schema["enum"])


def _of_number(value: Any, schema: Mapping[str, Any]) -> bool:
    if not _is(value, "number"):
        return True
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if isinstance(above, bool):
        low, above = (None, low) if above else (low, None)
    if isinstance(below, bool):
        high, below = (None, high) if below else (high, None)
    step = schema.get("multipleOf")
    return (
        (low is None or value >= low)
        and (above is None or value > above)
        and (high is None or value <= high)
        and (below is None or value < below)
        and (step is None or abs(value / step - round(value / step)) < 1e-9)
    )


def _of_string(value: Any, schema: Mapping[str, Any]) -> bool | None:
    if not isinstance(value, str):
        return True
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        return False
    return _matches(schema["pattern"], value) if "pattern" in schema else True


def _matches(pattern: Any, text: str) -> bool | None:
    """Python's expressions are those of JSON Schema but for rarities; what fails to compile is not known."""
    if len(text) > MOST_TEXT or not isinstance(pattern, str) or not _is_quick(pattern):
        return None
    try:
        return re.search(pattern, text) is not None
    except (re.error, RecursionError, OverflowError):
        return None


def _is_quick(pattern: str) -> bool:
    """Whether no text of MOST_TEXT characters can keep the search busy: it backtracks, and a client chose the pattern.

    >>> _is_quick("^a.*z$"), _is_quick("(a+)+$"), _is_quick("a*a*a*a*b")
    (True, False, False)
    """
    if len(pattern) > MOST_PATTERN or re.search(r"\)[*+?{]", pattern):
        return False
    return len(re.findall(r"[*+{]", pattern)) <= 3 and pattern.count("|") <= 8


def _of_array(value: Any, schema: Mapping[str, Any], root: Root, depth: int) -> bool | None:
    if not isinstance(value, list):
        return True
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        return False
    if schema.get("uniqueItems") and any(
        same(a, b) for i, a in enumerate(value) for b in value[:i]
    ):
        return False
    items = schema.get("items", True)
    first, rest = schema.get("prefixItems", []), items
    if isinstance(items, list):
        first, rest = items, schema.get("additionalItems", True)
    parts = [
        holds(one, first[i] if i < len(first) else rest, root, depth + 1)
        for i, one in enumerate(value)
    ]
    if "contains" in schema:
        found = [holds(one, schema["contains"], root, depth + 1) for one in value]
        least, most = schema.get("minContains", 1), schema.get("maxContains", len(value))
        parts.append(None if None in found else least <= found.count(True) <= most)
    return _all(parts)


def _of_object(value: Any, schema: Mapping[str, Any], root: Root, depth: int) -> bool | None:
    if not isinstance(value, Mapping):
        return True
    if not schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value)):
        return False
    if any(name not in value for name in schema.get("required", ())):
        return False
    parts: list[bool | None] = []
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for name, one in value.items():
        if name in named:
            parts.append(holds(one, named[name], root, depth + 1))
        hits = {pattern: _matches(pattern, name) for pattern in patterns}
        if None in hits.values():
            return None
        parts += [holds(one, patterns[p], root, depth + 1) for p, is_hit in hits.items() if is_hit]
        if name not in named and not any(hits.values()):
            parts.append(holds(one, schema.get("additionalProperties", True), root, depth + 1))
        parts.append(holds(name, schema.get("propertyNames", True), root, depth + 1))
    first = 0 if root.is_old else 1
    for keyword in ("dependencies", "dependentRequired", "dependentSchemas")[first:]:
        for name, wanted in schema.get(keyword, {}).items():
            if name in value:
                wanted = {"required": wanted} if isinstance(wanted, list) else wanted
                parts.append(holds(value, wanted, root, depth + 1))
    return _all(parts)
