"""What a client says of the page that it wants of a list, and a page as it is told."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from nonet.core.errors import InvalidRequestError, NotFoundError
from nonet.server.call import Call

__all__ = ["cut_page", "limit_of", "listed", "order_of", "query_of"]


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


def order_of(query: dict[str, str], default: str = "desc") -> str:
    """By time: "desc" is the newest first, "asc" the oldest."""
    order = query.get("order", default)
    if order not in ("asc", "desc"):
        raise InvalidRequestError(f"order is {order[:20]!r}; allowed: asc, desc", "order")
    return order


def cut_page(entries: list[dict[str, Any]], limit: int, after: str | None) -> dict[str, Any]:
    """Of all entries, those after the one with that id; NotFoundError when there is none."""
    start = 0
    if after is not None:
        start = next((i + 1 for i, entry in enumerate(entries) if entry["id"] == after), -1)
        if start < 0:
            raise NotFoundError(f"the list has no entry {after[:100]!r}")
    page = entries[start : start + limit]
    return listed(page, has_more=start + limit < len(entries))


def listed(page: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """OpenAI's list object."""
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else "",
        "last_id": page[-1]["id"] if page else "",
        "has_more": has_more,
    }
