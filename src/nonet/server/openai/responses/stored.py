"""Responses that were kept: GET and DELETE /v1/responses/{id}, its input items, and /cancel."""

from __future__ import annotations

import orjson

from nonet.core.errors import InvalidRequestError
from nonet.server.call import Call
from nonet.server.limits import check_length, maximum
from nonet.server.paging import cut_page, limit_of, order_of, query_of

__all__ = ["cancel_response", "delete_response", "list_input_items", "show_response"]

DEFAULT_PAGE = 20


async def show_response(call: Call) -> None:
    record = await call.state.responses.get(call.tenant, _asked_id(call))
    await call.respond_bytes(record.answer)


async def delete_response(call: Call) -> None:
    """The turn is gone, and with it what a later turn would continue."""
    response_id = _asked_id(call)
    await call.state.responses.delete(call.tenant, response_id)
    await call.respond({"id": response_id, "object": "response", "deleted": True})


async def cancel_response(call: Call) -> None:
    await call.state.responses.get(call.tenant, _asked_id(call))
    raise InvalidRequestError(
        "only a response in the background can be cancelled, and this server makes none"
    )


async def list_input_items(call: Call) -> None:
    """The items that came with a turn, the newest first unless asked for otherwise."""
    record = await call.state.responses.get(call.tenant, _asked_id(call))
    query = query_of(call)
    items = orjson.loads(record.input)
    if order_of(query) == "desc":
        items.reverse()
    limit = limit_of(query, default=DEFAULT_PAGE, most=maximum("page"))
    await call.respond(cut_page(items, limit, query.get("after")))


def _asked_id(call: Call) -> str:
    response_id: str = call.scope["path_params"]["response_id"]
    check_length("name", len(response_id), "response_id")
    return response_id
