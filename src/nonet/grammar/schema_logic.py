"""JSON Schema's logic (`not`, `oneOf`, `if`, `contains`, dependencies) in terms of allOf, anyOf and plain keywords.

Idea: `not` moves inwards until it stands before single keywords, whose opposites are plain keywords of each type. Every
step keeps or narrows what is allowed, so that what satisfies the result satisfies the given schema; where nothing is
left, or a keyword has no such form, the schema is refused. Listed values (enum, const) are tried one by one instead.
Reference: JSON Schema 2020-12 and drafts 4 to 7, whose spellings become those of 2020-12 on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from nonet.core.errors import InvalidRequestError
from nonet.grammar.schema_names import universe
from nonet.grammar.schema_opposites import FORMATS, modern, opposites, types_of
from nonet.grammar.schema_parts import all_of, any_of, counted
from nonet.grammar.schema_values import Root, holds, same

__all__ = ["plain"]

Schema = Any  # a mapping, True or False
HARD = (
    "not",
    "oneOf",
    "if",
    "contains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "propertyNames",
)
DROPPED = ("$schema", "$id", "id", "$comment", "definitions", "$defs", "$anchor", "then", "else", "minContains",
           "maxContains", "additionalItems", "title", "description", "default", "examples")  # fmt: skip
EACH = ("properties", "patternProperties")
LISTS = ("allOf", "anyOf", "prefixItems")
SINGLE = ("items", "additionalProperties")
MOST_NODES = 4_000  # of the result; `not` and `oneOf` can multiply
DEPTH = 12  # of references within opposites
PLACES = 2  # at which an element that an array must contain may stand
OBJECT = {"properties", "patternProperties", "additionalProperties", "propertyNames", "required"}


def plain(schema: Mapping[str, Any], *, is_named: bool = False) -> dict[str, Any]:
    """The schema without its logic; the given one where it has none.

    With `is_named`, objects are held to a few names: those that the schema mentions, and some that its patterns match.
    Patterns of names then are no patterns any more, and whatever meets them can be told apart.
    """
    if not is_named and not _has_logic(schema):
        return dict(schema)
    writer = _Writer(Root(schema), universe(schema) if is_named else None)
    found = writer.lowered(schema)
    if found is False:
        raise InvalidRequestError(
            "the schema allows nothing that could be told from what it forbids"
        )
    found = {} if found is True else found
    return {**found, "$defs": writer.definitions} if writer.definitions else found


def _has_logic(schema: Schema) -> bool:
    if isinstance(schema, Sequence) and not isinstance(schema, str):
        return any(_has_logic(one) for one in schema)
    if not isinstance(schema, Mapping):
        return False
    if any(key in schema for key in HARD) or schema.get("uniqueItems") is True:
        return True
    if _odd_format(schema) or _odd_count(schema):
        return True
    return any(
        _has_logic(value)
        for key, value in schema.items()
        if key not in ("enum", "const", "default", "examples")
    )


def _odd_format(schema: Mapping[str, Any]) -> bool:
    """A format that the library does not know says nothing, as the standard has it."""
    return isinstance(schema.get("format"), str) and schema["format"] not in FORMATS


def _odd_count(schema: Mapping[str, Any]) -> bool:
    """The library counts properties only where all that are named are required."""
    named = schema.get("properties")
    if not isinstance(named, Mapping) or not {"minProperties", "maxProperties"} & schema.keys():
        return False
    return bool(named.keys() - set(schema.get("required", ())))


class _Writer:
    """One schema's rewriting. What references point at is rewritten once, under a name of its own."""

    def __init__(self, root: Root, names: Sequence[str] | None = None) -> None:
        self._root = root
        self._universe = names
        self._names: dict[str, str] = {}
        self._left = MOST_NODES
        self.definitions: dict[str, Schema] = {}

    def lowered(self, schema: Schema) -> Schema:
        """What allows no more than the schema and holds no logic."""
        if isinstance(schema, bool) or schema == {}:
            return schema
        if not isinstance(schema, Mapping):
            raise InvalidRequestError("a part of the schema is no schema")
        self._count()
        values = self._listed(schema) if _has_logic(schema) or self._names_logic(schema) else None
        if values is not None:
            kept = [one for one in values if holds(one, schema, self._root)]
            return {"enum": kept} if kept else False
        if "$ref" in schema:
            parts = self._referring(schema)
            return parts[0] if len(parts) == 1 else all_of({}, parts)
        rest = {k: v for k, v in modern(schema).items() if k not in HARD and k not in DROPPED}
        if _odd_format(rest):
            del rest["format"]
        if rest.pop("uniqueItems", False):
            self._distinct(rest)
        parts = list(self._parts(modern(schema)))
        if self._universe is not None and OBJECT & schema.keys():
            self._spell(rest, schema)
        if _odd_count(rest):
            parts += counted(rest)
        for key in EACH:
            if key in rest:
                rest[key] = {name: self.lowered(one) for name, one in rest[key].items()}
        for key in LISTS:
            if key in rest:
                rest[key] = [self.lowered(one) for one in rest[key]]
        for key in SINGLE:
            if key in rest:
                rest[key] = self.lowered(rest[key])
        if "anyOf" in rest:
            rest["anyOf"] = [one for one in rest["anyOf"] if one is not False]
        if False in parts or False in rest.get("allOf", ()) or rest.get("anyOf") == []:
            return False
        return all_of(rest, [one for one in parts if one is not True])

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise InvalidRequestError("the schema's not, oneOf and if multiply into too many cases")

    def _ask(self) -> None:
        self._root.left -= 1
        if self._root.left < 0:
            raise InvalidRequestError("the schema's references lead on for too long")

    def _spell(self, rest: dict[str, Any], schema: Mapping[str, Any]) -> None:
        """In `rest`, for each name that there is, what its value must be."""
        patterns = schema.get("patternProperties", {})
        named: dict[str, Schema] = {}
        for name in self._universe or ():
            parts = [schema["properties"][name]] if name in schema.get("properties", {}) else []
            hits = [holds(name, {"pattern": pattern}, self._root) for pattern in patterns]
            parts += [
                one for one, hit in zip(patterns.values(), hits, strict=True) if hit is not False
            ]
            is_known = holds(name, schema.get("propertyNames", True), self._root)
            if not parts:
                parts = [schema.get("additionalProperties", True)]
            named[name] = {"allOf": parts} if is_known else False
        rest.pop("patternProperties", None)
        rest |= {"properties": named, "additionalProperties": False}

    def _distinct(self, rest: dict[str, Any]) -> None:
        """No grammar tells whether elements differ: one element at most, or of listed ones the first so many."""
        least = rest.get("minItems", 0)
        if least <= 1:
            rest["maxItems"] = min(1, rest.get("maxItems", 1))
            return
        listed = self._listed(rest.get("items", True)) or []
        values = [v for i, v in enumerate(listed) if not any(same(v, w) for w in listed[:i])]
        if len(values) < least or "prefixItems" in rest:
            raise InvalidRequestError(
                "uniqueItems cannot be held to for two and more elements that are not listed"
            )
        rest |= {"prefixItems": [{"const": value} for value in values[:least]], "maxItems": least}

    def _names_logic(self, schema: Mapping[str, Any]) -> bool:
        return "$ref" in schema or any(
            "$ref" in one for one in schema.get("allOf", ()) if isinstance(one, Mapping)
        )

    def _listed(self, schema: Schema, depth: int = 0) -> list[Any] | None:
        """The few values that the schema could allow, if it lists them."""
        self._ask()
        if not isinstance(schema, Mapping) or depth > DEPTH:
            return None
        if "const" in schema:
            return [schema["const"]]
        if "enum" in schema:
            return list(schema["enum"])
        for keyword in ("anyOf", "oneOf"):
            options = [self._listed(one, depth + 1) for one in schema.get(keyword, ())]
            if options and None not in options:
                return [value for values in options for value in values or ()]
        inner = list(schema.get("allOf", ()))
        if "$ref" in schema:
            inner = self._opened(schema)
        found = (self._listed(one, depth + 1) for one in inner)
        return next((one for one in found if one is not None), None)

    def _opened(self, schema: Mapping[str, Any]) -> list[Schema]:
        try:
            return self._root.opened(schema)
        except KeyError:
            raise InvalidRequestError(
                f"the schema refers to {str(schema['$ref'])[:100]!r}, which is not in it"
            ) from None

    def _referring(self, schema: Mapping[str, Any]) -> list[Schema]:
        """A reference to the rewritten target, and what stands beside it."""
        _, *beside = self._opened(schema)
        name = self._names.get(schema["$ref"])
        if name is None:
            name = self._names[schema["$ref"]] = f"d{len(self._names)}"
            self.definitions[name] = True
            self.definitions[name] = self.lowered(self._root.target(schema["$ref"]))
        return [{"$ref": f"#/$defs/{name}"}, *(self.lowered(one) for one in beside)]

    def _parts(self, schema: Mapping[str, Any]) -> Iterator[Schema]:
        """What the keywords of logic say, each as a schema of its own."""
        if "not" in schema:
            yield any_of(self.negated(schema["not"]))
        if "oneOf" in schema:
            yield self._one_of(schema["oneOf"])
        if "if" in schema:
            then, other = schema.get("then", True), schema.get("else", True)
            yes = all_of({}, [self.lowered(schema["if"]), self.lowered(then)])
            no = [all_of({}, [one, self.lowered(other)]) for one in self.negated(schema["if"])]
            yield any_of([yes, *no])
        if "contains" in schema:
            yield self._contains(schema)
        for keyword in ("dependencies", "dependentRequired", "dependentSchemas"):
            for name, wanted in schema.get(keyword, {}).items():
                wanted = {"required": wanted} if isinstance(wanted, list) else wanted
                has = all_of({"required": [name]}, [self.lowered(wanted)])
                yield any_of([{"properties": {name: False}}, has])
        if "propertyNames" in schema and self._universe is None:
            yield self._names_like(schema["propertyNames"])

    def _one_of(self, options: Sequence[Schema]) -> Schema:
        """Each option without the others; options that cannot hold together need no opposites."""
        found = []
        for number, option in enumerate(options):
            against = [
                any_of(self.negated(other))
                for place, other in enumerate(options)
                if place != number and not self._apart(option, other)
            ]
            found.append(all_of({}, [self.lowered(option), *against]))
        return any_of(found)

    def _apart(self, first: Schema, second: Schema) -> bool:
        """Whether it is plain to see that no value satisfies both."""
        self._ask()
        a, b = self._flat(first), self._flat(second)
        if a is None or b is None:
            return False
        if not types_of(a) & types_of(b):
            return True
        mine, yours = self._listed(a), self._listed(b)
        if mine is not None and yours is not None:
            return not any(same(x, y) for x in mine for y in yours)
        if types_of(a) | types_of(b) != {"object"}:
            return False
        shared = set(a.get("required", ())) & set(b.get("required", ()))
        if any(
            self._apart(a["properties"][name], b["properties"][name])
            for name in shared & a.get("properties", {}).keys() & b.get("properties", {}).keys()
        ):
            return True
        return any(
            one.get("additionalProperties") is False
            and not one.get("patternProperties")
            and set(other.get("required", ())) - one.get("properties", {}).keys()
            for one, other in ((a, b), (b, a))
        )

    def _flat(self, schema: Schema, depth: int = 0) -> Mapping[str, Any] | None:
        """A schema behind its references; None where that says too little."""
        if not isinstance(schema, Mapping) or depth > DEPTH:
            return None
        return self._flat(self._opened(schema)[0], depth + 1) if "$ref" in schema else schema

    def _contains(self, schema: Mapping[str, Any]) -> Schema:
        """The elements that must be there come early, after those whose place is given."""
        least, before = schema.get("minContains", 1), len(schema.get("prefixItems", ()))
        wanted = self.lowered(schema["contains"])
        places: list[dict[str, Any]] = [{}]
        if least:
            places = [
                {"prefixItems": [True] * at + [wanted] * least, "minItems": at + least}
                for at in range(before, before + PLACES)
            ]
        if "maxContains" in schema:
            if before or not schema["maxContains"] - least >= 0:
                raise InvalidRequestError(
                    "maxContains beside items of given places cannot be held to"
                )
            places = [{**places[0], "items": any_of(self.negated(schema["contains"]))}]
        return any_of(places) if wanted is not False or not least else False

    def _names_like(self, names: Schema) -> Schema:
        names = self._flat(names) if isinstance(names, Mapping) else names
        if isinstance(names, Mapping):
            names = {k: v for k, v in names.items() if k not in DROPPED and not _odd_format({k: v})}
        if names is True or names == {}:
            return True
        values = self._listed(names) if isinstance(names, Mapping) else []
        if values is not None:
            kept = [v for v in values if isinstance(v, str) and holds(v, names, self._root)]
            return {"properties": dict.fromkeys(kept, True), "additionalProperties": False}
        if isinstance(names, Mapping) and set(names) <= {"pattern", "type"} and "pattern" in names:
            return {"patternProperties": {names["pattern"]: True}, "additionalProperties": False}
        raise InvalidRequestError(
            "propertyNames can be held to as a pattern or a list of names only"
        )

    def negated(self, schema: Schema, depth: int = 0) -> list[Schema]:
        """Schemas of which each allows only what the given one forbids. Annotations (`format` too) forbid nothing."""
        if isinstance(schema, bool):
            return [] if schema else [True]
        if not isinstance(schema, Mapping) or depth > DEPTH:
            return []
        self._count()
        if "$ref" in schema:
            return [no for one in self._opened(schema) for no in self.negated(one, depth + 1)]
        schema = modern(schema)
        found: list[Schema] = []
        for one in schema.get("allOf", ()):
            found += self.negated(one, depth + 1)
        if "anyOf" in schema:
            found.append(self._none_of(schema["anyOf"], depth))
        if "oneOf" in schema:
            found.append(self._none_of(schema["oneOf"], depth))
            found += [all_of({}, [self.lowered(a), self.lowered(b)]) for a, b in pairwise(schema["oneOf"])
                      if not self._apart(a, b)]  # fmt: skip
        if "not" in schema:
            found.append(self.lowered(schema["not"]))
        if "if" in schema:
            yes, then = schema["if"], schema.get("then", True)
            found += [all_of({}, [self.lowered(yes), no]) for no in self.negated(then, depth + 1)]
            for no in self.negated(schema.get("else", True), depth + 1):
                found += [all_of({}, [one, no]) for one in self.negated(yes, depth + 1)]
        if "contains" in schema and schema.get("minContains", 1) == 1:
            found.append(
                {"type": "array", "items": any_of(self.negated(schema["contains"], depth + 1))}
            )
        depends = {**schema.get("dependentSchemas", {}), **schema.get("dependentRequired", {})}
        if self._root.is_old:
            depends |= schema.get("dependencies", {})
        for name, wanted in depends.items():
            wanted = {"required": wanted} if isinstance(wanted, list) else wanted
            has = {"type": "object", "required": [name]}
            found += [all_of(has, [no]) for no in self.negated(wanted, depth + 1)]
        names = self._universe
        found += opposites(
            schema, lambda one: any_of(self.negated(one, depth + 1)), self._root, names
        )
        return [one for one in found if one is not False]

    def _none_of(self, options: Sequence[Schema], depth: int) -> Schema:
        return all_of({}, [any_of(self.negated(one, depth + 1)) for one in options])
