"""A JSON Schema as a client gives it, in the terms that the grammar library states exactly.

Every rewriting keeps or narrows what the schema allows, so an output of the rewritten schema satisfies the given one.
"""

from __future__ import annotations

import json
from typing import Any

from nonet.core.errors import InvalidRequestError

__all__ = ["OPTIONS", "embedded", "lowered"]

# Whitespace between the parts of JSON: none, a space, or a line break with its indentation, as models were taught to
# write it. Any amount would let a model that has lost its way go on for ever.
OPTIONS = {"whitespace_pattern": r" |\n( {0,32}|\t{0,8})"}


def embedded(text: str) -> str:
    """The schema `text` as it may stand in a Lark grammar, after `%json`."""
    return json.dumps({**json.loads(lowered(text)), "x-guidance": OPTIONS})


def lowered(text: str) -> str:
    """The schema `text` rewritten; InvalidRequestError for what is no schema or cannot be stated."""
    try:
        schema: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidRequestError("the schema is not valid JSON") from None
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise InvalidRequestError("the schema must be an object")
    schema.pop("x-guidance", None)
    return json.dumps(schema)
