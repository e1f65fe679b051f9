"""One table of the smallest and largest value of every number and list that a request may carry.

The offline API, the HTTP server, the documentation and the tests all read this table; nothing else states a bound.
"""

from __future__ import annotations

import math
from collections.abc import Sized
from dataclasses import dataclass

from nonet.core.errors import InvalidRequestError

__all__ = ["LIMITS", "Limit", "check"]


@dataclass(frozen=True, slots=True)
class Limit:
    """Bounds of one field: `minimum`/`maximum` of a number, `max_length` of a list or a string.

    `item_minimum`/`item_maximum` bound the numbers inside a list or the values of a map.
    """

    kind: str  # "int" | "float" | "str" | "bool" | "list[int]" | "list[str]" | "map[int, float]"
    minimum: float | None = None
    maximum: float | None = None
    max_length: int | None = None
    item_minimum: float | None = None
    item_maximum: float | None = None
    doc: str = ""


LIMITS: dict[str, Limit] = {
    "n": Limit("int", 1, 128, doc="choices generated for one prompt"),
    "temperature": Limit("float", 0.0, 100.0, doc="0 is greedy; logits are divided by it"),
    "top_p": Limit(
        "float", 0.0, 1.0, doc="smallest set of tokens whose mass reaches it; 0 keeps one token"
    ),
    "top_k": Limit("int", -1, 1_000_000, doc="most likely tokens kept; 0 and -1 keep all"),
    "min_p": Limit("float", 0.0, 1.0, doc="drop tokens below min_p times the most likely one"),
    "repetition_penalty": Limit("float", 0.01, 100.0, doc="divides positive logits of seen tokens"),
    "frequency_penalty": Limit("float", -2.0, 2.0, doc="subtracted per occurrence in the output"),
    "presence_penalty": Limit("float", -2.0, 2.0, doc="subtracted once for tokens in the output"),
    "logit_bias": Limit(
        "map[int, float]",
        max_length=1024,
        item_minimum=-100.0,
        item_maximum=100.0,
        doc="added to the logit of a token id",
    ),
    "seed": Limit("int", -(2**63), 2**64 - 1, doc="same seed, same tokens, whatever the batch"),
    "max_tokens": Limit("int", 1, 10_000_000, doc="most output tokens"),
    "min_tokens": Limit(
        "int", 0, 10_000_000, doc="no end of sequence before that many output tokens"
    ),
    "stop": Limit("list[str]", max_length=64, doc="strings that end the output"),
    "stop_item": Limit("str", 1, None, max_length=4096, doc="one stop string"),
    "stop_token_ids": Limit(
        "list[int]", max_length=1024, item_minimum=0, doc="token ids that end the output"
    ),
    "logprobs": Limit("int", 0, 64, doc="alternatives reported for each output token"),
    "top_logprobs": Limit("int", 0, 64, doc="alternatives reported for each output token (chat)"),
    "prompt_logprobs": Limit("int", 0, 64, doc="alternatives reported for each prompt token"),
    "grammar": Limit(
        "str", max_length=512 * 1024, doc="characters of a schema, an expression or a grammar"
    ),
    "priority": Limit("int", -(2**31), 2**31 - 1, doc="lower runs first under the priority policy"),
    "prompt_ids": Limit(
        "list[int]", max_length=10_000_000, item_minimum=0, doc="a prompt as token ids"
    ),
    "prompts": Limit("list[str]", max_length=256, doc="prompts in one completion request"),
    "messages": Limit("list[str]", max_length=8192, doc="messages in one chat"),
    "text": Limit("str", max_length=32 * 1024 * 1024, doc="characters of one string field"),
    "cache_salt": Limit("str", max_length=512, doc="keeps a tenant's cached prefixes apart"),
    "request_id": Limit("str", max_length=256, doc="the caller's name for a request"),
    "user": Limit("str", max_length=512, doc="accepted and not used"),
}


def check(field: str, value: object, *, param: str | None = None) -> None:
    """Raise InvalidRequestError when `value` breaks the row of `field`; `param` is the client's name for it."""
    limit = LIMITS[field]
    name = param or field
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        _check_number(name, value, limit.minimum, limit.maximum)
        return
    if limit.max_length is not None and isinstance(value, Sized) and len(value) > limit.max_length:
        raise InvalidRequestError(
            f"{name} has length {len(value)}; at most {limit.max_length} is allowed", name
        )
    if isinstance(value, dict):
        items = list(value.values())
    elif isinstance(value, (list, tuple)):
        items = list(value)
    else:
        return
    if limit.item_minimum is None and limit.item_maximum is None:
        return
    for item in items:
        if isinstance(item, (int, float)):
            _check_number(
                f"a value of {name}", item, limit.item_minimum, limit.item_maximum, param=name
            )


def _check_number(
    name: str,
    value: float,
    minimum: float | None,
    maximum: float | None,
    *,
    param: str | None = None,
) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidRequestError(f"{name} is {value}; a finite number is needed", param or name)
    too_small = minimum is not None and value < minimum
    too_large = maximum is not None and value > maximum
    if too_small or too_large:
        low = "no lower bound" if minimum is None else f"at least {minimum:g}"
        high = "no upper bound" if maximum is None else f"at most {maximum:g}"
        raise InvalidRequestError(f"{name} is {value}; allowed: {low}, {high}", param or name)
