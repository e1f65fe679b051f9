"""What a client says of the page that it wants of a list."""

from __future__ import annotations

from urllib.parse import parse_qs

from nonet.core.errors import InvalidRequestError
from nonet.server.call import Call

__all__ = ["limit_of", "order_of", "query_of"]


def query_of(call: Call) -> dict[str, str]:
    """The last value of each parameter behind the question mark."""
    text = call.scope["query_string"].decode("latin-1")
    try:
        fields = parse_qs(text, keep_blank_values=True, max_num_fields=32)
    except ValueError:
        raise InvalidRequestError("the query has too many parameters") from None
    return {name: values[-1] for name, values in fields.items()}


def limit_of(query: dict[str, str], *, default: int, most: int) -> int:
    """How many entries."""
    given = query.get("limit")
    if given is None:
        return default
    if not given.isascii() or not given.isdigit() or len(given) > 9 or not 1 <= int(given) <= most:
        raise InvalidRequestError(
            f"limit is {given[:20]!r}; allowed: a number from 1 to {most}", "limit"
        )
    return int(given)


def order_of(query: dict[str, str]) -> str:
    """By time: the newest first unless asked for otherwise."""
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequestError(f"order is {order[:20]!r}; allowed: asc, desc", "order")
    return order
