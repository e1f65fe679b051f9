"""Files: POST and GET /v1/files, GET and DELETE /v1/files/{id}, and their content."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, BinaryIO

from nonet.core.errors import InvalidRequestError, NotFoundError, OverloadedError
from nonet.server.call import Call
from nonet.server.limits import check_length
from nonet.server.multipart import receive_upload
from nonet.server.paging import limit_of, listed, order_of, query_of
from nonet.store.files import FileRecord, FileStore, new_file_id

__all__ = [
    "create_file",
    "delete_file",
    "expiry_of",
    "file_chunks",
    "file_content",
    "list_files",
    "show_file",
]

PURPOSE = "batch"
KEPT_S = 30 * 86400  # OpenAI's, for input of batches
SHORTEST_S, LONGEST_S = 3600, 2_592_000
MAX_PAGE = 10_000
CHUNK_BYTES = 256 * 1024
FULL_RETRY_S = 600.0


async def create_file(call: Call) -> None:
    """Keep an uploaded file."""
    files = stored_files(call)
    if await files.num_bytes() >= files.max_bytes:
        raise OverloadedError("the server's room for files is used up; delete some", FULL_RETRY_S)
    async with receive_upload(call, files.part()) as upload:
        _check_purpose(upload.fields.get("purpose"))
        kept_s = _kept_s(upload.fields)
        now = int(time.time())
        record = FileRecord(
            file_id=new_file_id(),
            tenant=call.tenant,
            purpose=PURPOSE,
            filename=upload.filename,
            num_bytes=upload.num_bytes,
            created_s=now,
            expires_s=now + (KEPT_S if kept_s is None else kept_s),
        )
        await files.add(record, upload.part)
    await call.respond(_told(record))


async def list_files(call: Call) -> None:
    query = query_of(call)
    limit = limit_of(query, default=MAX_PAGE, most=MAX_PAGE)
    found = await stored_files(call).page(
        call.tenant,
        purpose=query.get("purpose"),
        after=query.get("after"),
        limit=limit + 1,
        order=order_of(query),
    )
    page = [_told(record) for record in found[:limit]]
    await call.respond(listed(page, has_more=len(found) > limit))


async def show_file(call: Call) -> None:
    await call.respond(_told(await _asked(call)))


async def delete_file(call: Call) -> None:
    record = await _asked(call)
    await stored_files(call).delete(call.tenant, record.file_id)
    await call.respond({"id": record.file_id, "object": "file", "deleted": True})


async def file_content(call: Call) -> None:
    """The bytes as they were uploaded or written."""
    record = await _asked(call)
    chunks = file_chunks(stored_files(call).path(record.file_id))
    await call.respond_chunks(chunks, record.num_bytes, b"application/octet-stream")


async def file_chunks(path: Path) -> AsyncGenerator[bytes, None]:
    """A file, read off the event loop a piece at a time. NotFoundError when it is gone."""
    try:
        file: BinaryIO = await asyncio.to_thread(path.open, "rb")
    except FileNotFoundError:
        raise NotFoundError("the file was deleted") from None
    with file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk


def stored_files(call: Call) -> FileStore:
    """NotFoundError on a server that keeps none."""
    if call.state.files is None:
        raise NotFoundError("this server keeps no files; start it with --data-dir")
    return call.state.files


def expiry_of(anchor: str | None, seconds: int | None, param: str) -> int | None:
    """How long a file is kept, from OpenAI's two fields; None where they are left out."""
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise InvalidRequestError(f"{param}.anchor must be created_at", param)
    if seconds is None or not SHORTEST_S <= seconds <= LONGEST_S:
        raise InvalidRequestError(
            f"{param}.seconds is {seconds}; give {SHORTEST_S} to {LONGEST_S}", param
        )
    return seconds


def _check_purpose(purpose: str | None) -> None:
    if purpose != PURPOSE:
        given = "missing" if purpose is None else repr(purpose[:50])
        raise InvalidRequestError(f"purpose is {given}; only {PURPOSE!r} is served here", "purpose")


def _kept_s(fields: dict[str, str]) -> int | None:
    seconds = fields.get("expires_after[seconds]")
    if seconds is not None and not (seconds.isascii() and seconds.isdigit() and len(seconds) < 10):
        raise InvalidRequestError("expires_after.seconds is no number", "expires_after")
    number = None if seconds is None else int(seconds)
    return expiry_of(fields.get("expires_after[anchor]"), number, "expires_after")


async def _asked(call: Call) -> FileRecord:
    file_id: str = call.scope["path_params"]["file_id"]
    check_length("name", len(file_id), "file_id")
    return await stored_files(call).get(call.tenant, file_id)


def _told(record: FileRecord) -> dict[str, Any]:
    told: dict[str, Any] = {
        "id": record.file_id,
        "object": "file",
        "bytes": record.num_bytes,
        "created_at": record.created_s,
        "filename": record.filename,
        "purpose": record.purpose,
        "status": "processed",
    }
    return told if record.expires_s is None else told | {"expires_at": record.expires_s}
