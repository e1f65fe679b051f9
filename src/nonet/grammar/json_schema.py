"""A JSON Schema as a client gives it, in the terms that the grammar library states exactly.

Every rewriting keeps or narrows what the schema allows, so an output of the rewritten schema satisfies the given one.
"""

from __future__ import annotations

import json
from typing import Any

from nonet.core.errors import InvalidRequestError

__all__ = ["lowered"]


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
