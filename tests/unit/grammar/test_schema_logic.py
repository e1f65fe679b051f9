"""Schemas without their logic allow nothing that the given ones forbid, as the jsonschema package judges."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import jsonschema
import pytest
from grammar_cases import EOS, compiler, legal, tokenizer

from nonet.core.errors import InvalidRequestError
from nonet.core.grammar import Grammar
from nonet.grammar import schema_logic
from nonet.grammar.json_schema import alternatives
from nonet.grammar.schema_logic import plain
from nonet.grammar.schema_values import Root, holds

OLD = "http://json-schema.org/draft-07/schema#"
AB = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
SCHEMAS: dict[str, dict[str, Any]] = {
    "not type": {"not": {"type": ["string", "object", "array"]}},
    "not const": {"type": "integer", "minimum": 0, "maximum": 9, "not": {"const": 4}},
    "not enum": {"type": "string", "maxLength": 4, "not": {"enum": ["a", "bb"]}},
    "not bounds": {"type": "number", "not": {"minimum": 3, "exclusiveMaximum": 7}, "maximum": 12},
    "not pattern": {"type": "string", "not": {"pattern": "^a"}},
    "not length": {"type": "string", "maxLength": 5, "not": {"minLength": 2, "maxLength": 3}},
    "not items": {
        "type": "array",
        "maxItems": 3,
        "items": {"enum": [1, 2, "a"]},
        "not": {"items": {"type": "integer"}},
    },
    "not required": {**AB, "additionalProperties": False, "not": {"required": ["a"]}},
    "not properties": {
        **AB,
        "required": ["a"],
        "not": {"properties": {"a": {"maximum": 5}}},
        "additionalProperties": False,
    },
    "not anyOf": {"type": "integer", "not": {"anyOf": [{"minimum": 5}, {"maximum": -5}]}},
    "not not": {"not": {"not": {"enum": [1, "a", None]}}},
    "not unique": {
        "type": "array",
        "items": {"enum": [None, 1]},
        "maxItems": 3,
        "not": {"uniqueItems": True},
    },
    "not in names": {
        "type": "object",
        "additionalProperties": {"enum": [1]},
        "not": {"propertyNames": {"not": {"const": "a"}}},
        "maxProperties": 1,
    },
    "oneOf apart": {
        "oneOf": [{"type": "integer", "maximum": 5}, {"type": "string", "maxLength": 3}]
    },
    "oneOf over": {
        "type": "integer",
        "oneOf": [{"minimum": 0, "maximum": 6}, {"minimum": 4, "maximum": 9}],
    },
    "oneOf required": {
        **AB,
        "oneOf": [{"required": ["a"]}, {"required": ["b"]}],
        "additionalProperties": False,
    },
    "oneOf marked": {
        "oneOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": kind}},
                "required": ["kind"],
                "additionalProperties": False,
            }
            for kind in ("x", "y")
        ]
    },
    "if": {
        **AB,
        "additionalProperties": False,
        "if": {"required": ["a"]},
        "then": {"required": ["b"]},
    },
    "if else": {
        "type": ["integer", "null"],
        "if": {"type": "null"},
        "then": True,
        "else": {"minimum": 3, "maximum": 9},
    },
    "dependencies": {
        "$schema": OLD,
        **AB,
        "additionalProperties": False,
        "dependencies": {"a": ["b"]},
    },
    "dependentSchemas": {
        **AB,
        "additionalProperties": False,
        "dependentSchemas": {"b": {"properties": {"a": {"minimum": 4}}, "required": ["a"]}},
    },
    "contains": {
        "type": "array",
        "items": {"enum": [1, 2, "a"]},
        "maxItems": 3,
        "contains": {"type": "string"},
    },
    "contains twice": {
        "type": "array",
        "items": {"enum": [1, 2, "a"]},
        "maxItems": 4,
        "allOf": [{"contains": {"type": "string"}}, {"contains": {"const": 2}}],
    },
    "maxContains": {
        "type": "array",
        "items": {"enum": [1, "a"]},
        "maxItems": 3,
        "contains": {"const": 1},
        "maxContains": 1,
    },
    "unique": {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True},
    "two unique": {
        "type": "array",
        "items": {"enum": [1, 2, 1.0]},
        "minItems": 2,
        "uniqueItems": True,
    },
    "listed": {
        "allOf": [
            {"enum": [1, "a", None, {"a": 1}, [1, 1]]},
            {"not": {"type": "string"}},
            {"not": {"type": "object", "required": ["b"]}},
        ]
    },
    "names by pattern": {
        "type": "object",
        "propertyNames": {"pattern": "^[ab]$"},
        "additionalProperties": {"type": "null"},
    },
    "names listed": {
        "type": "object",
        "propertyNames": {"enum": ["a", "ab"]},
        "additionalProperties": {"type": "null"},
    },
    "patterns that meet": {
        "type": "object",
        "patternProperties": {"a": {"minimum": 3}, "b": {"type": "integer"}},
        "additionalProperties": False,
        "required": ["ab"],
        "maxProperties": 5,
    },
    "some property": {**AB, "minProperties": 1, "additionalProperties": False},
    "one property": {**AB, "maxProperties": 1, "additionalProperties": False},
    "behind references": {
        "$ref": "#/definitions/n",
        "definitions": {
            "n": {"not": {"$ref": "#/definitions/s"}, "maximum": 3},
            "s": {"type": ["string", "object", "array"]},
        },
    },
    "old bounds": {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "type": "integer",
        "maximum": 5,
        "not": {"minimum": 2, "exclusiveMinimum": True},
    },
    "old tuple": {
        "$schema": OLD,
        "type": "array",
        "items": [{"enum": [1]}, {"enum": ["a"]}],
        "additionalItems": False,
        "not": {"maxItems": 1},
    },
    "own format": {"type": "string", "format": "house-number", "maxLength": 2},
}
LEAVES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    -6,
    12,
    2.5,
    "",
    "a",
    "bb",
    "b",
    "abcd",
    "x",
]
VALUES = [
    *LEAVES,
    *([one] for one in LEAVES),
    *([a, b] for a in (1, 2, "a", None) for b in (1, 2, "a", None)),
    [1, 2, "a"],
    [1, 1, "a"],
    ["a", 2, 2],
    {},
    *({name: one} for name in ("a", "b", "ab", "c", "kind") for one in (1, 4, 6, None, "x", "y")),
    *({"a": one, "b": other} for one in (1, 4, 6, "x") for other in ("", "bb", 3)),
    {"kind": "x", "c": 1},
    {"ab": 3, "b": 4},
]  # fmt: skip


def satisfies(value: Any, schema: Any) -> bool:
    return bool(jsonschema.validators.validator_for(schema)(schema).is_valid(value))


@pytest.mark.parametrize("name", SCHEMAS)
def test_values_are_judged_alike(name: str) -> None:
    schema = SCHEMAS[name]
    for value in VALUES:
        assert holds(value, schema, Root(schema)) is satisfies(value, schema), value


def widened(schema: Mapping[str, Any], name: str) -> list[Any]:
    """Values that a rewritten schema allows and the given one does not."""
    found = [plain(schema)]
    if name in ("patterns that meet", "not in names", "names by pattern"):
        found.append(plain(schema, is_named=True))
    return [
        value
        for one in found
        for value in VALUES
        if satisfies(value, one) and not satisfies(value, schema)
    ]


@pytest.mark.parametrize("name", SCHEMAS)
def test_nothing_is_allowed_that_was_forbidden(name: str) -> None:
    schema = SCHEMAS[name]
    assert widened(schema, name) == []
    text = json.dumps(plain(schema))
    assert not any(f'"{word}":' in text for word in (*schema_logic.HARD, "uniqueItems"))
    if name not in ("patterns that meet", "two unique"):
        assert any(satisfies(value, plain(schema)) for value in VALUES), "something must be left"


@pytest.mark.parametrize("name", ["oneOf over", "oneOf required"])
def test_a_oneof_taken_for_an_anyof_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_logic._Writer, "_apart", lambda *_: True)
    assert widened(SCHEMAS[name], name)


@pytest.mark.parametrize("name", ["not bounds", "if", "dependencies", "not properties"])
def test_a_lost_opposite_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`not` read as if the schema behind it allowed nothing, and dependencies as if they asked for nothing."""
    monkeypatch.setattr(schema_logic._Writer, "negated", lambda *_: [True])
    monkeypatch.setattr(schema_logic._Writer, "_parts", right_parts_without_dependencies)
    assert widened(SCHEMAS[name], name)


