"""The files of a batch whose lines have ended: written from the store, a page at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from nonet.core.errors import StoreError
from nonet.server.batch.forms import FORMS, Form
from nonet.store.batch_records import BatchRecord, LineState, SettledLine
from nonet.store.batches import BatchStore
from nonet.store.files import INTERNAL, FileRecord, FileStore, new_file_id

__all__ = ["write_files"]

AT_ONCE = 64  # lines in memory
KEPT_S = 30 * 86400


async def write_files(
    store: BatchStore, files: FileStore, record: BatchRecord, wall: Callable[[], float]
) -> None:
    """Write what the lines came to and end the batch with it. Begun again after a crash, it starts over; what the
    first attempt has written is nobody's and goes at the next start."""
    form = FORMS[record.dialect]
    sheets: list[_Sheet] = []
    try:
        sheets += [_Sheet(files.part(), kind) for kind in ("output", "error")]
        after = -1
        while lines := await store.settled(record.batch_id, after, AT_ONCE):
            await asyncio.to_thread(_write, form, sheets, lines)
            after = lines[-1].number
        for sheet in sheets:
            sheet.file.close()
        made = [await _keep(files, form, record, sheet, wall) for sheet in sheets]
    except OSError as error:
        raise StoreError(f"the files of a batch could not be written: {error.strerror}") from None
    finally:
        for sheet in sheets:
            sheet.file.close()
            with contextlib.suppress(OSError):
                sheet.part.unlink(missing_ok=True)
    if not await store.finish(record.batch_id, *made):
        for one in made:
            if one is not None:
                files.path(one.file_id).unlink(missing_ok=True)


class _Sheet:
    """One file while it is written."""

    def __init__(self, part: Path, kind: str) -> None:
        self.part = part
        self.kind = kind
        self.file: BinaryIO = part.open("xb")
        self.num_bytes = 0

    def add(self, text: bytes) -> None:
        self.num_bytes += self.file.write(text + b"\n")


def _write(form: Form, sheets: list[_Sheet], lines: list[SettledLine]) -> None:
    for line in lines:
        is_error = form.has_error_file and line.state is not LineState.COMPLETED
        text = line.result
        sheets[is_error].add(form.unrun(line.custom_id, line.state) if text is None else text)


async def _keep(
    files: FileStore, form: Form, record: BatchRecord, sheet: _Sheet, wall: Callable[[], float]
) -> FileRecord | None:
    """The file under its name; None for one with nothing in it."""
    if not sheet.num_bytes:
        return None
    file_id = new_file_id()
    await files.place(file_id, sheet.part)
    now = int(wall())
    return FileRecord(
        file_id=file_id,
        tenant=record.tenant,
        purpose=INTERNAL if form.is_hidden else "batch_output",
        filename=f"{record.batch_id}_{sheet.kind}.jsonl",
        num_bytes=sheet.num_bytes,
        created_s=now,
        expires_s=now + (record.output_ttl_s or KEPT_S),
    )
