"""Message batches: POST and GET /v1/messages/batches, GET and DELETE of one, its results, and /cancel.

They are kept and run as OpenAI's are: the requests become an input file of our own, and the results are one file.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import orjson

from nonet.core.errors import InvalidRequestError, NotFoundError, StoreError
from nonet.server.batch.forms import ANTHROPIC
from nonet.server.call import Call
from nonet.server.limits import check_length, maximum
from nonet.server.openai.batches import WINDOW_S, stored_batches
from nonet.server.openai.files import file_chunks, stored_files
from nonet.server.paging import limit_of, query_of
from nonet.store.batch_records import ENDED, BatchRecord
from nonet.store.files import INTERNAL, FileRecord, new_file_id

__all__ = [
    "cancel_message_batch",
    "create_message_batch",
    "delete_message_batch",
    "list_message_batches",
    "message_batch_results",
    "show_message_batch",
]

ENDPOINT = "/v1/messages"
KEPT_S = 29 * 86_400  # Anthropic's, for results
DEFAULT_PAGE, MAX_PAGE = 20, 1000
CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    custom_id: str
    params: msgspec.Raw


class _CreateBatch(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/messages/batches."""

    requests: list[_Request]


async def create_message_batch(call: Call) -> None:
    """A batch of messages; what is wrong with one of them is its result."""
    store, files = stored_batches(call), stored_files(call)
    body = await call.json(_CreateBatch, maximum("message_batch_bytes"))
    part = files.part()
    try:
        num_bytes = await asyncio.to_thread(
            _write_input, part, body.requests, call.state.config.max_body_bytes
        )
        given = FileRecord(
            file_id=new_file_id(),
            tenant=call.tenant,
            purpose=INTERNAL,
            filename="requests.jsonl",
            num_bytes=num_bytes,
            created_s=int(time.time()),
        )
        await files.place(given.file_id, part)
    except OSError as error:
        raise StoreError(f"the batch could not be kept: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    record = BatchRecord(
        batch_id=f"msgbatch_{secrets.token_hex(16)}",
        tenant=call.tenant,
        key_id=call.key.key_id,
        dialect=ANTHROPIC,
        endpoint=ENDPOINT,
        status="validating",
        input_file_id=given.file_id,
        output_ttl_s=KEPT_S,
        created_s=given.created_s,
        expires_s=given.created_s + WINDOW_S,
        total=len(body.requests),
    )
    await store.create(record, given)
    await call.respond(_told(record))


async def list_message_batches(call: Call) -> None:
    """The newest first."""
    query = query_of(call)
    limit = limit_of(query, default=DEFAULT_PAGE, most=MAX_PAGE)
    after, before = query.get("after_id"), query.get("before_id")
    if after is not None and before is not None:
        raise InvalidRequestError("give after_id or before_id, not both", "before_id")
    found = await stored_batches(call).page(
        call.tenant, ANTHROPIC, limit=limit + 1, after=after, before=before
    )
    page = [_told(one) for one in (found[:limit] if before is None else found[-limit:])]
    await call.respond(
        {
            "data": page,
            "has_more": len(found) > limit,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
        }
    )


async def show_message_batch(call: Call) -> None:
    await call.respond(_told(await _asked(call)))


async def cancel_message_batch(call: Call) -> None:
    """What runs is dropped and costs nothing; what has ended stays."""
    record = await stored_batches(call).cancel(call.tenant, ANTHROPIC, _asked_id(call))
    await call.respond(_told(record))


async def delete_message_batch(call: Call) -> None:
    """A batch that has ended goes with its requests and results."""
    record = await stored_batches(call).delete(call.tenant, ANTHROPIC, _asked_id(call))
    await stored_files(call).discard(record.input_file_id, record.output_file_id)
    await call.respond({"id": record.batch_id, "type": "message_batch_deleted"})


async def message_batch_results(call: Call) -> None:
    """One line for each request, in the order of the requests."""
    record = await _asked(call)
    if record.status not in ENDED:
        raise InvalidRequestError(
            f"batch {record.batch_id!r} has not ended; its results come when it has"
        )
    files = stored_files(call)
    path = files.path(record.output_file_id or "")
    if record.output_file_id is None or not path.is_file():
        raise NotFoundError(f"the results of batch {record.batch_id!r} are not kept any more")
    size = path.stat().st_size
    await call.respond_chunks(file_chunks(path), size, b"application/x-jsonl")


def _write_input(part: Path, requests: list[_Request], max_line_bytes: int) -> int:
    """The requests as lines of an input file; how many bytes. InvalidRequestError for requests that are no use."""
    _check(requests)
    size = 0
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        for number, request in enumerate(requests):
            line = _line(request)
            if len(line) > max_line_bytes:
                raise InvalidRequestError(
                    f"requests[{number}] is over {max_line_bytes} bytes", "requests"
                )
            size += file.write(line + b"\n")
    return size


def _line(request: _Request) -> bytes:
    params = orjson.loads(bytes(request.params))  # laid out on one line
    return orjson.dumps(
        {"custom_id": request.custom_id, "method": "POST", "url": ENDPOINT, "body": params}
    )


def _check(requests: list[_Request]) -> None:
    if not requests:
        raise InvalidRequestError("requests is empty; give at least one", "requests")
    check_length("batch_lines", len(requests), "requests")
    seen: set[str] = set()
    for number, request in enumerate(requests):
        where = f"requests[{number}]"
        if CUSTOM_ID.fullmatch(request.custom_id) is None:
            raise InvalidRequestError(
                f"{where}.custom_id is {request.custom_id[:70]!r}; give 1 to 64 letters, digits, - and _",
                "requests",
            )
        if request.custom_id in seen:
            raise InvalidRequestError(
                f"{where}.custom_id {request.custom_id!r} occurs more than once; give each its own",
                "requests",
            )
        if not bytes(request.params).startswith(b"{"):
            raise InvalidRequestError(f"{where}.params is no object", "requests")
        seen.add(request.custom_id)


def _asked_id(call: Call) -> str:
    batch_id: str = call.scope["path_params"]["batch_id"]
    check_length("name", len(batch_id), "batch_id")
    return batch_id


async def _asked(call: Call) -> BatchRecord:
    return await stored_batches(call).get(call.tenant, ANTHROPIC, _asked_id(call))


def _told(record: BatchRecord) -> dict[str, Any]:
    """The batch object. Its counts show what became of the requests once all have ended."""
    has_ended = record.status in ENDED
    unrun = record.unrun if has_ended else 0
    is_cancelled = record.status == "cancelled"
    ended_s = record.time_of(record.status) if has_ended else None
    path = f"{ENDPOINT}/batches/{record.batch_id}/results"
    status = "ended" if has_ended else "in_progress"
    return {
        "id": record.batch_id,
        "type": "message_batch",
        "processing_status": "canceling" if record.status == "cancelling" else status,
        "request_counts": {
            "processing": 0 if has_ended else record.total,
            "succeeded": record.completed if has_ended else 0,
            "errored": record.failed if has_ended else 0,
            "canceled": unrun if is_cancelled else 0,
            "expired": 0 if is_cancelled else unrun,
        },
        "created_at": _time(record.created_s),
        "expires_at": _time(record.expires_s),
        "cancel_initiated_at": _time(record.time_of("cancelling")),
        "ended_at": _time(ended_s),
        "archived_at": None,
        "results_url": path if record.output_file_id is not None else None,
    }


def _time(unix_s: int | None) -> str | None:
    return None if unix_s is None else datetime.fromtimestamp(unix_s, UTC).isoformat()