right_parts = schema_logic._Writer._parts


def right_parts_without_dependencies(self: Any, schema: Mapping[str, Any]) -> Any:
    return right_parts(self, {k: v for k, v in schema.items() if k != "dependencies"})


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_the_grammar_lets_through_satisfies_the_schema(name: str) -> None:
    """Random walks over the legal tokens, to their end."""
    schema = SCHEMAS[name]
    made_by, rng, ended = compiler(), random.Random(3), 0
    for _ in range(12):
        matcher = made_by.start(Grammar("json_schema", json.dumps(schema)))
        written = b""
        for _ in range(150):
            choice = sorted(legal(made_by, matcher))
            token = EOS if EOS in choice else rng.choice(choice)
            if token == EOS:
                ended += 1
                assert satisfies(json.loads(written), schema), written
                break
            assert matcher.advance(token)
            written += tokenizer().token_bytes(token)
    assert ended > 3


def test_what_cannot_be_told_is_refused() -> None:
    never: dict[str, Any] = {"type": "string", "not": {"type": "string"}}
    with pytest.raises(InvalidRequestError, match="cannot be used"):
        compiler().compile(Grammar("json_schema", json.dumps(never)))
    with pytest.raises(InvalidRequestError, match="which is not in it"):
        plain({"$ref": "other.json", "not": {"type": "string"}})
    with pytest.raises(InvalidRequestError, match="too many cases"):
        plain(
            {
                "oneOf": [
                    {"not": {"oneOf": [{"minimum": i + j} for j in range(99)]}} for i in range(99)
                ]
            }
        )
    with pytest.raises(InvalidRequestError, match="another type"):
        list(alternatives('{"not": {"required": 7}}'))


def test_a_schema_without_logic_is_left_as_it_is() -> None:
    schema = {**AB, "title": "A", "examples": [{"not": 1}], "enum": [{"oneOf": 1}]}
    assert plain(schema) == schema
    assert len(list(alternatives(json.dumps(AB)))) <= 2


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|a)*$", "a*a*a*a*a*a*b", "|".join(["a?"] * 40), "(a{1,9}){1,9}$"]
)
def test_a_pattern_that_could_be_searched_for_ever_is_not_tried(pattern: str) -> None:
    assert holds("a" * 60, {"pattern": pattern}, Root({})) is None


def test_questions_about_one_schema_are_counted() -> None:
    """References that double at each level."""
    definitions = {str(i): {"anyOf": [{"$ref": f"#/$defs/{i + 1}"}] * 2} for i in range(22)}
    schema = {
        "$defs": {**definitions, "22": {"type": "null"}},
        "enum": [1],
        "not": {"$ref": "#/$defs/0"},
    }
    with pytest.raises(InvalidRequestError):
        plain(schema)
