"""GET /v1/usage: what the caller's tenant has used, what it cost, and what each technique saved."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from nonet.core.errors import InvalidRequestError, NotFoundError
from nonet.server.call import Call
from nonet.store.database import Database
from nonet.telemetry.usage import savings_report, span_of, usage_report

__all__ = ["query", "report", "usage"]


async def usage(call: Call) -> None:
    """The caller's own tenant; `start` and `end` as dates or Unix times, `by` as names with commas between."""
    database = call.state.database
    if database is None or call.state.ledger is None:
        raise NotFoundError("this server keeps no ledger; start it with --gateway ledger")
    fields = query(call)
    await call.respond(await report(database, fields, call.tenant))


async def report(database: Database, fields: dict[str, str], tenant: str | None) -> dict[str, Any]:
    """A report of one tenant, or of all."""
    span = span_of(fields.get("start"), fields.get("end"), tenant)
    by = [name for name in fields.get("by", "").split(",") if name]
    lines = await database.read(lambda connection: usage_report(connection, span, by))
    saved = await database.read(lambda connection: savings_report(connection, span))
    return {"object": "list", "data": lines, "savings": saved}


def query(call: Call) -> dict[str, str]:
    """The fields behind the question mark; the last of equal names counts."""
    text = call.scope["query_string"].decode("latin-1")
    try:
        return dict(parse_qsl(text, max_num_fields=32))
    except ValueError:
        raise InvalidRequestError("the query has too many fields; give 32 at most") from None
