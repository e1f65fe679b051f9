"""The fields with which a client asks for an answer in a given shape, OpenAI's and vLLM's, as a grammar."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from nonet.core.errors import InvalidRequestError
from nonet.core.grammar import Grammar
from nonet.server.limits import check_depth, check_length

__all__ = [
    "AskedShape",
    "JsonSchemaFormat",
    "ResponseFormat",
    "ShapeFields",
    "StructuredOutputs",
    "asked_shape",
    "schema_grammar",
]


class JsonSchemaFormat(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's `response_format.json_schema`. The answer always satisfies the schema, `strict` or not."""

    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | bool | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's `response_format`."""

    type: str
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True):
    """vLLM's `structured_outputs`: one of these."""

    json: str | dict[str, Any] | bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class ShapeFields(msgspec.Struct, frozen=True, kw_only=True):
    """What a body may hold; the `guided_` fields are those of vLLM before `structured_outputs`."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None


@dataclass(frozen=True, slots=True)
class AskedShape:
    """A grammar, and the field that asks for it."""

    grammar: Grammar
    param: str


def asked_shape(fields: ShapeFields) -> AskedShape | None:
    """What the answer must look like; None for text. InvalidRequestError for two wishes at once.

    >>> asked_shape(ShapeFields(guided_regex="[0-9]+")).grammar.kind
    'regex'
    """
    wishes = list(_wishes(fields))
    if not wishes:
        return None
    if len(wishes) > 1:
        raise InvalidRequestError(
            f"{wishes[0].param} and {wishes[1].param} both say what the answer must look like; give one",
            wishes[1].param,
        )
    return wishes[0]


def schema_grammar(schema: dict[str, Any] | bool | str, param: str) -> AskedShape:
    """The grammar of a schema, given as an object or as its JSON text."""
    if not isinstance(schema, str):
        check_depth(schema, param)
        schema = json.dumps(schema)
    return AskedShape(Grammar("json_schema", schema), param)


def _wishes(fields: ShapeFields) -> Iterator[AskedShape]:
    if fields.response_format is not None:
        yield from _formatted(fields.response_format)
    if fields.structured_outputs is not None:
        yield from _structured(fields.structured_outputs)
    if fields.guided_json is not None:
        yield schema_grammar(fields.guided_json, "guided_json")
    if fields.guided_regex is not None:
        yield AskedShape(Grammar("regex", fields.guided_regex), "guided_regex")
    if fields.guided_choice is not None:
        yield _choice(fields.guided_choice, "guided_choice")
    if fields.guided_grammar is not None:
        yield AskedShape(Grammar("lark", fields.guided_grammar), "guided_grammar")


def _formatted(given: ResponseFormat) -> Iterator[AskedShape]:
    param = "response_format"
    match given.type:
        case "text":
            return
        case "json_object":
            yield AskedShape(Grammar("json_object"), param)
        case "json_schema":
            if given.json_schema is None or given.json_schema.schema is None:
                raise InvalidRequestError(
                    "response_format of type 'json_schema' needs json_schema.schema", param
                )
            if given.json_schema.name is not None:
                check_length("name", len(given.json_schema.name), param)
            yield schema_grammar(given.json_schema.schema, param)
        case other:
            raise InvalidRequestError(
                f"response_format has type {other[:50]!r}; allowed: text, json_object, json_schema",
                param,
            )


def _structured(given: StructuredOutputs) -> Iterator[AskedShape]:
    param = "structured_outputs"
    if given.json is not None:
        yield schema_grammar(given.json, param)
    if given.regex is not None:
        yield AskedShape(Grammar("regex", given.regex), param)
    if given.choice is not None:
        yield _choice(given.choice, param)
    if given.grammar is not None:
        yield AskedShape(Grammar("lark", given.grammar), param)
    if given.json_object:
        yield AskedShape(Grammar("json_object"), param)


def _choice(choices: list[str], param: str) -> AskedShape:
    check_length("choice", len(choices), param)
    return AskedShape(Grammar("choice", json.dumps(choices)), param)
