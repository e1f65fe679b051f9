"""A JSON Schema as a client gives it, in the terms that the grammar library states exactly.

Every rewriting keeps or narrows what the schema allows, so an output of the rewritten schema satisfies the given one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from nonet.core.errors import InvalidRequestError
from nonet.grammar.schema_logic import plain

__all__ = ["OPTIONS", "alternatives", "embedded", "lowered"]

# Whitespace between the parts of JSON: none, a space, or a line break with its indentation, as models were taught to
# write it. Any amount would let a model that has lost its way go on for ever.
OPTIONS = {"whitespace_pattern": r" |\n( {0,32}|\t{0,8})"}


def embedded(text: str) -> str:
    """The schema `text` as it may stand in a Lark grammar, after `%json`."""
    return _with_options(lowered(text))


def alternatives(text: str) -> Iterator[str]:
    """Ways to state the schema `text`, the one that keeps most first; later ones use simpler keywords."""
    schema = _read(text)
    yield _with_options(schema)
    refusal: InvalidRequestError | None = None
    for is_named in (False, True):
        try:
            found = _plain(schema, is_named=is_named)
        except InvalidRequestError as error:
            refusal = error
        else:
            if found != schema:
                yield _with_options(found)
    if refusal is not None:
        raise refusal


def lowered(text: str) -> dict[str, Any]:
    """The schema `text` rewritten; InvalidRequestError for what is no schema or cannot be stated."""
    return _plain(_read(text))


def _read(text: str) -> dict[str, Any]:
    try:
        schema: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidRequestError("the schema is not valid JSON") from None
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise InvalidRequestError("the schema must be an object")
    schema.pop("x-guidance", None)
    return schema


def _plain(schema: dict[str, Any], *, is_named: bool = False) -> dict[str, Any]:
    try:
        return plain(schema, is_named=is_named)
    except RecursionError:
        raise InvalidRequestError("the schema is nested too deeply") from None
    except (TypeError, AttributeError, ValueError) as error:
        raise InvalidRequestError(
            f"a keyword of the schema has a value of another type: {error}"
        ) from None


def _with_options(schema: dict[str, Any]) -> str:
    return json.dumps({**schema, "x-guidance": OPTIONS})
