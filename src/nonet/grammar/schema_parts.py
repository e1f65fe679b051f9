"""Schemas put together: all of some, any of some, so many properties of those that are named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nonet.core.errors import InvalidRequestError

__all__ = ["all_of", "any_of", "counted"]

Schema = Any


def counted(rest: dict[str, Any]) -> Iterator[Schema]:
    """At least and at most so many properties, in terms of which; takes the two keywords out of `rest`."""
    required = rest.get("required", ())
    free = [n for n, one in rest["properties"].items() if n not in required and one is not False]
    least, most = rest.pop("minProperties", 0), rest.get("maxProperties")
    short = least - len(required)
    if short == 1 and free:
        yield any_of([{"required": [name]} for name in free])
    elif 0 < short <= len(free):
        yield {"required": free[:short]}
    elif short > 0:
        raise InvalidRequestError(
            f"minProperties is {least}, and the schema names fewer properties"
        )
    if (
        most is None
        or rest.get("additionalProperties") is not False
        or rest.get("patternProperties")
    ):
        return
    del rest["maxProperties"]
    room = most - len(required)
    if room < len(free):
        runs = [free[at : at + room] for at in range(len(free) - room + 1)] if room > 0 else [[]]
        yield any_of(
            [{"properties": {n: False for n in free if n not in run}} for run in runs]
            if room >= 0
            else []
        )


def any_of(options: Sequence[Schema]) -> Schema:
    kept = [one for one in options if one is not False]
    if not kept:
        return False
    if True in kept or {} in kept:
        return True
    return kept[0] if len(kept) == 1 else {"anyOf": kept}


def all_of(rest: Mapping[str, Any], parts: Sequence[Schema]) -> Schema:
    if False in parts:
        return False
    kept = [one for one in parts if one is not True and one != {}]
    if not rest:
        if not kept:
            return True
        if len(kept) == 1:
            return kept[0]
    if not kept:
        return dict(rest)
    return {**rest, "allOf": [*rest.get("allOf", ()), *kept]}
