"""Batches: POST and GET /v1/batches, GET /v1/batches/{id}, and /cancel."""

from __future__ import annotations

import secrets
import time
from typing import Any

import msgspec

from nonet.core.errors import InvalidRequestError, NotFoundError
from nonet.server.batch.forms import OPENAI, OPENAI_ENDPOINTS
from nonet.server.call import Call
from nonet.server.limits import check_length, check_metadata, maximum
from nonet.server.openai.files import expiry_of, stored_files
from nonet.server.paging import limit_of, query_of
from nonet.store.batch_records import BatchRecord
from nonet.store.batches import BatchStore

__all__ = [
    "WINDOW_S",
    "cancel_batch",
    "create_batch",
    "list_batches",
    "show_batch",
    "stored_batches",
]

WINDOW, WINDOW_S = "24h", 86_400
DEFAULT_PAGE = 20
TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


class _Expiry(msgspec.Struct, frozen=True):
    anchor: str | None = None
    seconds: int | None = None


class _CreateBatch(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/batches."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: _Expiry | None = None


async def create_batch(call: Call) -> None:
    """A batch over an uploaded file; what is wrong with its lines shows in its status later."""
    store = stored_batches(call)
    body = await call.json(_CreateBatch)
    _check(body)
    check_length("name", len(body.input_file_id), "input_file_id")
    given = await stored_files(call).get(call.tenant, body.input_file_id)
    if given.purpose != "batch":
        raise InvalidRequestError(
            f"file {given.file_id!r} has purpose {given.purpose!r}; give one uploaded for batch",
            "input_file_id",
        )
    expiry = body.output_expires_after or _Expiry()
    now = int(time.time())
    record = BatchRecord(
        batch_id=f"batch_{secrets.token_hex(16)}",
        tenant=call.tenant,
        key_id=call.key.key_id,
        dialect=OPENAI,
        endpoint=body.endpoint,
        status="validating",
        input_file_id=given.file_id,
        output_ttl_s=expiry_of(expiry.anchor, expiry.seconds, "output_expires_after"),
        metadata=msgspec.json.encode(body.metadata).decode(),
        created_s=now,
        expires_s=now + WINDOW_S,
    )
    await store.create(record)
    await call.respond(_told(record))


async def list_batches(call: Call) -> None:
    """The newest first."""
    query = query_of(call)
    limit = limit_of(query, default=DEFAULT_PAGE, most=maximum("page"))
    found = await stored_batches(call).page(
        call.tenant, OPENAI, limit=limit + 1, after=query.get("after")
    )
    page = [_told(record) for record in found[:limit]]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
    await call.respond({"object": "list", "data": page, **ends, "has_more": len(found) > limit})


async def show_batch(call: Call) -> None:
    await call.respond(_told(await stored_batches(call).get(call.tenant, OPENAI, _asked_id(call))))


async def cancel_batch(call: Call) -> None:
    """What runs is dropped and costs nothing; what has ended stays."""
    record = await stored_batches(call).cancel(call.tenant, OPENAI, _asked_id(call))
    await call.respond(_told(record))


def stored_batches(call: Call) -> BatchStore:
    """NotFoundError on a server that runs none."""
    if call.state.batches is None:
        raise NotFoundError("this server runs no batches; start it with --data-dir")
    return call.state.batches


def _check(body: _CreateBatch) -> None:
    if body.endpoint not in OPENAI_ENDPOINTS:
        raise InvalidRequestError(
            f"endpoint is {body.endpoint[:50]!r}; allowed: {', '.join(OPENAI_ENDPOINTS)}",
            "endpoint",
        )
    if body.completion_window != WINDOW:
        raise InvalidRequestError(
            f"completion_window is {body.completion_window[:20]!r}; give {WINDOW!r}",
            "completion_window",
        )
    check_metadata(body.metadata or {})


def _asked_id(call: Call) -> str:
    batch_id: str = call.scope["path_params"]["batch_id"]
    check_length("name", len(batch_id), "batch_id")
    return batch_id


def _told(record: BatchRecord) -> dict[str, Any]:
    """The batch object; fields that do not apply yet are left out."""
    errors = msgspec.json.decode(record.errors)
    told = {
        "id": record.batch_id,
        "object": "batch",
        "endpoint": record.endpoint,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": record.input_file_id,
        "completion_window": WINDOW,
        "status": record.status,
        "output_file_id": record.output_file_id,
        "error_file_id": record.error_file_id,
        "created_at": record.created_s,
        "expires_at": record.expires_s,
        **{f"{status}_at": record.time_of(status) for status in TIMES},
        "request_counts": {
            "total": record.total,
            "completed": record.completed,
            "failed": record.failed + record.unrun,
        },
        "usage": {
            "input_tokens": record.prompt_tokens,
            "input_tokens_details": {"cached_tokens": record.cached_tokens},
            "output_tokens": record.output_tokens,
            "output_tokens_details": {"reasoning_tokens": record.thought_tokens},
            "total_tokens": record.prompt_tokens + record.output_tokens,
        },
        "metadata": msgspec.json.decode(record.metadata),
    }
    return {name: value for name, value in told.items() if value is not None}
